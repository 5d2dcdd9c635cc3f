from __future__ import annotations

import pytest

from tests.report.browser import CHROMIUM, chromium

PHONE, DESK = 390, 1280
GROUND = {"light": "rgb(253, 253, 251)", "dark": "rgb(20, 23, 26)"}
DRAWN = """[...document.querySelectorAll('svg path')]
    .map(path => getComputedStyle(path).stroke).find(colour => colour.startsWith('rgb'))"""
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(element =>
    !element.closest('.scroll') && element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => element.outerHTML.slice(0, 80))"""
CARDS = "[...document.querySelectorAll('.cards tr')].filter(row => row.offsetHeight).length"
OPENED_BY_ITS_LINK = """(() => {
    const link = document.querySelector('td.arm a');
    link.click();
    const record = document.querySelector(link.getAttribute('href'));
    return record.closest('details').open && record.getBoundingClientRect().height > 0;
})()"""


@pytest.mark.skipif(not CHROMIUM, reason="no chromium, chromium-browser or google-chrome here")
def test_a_page_in_a_browser_asks_for_nothing_fits_a_phone_and_follows_the_colour_scheme(
    tmp_path, html
):
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    pictures, strokes = set(), set()
    with chromium(tmp_path / "profile") as browser:
        for width in (PHONE, DESK):
            for scheme, ground in GROUND.items():
                browser.show(width, scheme)
                browser.open(file)
                requests = browser.said("Network.requestWillBeSent")
                assert [each["request"]["url"] for each in requests] == [file.as_uri()]
                assert browser.said("Log.entryAdded") == []
                assert browser.said("Runtime.consoleAPICalled") == []
                assert browser.said("Runtime.exceptionThrown") == []
                assert browser.value("document.documentElement.scrollWidth") == width
                assert browser.value(OVERFLOWING) == []
                assert browser.value(CARDS) == (3 if width == PHONE else 5)  # two have a head
                assert browser.value("getComputedStyle(document.body).backgroundColor") == ground
                strokes.add(browser.value(DRAWN))
                pictures.add(browser.picture())
        assert browser.value(OPENED_BY_ITS_LINK)
    assert len(pictures) == 4
    assert len(strokes) == 2  # figures follow the scheme too
