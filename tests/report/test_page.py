from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from attnbench.ledger import Kind, Ledger, Reason, retract
from attnbench.report.page.contexts import apart
from attnbench.report.page.html import LONGEST_JSON, Contents, page
from attnbench.report.page.origins import environments, registrations
from attnbench.report.page.palette import DARK, LIGHT
from attnbench.report.page.reading import Reading
from tests.report import ledgers

HOSTILE = """</style></svg><script>alert(1)</script><img src=x onerror="alert(2)">'"` $\\frac{ \
{{7*7}} [a](javascript:alert(3)) ]]> &amp; \u202edesrever\u202c \x1b[31m"""
VOID_TAGS = {"meta", "br", "wbr"}


class Seen(HTMLParser):
    """What a browser makes of a page: tags, attributes, the text outside records."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID_TAGS:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes what was not open"

    def handle_data(self, data):
        if {"pre", "style"} & set(self.open):
            return
        self.text += data
        if "tr" in self.open:
            self.rows[-1] += f" {data.strip()}"

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def of(ledger: Ledger) -> str:
    return page(Contents(Reading.of(ledger)))


@pytest.fixture(scope="module")
def seen(html) -> Seen:
    return Seen(html)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    """A ledger whose every text is an attack, over two contexts, so that it is in each figure."""
    ledger = ledgers.ledger_at(tmp_path_factory.mktemp("hostile") / "ledger.jsonl")
    environment = dict.fromkeys(ledgers.GPU, HOSTILE)
    ledger.append(Kind.REGISTRATION, dict.fromkeys(("protocol", "title", "text"), HOSTILE))
    ledger.append(Kind.SESSION, ledgers.opened(HOSTILE, environment=environment))
    for context in (1024, 2048):
        body = ledgers.candidate(
            HOSTILE,
            HOSTILE,
            1.3,
            cell=ledgers.cell(model=HOSTILE, dtype=HOSTILE, device=HOSTILE, context=context),
            environment=environment,
            protocol={"name": HOSTILE},
            failure=HOSTILE,
            verdict=dict.fromkeys(ledgers.verdict("", ""), HOSTILE),
        )
        result = ledger.append(Kind.RESULT, body)
        ledger.append(Kind.RESULT, {**body, "role": "baseline"})
    ledger.append(
        Kind.RESULT,
        ledgers.appraisal(
            HOSTILE, HOSTILE, text=HOSTILE, bands=[HOSTILE], kept=ledgers.kept_map(HOSTILE)
        ),
    )
    for body in (ledgers.calibration(HOSTILE), ledgers.order_effect(HOSTILE)):
        ledger.append(Kind.RESULT, {**body, "cell": ledgers.cell(model=HOSTILE)})
    claimed = {"claim": HOSTILE, "claim_reason": HOSTILE, "next_step": HOSTILE}
    ledger.append(Kind.CLAIM, ledgers.claim(HOSTILE, claimed, system=HOSTILE, rule=HOSTILE))
    imported = ledgers.claim("A-1")
    texts = {name: HOSTILE for name, value in imported["rule"].items() if value == str(value)}
    rule = {**imported["rule"], **texts, "direction": "at-least", "reach": "universal"}
    named = dict.fromkeys(("claim", "source", "source_figure", "rederived", "provenance"), HOSTILE)
    ledger.append(Kind.CLAIM, {**imported, **named, "rule": rule})
    seen = {"low": HOSTILE, "high": 1, "unit": HOSTILE, "note": HOSTILE}
    ledger.append(Kind.CLAIM, ledgers.claim("A-1", claimed, observed=seen))
    for name in ("concern", "note"):
        kind = Kind.CONCERN if name == "concern" else Kind.CORRECTION
        ledger.append(kind, {"target": result.id, name: HOSTILE, "evidence": HOSTILE})
    retract(ledger, ledger.append(Kind.CLAIM, ledgers.claim("B-1")).id, Reason.DUPLICATE, HOSTILE)
    return of(ledger)


def test_a_page_is_made_again_byte_by_byte(made, html):
    assert of(Ledger(made.ledger.path)) == html


def test_a_page_is_well_formed_and_each_of_its_names_is_given_once(seen):
    assert seen.open == []
    assert [name for name, times in Counter(seen.values("id")).items() if times > 1] == []


def test_every_link_leads_to_a_record_or_a_part_of_the_page(seen):
    links = seen.values("href", "xlink:href")
    assert len(links) > 50
    assert {link for link in links if link[1:] not in seen.values("id") or link[0] != "#"} == set()


def test_a_page_has_no_script_and_names_nothing_outside_itself(html, seen):
    assert not {"script", "link", "img", "iframe", "object", "base"} & seen.tags.keys()
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\((?!#)", html)
    spaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<]+", html)) <= spaces


def test_hostile_text_stays_text_in_tables_figures_and_attributes(hostile):
    seen = Seen(hostile)
    assert seen.open == []
    assert not {"script", "img"} & seen.tags.keys()
    assert [name for _, name, _ in seen.attributes if name.startswith("on")] == []
    assert {link[0] for link in seen.values("href", "xlink:href")} == {"#"}
    assert seen.text.count("<script>alert(1)</script>") > 20
    assert "{{7*7}}" in seen.text
    assert seen.tags["svg"] == 8  # each figure was drawn: no text is a formula
    assert {"\u202e", "\u202c", "\x1b"} & set(hostile) == set()


def test_what_the_gates_alone_said_stands_with_every_gate(seen):
    (row,) = (row for row in seen.rows if "4 of 16 (SDPA 16)" in row)
    for said in ("sink_window", "KILL needle", "0.9912", "not run", "0.61 [0.50, 0.72]"):
        assert said in " ".join(row.split())
    assert "Results that this version cannot read" not in seen.text


def test_a_verdict_that_was_not_earned_is_not_shown(tmp_path):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    random = {"environment": {**ledgers.GPU, "weights": "random"}}
    ledger.append(Kind.RESULT, ledgers.candidate("r1", "on_random_weights", 2.0, **random))
    ledger.append(Kind.RESULT, ledgers.candidate("r1", "rotary", 2.0, family="replacement"))
    passed = {"quality": "PASS", "quality_reason": "", "next_step": ""}
    ledger.append(Kind.RESULT, ledgers.appraisal("q1", "other", verdict=passed, **random))
    rows = [" ".join(row.split()) for row in Seen(of(ledger)).rows]
    for arm, reason in (
        ("on_random_weights", "random-weights"),
        ("rotary", "replacement"),
        ("other", "random-weights"),
    ):
        of_arm = " ".join(row for row in rows if row.startswith(arm))
        assert f"NOT_EVALUATED {reason}" in of_arm
        assert "PASS" not in of_arm


def test_a_speed_never_stands_without_the_quality_verdict(seen):
    words = ("PASS", "KILL", "MARGINAL", "NOT_EVALUATED")
    measured = [row for row in seen.rows if "source's figure" not in row and "rule:" not in row]
    rows = [row for row in measured if re.search(r"\d\.\d{3}×", row)]
    assert len(rows) == 10
    assert [row for row in rows if not any(word in row for word in words)] == []
    in_figures = re.findall(r"\d\.\d{3}× \[[^\n]*", seen.text)
    assert len(in_figures) == 10
    assert [text for text in in_figures if "quality " not in text] == []


def test_times_of_a_gpu_are_shown_with_what_they_rest_on_and_times_of_a_cpu_are_not(tmp_path):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    for where, ms in ((ledgers.GPU, 33.333), (ledgers.CPU, 77.777)):
        here = {"cell": ledgers.cell(device=where["device"]), "environment": where}
        floor = {"read_bytes": 9, "bandwidth_gb_s": ms, "ms": ms}
        more = {"latency_ms": {"median": ms}, "floor": floor}
        ledger.append(Kind.RESULT, ledgers.result(where["device"], "sdpa", **here, **more))
        ledger.append(Kind.RESULT, ledgers.candidate(where["device"], "int8", 1.1, **here, **more))
    text = Seen(of(ledger)).text
    assert "33.333" in text
    assert "3 sessions, canonical protocol, NVIDIA L4" in text
    assert not re.search(r"77\.\d|\b78 GB", text)
    assert "ratios alone are shown" in text


def test_a_claim_stands_as_it_was_imported_with_its_figures_its_rule_and_what_was_seen(made, seen):
    row = " ".join(next(row for row in seen.rows if row.split()[:1] == ["DCR-18"]).split())
    body = made.imported.body
    for said in (
        body["claim"],
        "rule: order effect: one method's time",
        body["rule"]["where"],
        "holds if about 1.09 ratio of times within 2 %",
        f"reach {body['rule']['reach']}",
        "1.048 speed-up about 1.09 ratio of times",
        "SUPPORTED bound-held",
        made.supported.id[:12],
    ):
        assert said in row
    assert row.index(body["source_figure"]) < row.index(body["rederived"])
    assert "what a protocol says" not in row
    assert "{'" not in seen.text  # no object of the program


def test_a_claim_that_was_taken_back_neither_counts_nor_asks_for_anything(tmp_path):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    decided = {"claim": "SUPPORTED", "claim_reason": "bound-held", "next_step": "cite it"}
    for _ in range(2):
        body = ledgers.claim("DCR-18", decided, protocol="ab" * 32)
        record = ledger.append(Kind.CLAIM, body)
        retract(ledger, record.id, Reason.MEASUREMENT_ERROR, "it throttled")
    row = next(row for row in Seen(of(ledger)).rows if row.split()[:1] == ["DCR-18"])
    assert "taken back" in row
    assert not {"counts", "next", "cite"} & set(row.split())


@pytest.mark.filterwarnings("error")
def test_contexts_of_a_cpu_without_intervals_are_not_drawn_and_that_is_said(tmp_path):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    for context in (512, 1024):
        here = {
            "cell": ledgers.cell(device="a CPU", context=context),
            "environment": ledgers.CPU,
        }
        ledger.append(Kind.RESULT, ledgers.result("r", "sdpa", **here))
        body = ledgers.candidate("r", "int8", 1.1, **here)
        ledger.append(Kind.RESULT, {name: body[name] for name in body if name != "ratio"})
    names = {drawing.name for drawing in Contents(Reading.of(ledger)).drawings()}
    assert not any(name.startswith("context") for name in names)
    assert "There is nothing to draw: of a CPU ratios alone" in Seen(of(ledger)).text


def test_a_models_file_is_shown_by_its_name_and_is_one_cell_wherever_it_lay(tmp_path):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    environment = {**ledgers.GPU, "model_identity": "ab" * 32}
    for run, model in (("r1", "/tmp/some/m.gguf"), ("r2", "m.gguf")):
        here = {"cell": ledgers.cell(model=model), "environment": environment}
        ledger.append(Kind.RESULT, ledgers.candidate(run, "int8", 1.1, **here))
    text = Seen(of(ledger)).text
    assert "1 other run of this cell: r1" in " ".join(text.split())
    assert "/tmp/some" not in text


@pytest.mark.parametrize(
    ("contexts", "named"),
    [
        ([512, 600, 8192], [512, 8192]),
        ([1024, 2048, 4096], [1024, 2048, 4096]),
        ([8192], [8192]),
    ],
)
def test_contexts_are_named_where_there_is_room_for_their_names(contexts, named):
    assert apart(contexts) == named


def test_runs_on_a_cpu_have_an_axis_of_their_own(tmp_path):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    wide = ledgers.statistics(aa=ledgers.interval(1, 0.6), position_effect=ledgers.interval(1, 0.8))
    for where, more in ((ledgers.GPU, {}), (ledgers.CPU, {"statistics": wide})):
        here = {"cell": ledgers.cell(device=where["device"]), "environment": where}
        run = where["device"]
        ledger.append(Kind.RESULT, ledgers.candidate(run, "int8", 1.1, **here, **more))
    for drawing in Contents(Reading.of(ledger)).drawings():
        if drawing.name in ("a-against-a", "order"):
            figure = Figure()
            drawing.draw(figure)
            columns = 1 if drawing.name == "a-against-a" else 2
            widths = [axes.get_xlim()[1] for axes in figure.axes[::columns]]
            assert len(widths) == 2
            assert widths[0] < 1 < 50 < widths[1]  # %, a GPU's and then a CPU's


def test_what_no_longer_counts_is_marked_and_what_is_doubted_says_so(made, seen):
    row = next(row for row in seen.rows if "broken_method" in row and "3.000×" in row)
    assert "retracted" in row
    doubted = next(row for row in seen.rows if made.concern.id[:12] in row)
    assert "int8_kv" in doubted
    for said in ("broken-method", "it read no token at all", "the clock was not locked"):
        assert said in seen.text
    tainted = seen.text[seen.text.index("Tainted by it") :]
    assert made.tainted_claim.id[:12] in tainted[:200]


@pytest.mark.parametrize(
    ("run", "ended"),
    [
        ("r1", "NVIDIA L4 1 1 – – –"),
        ("r2", "a CPU 1 – 1 – – session 0 aborted"),
        ("r3", "NVIDIA L4 1 – – – 1 session 0 abandoned"),
    ],
)
def test_every_session_that_was_opened_is_counted_by_how_it_ended(seen, run, ended):
    rows = [" ".join(row.split()) for row in seen.rows]
    assert [row for row in rows if row.startswith(run) and ended in row] != []


def test_a_registration_is_prospective_only_before_the_sessions_that_rest_on_it(tmp_path, seen):
    assert "prospective" in seen.text
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    ledger.append(Kind.SESSION, ledgers.opened("late"))
    after = ledger.append(Kind.REGISTRATION, {"protocol": "p.toml", "title": "too late"})
    ledger.append(Kind.RESULT, ledgers.result("late", "sdpa"), cites=[after.id])
    ledger.append(Kind.REGISTRATION, {"protocol": "q.toml", "title": "for later"})
    text = Seen(of(ledger)).text
    assert "retrospective too late" in text
    assert "not used yet for later" in text


@pytest.mark.parametrize(
    ("registered_first", "registered_hour", "standing"),
    [
        (True, 1, "prospective"),
        (True, 3, "retrospective"),  # merged before them, written after
        (False, 1, "retrospective"),  # a clock that was wrong
    ],
)
def test_a_registration_precedes_by_its_place_and_by_its_time(
    tmp_path, registered_first, registered_hour, standing
):
    hours = [registered_hour, 2] if registered_first else [2, registered_hour]
    moments = (ledgers.START + timedelta(hours=hour) for hour in (*hours, 4))
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: next(moments))
    if not registered_first:
        ledger.append(Kind.SESSION, ledgers.opened("r"))
    record = ledger.append(Kind.REGISTRATION, {"protocol": "p.toml"})
    if registered_first:
        ledger.append(Kind.SESSION, ledgers.opened("r"), cites=[record.id])
    ledger.append(Kind.RESULT, ledgers.result("r", "sdpa"), cites=[record.id])
    [found] = registrations(Reading.of(ledger))
    assert found.standing == standing


def test_a_commit_is_shortened_with_what_says_that_it_was_not_quite_that_one(tmp_path, monkeypatch):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    commits = ("ab" * 20, f"{'ab' * 20}-dirty", f"files:{'cd' * 32}", "")
    for number, commit in enumerate(commits):
        monkeypatch.setattr("attnbench.ledger.book.source_commit", lambda commit=commit: commit)
        ledger.append(Kind.SESSION, ledgers.opened("r", number))
    [found] = environments(Reading.of(ledger))
    short = ("ab" * 6, f"{'ab' * 6}-dirty", f"files:{'cd' * 6}", "unknown")
    assert found.commits == short
    assert ", ".join(short) in Seen(of(ledger)).text


def test_a_long_record_is_cut_off_with_the_command_that_prints_it(tmp_path):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    record = ledger.append(Kind.CLAIM, ledgers.claim("A-1", note="x" * 2 * LONGEST_JSON))
    html = of(ledger)
    assert "x" * (LONGEST_JSON + 1) not in html
    assert f"attnbench ledger show {record.id[:12]}" in html


def test_a_record_in_the_page_is_its_line_in_the_ledger(made, html):
    [shown] = re.findall(rf'<pre id="r-{made.faster.id}">(.*?)</pre>', html)
    lines = made.ledger.path.read_text(encoding="utf-8").splitlines()
    assert unescape(shown) in lines


@pytest.mark.parametrize("body", [{"run": "r"}, {"calibration": "instrument", "run": "r"}])
def test_a_result_that_cannot_be_read_is_listed_with_what_it_lacks(tmp_path, body):
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    record = ledger.append(Kind.RESULT, body)
    text = Seen(of(ledger)).text
    assert f"{record.id[:12]}: Object missing required field" in text
    assert "No arm has a result yet" in text


def test_an_empty_ledger_and_one_without_results_give_pages_that_say_so(tmp_path):
    (tmp_path / "ledger.jsonl").touch()
    assert "holds no record yet" in of(Ledger(tmp_path / "ledger.jsonl"))
    ledger = ledgers.ledger_at(tmp_path / "other.jsonl")
    ledger.append(Kind.SESSION, ledgers.opened("r"))
    text = Seen(of(ledger)).text
    for said in (
        "No claim is recorded",
        "No arm has a result yet, though 1 session",
        "1 abandoned",
    ):
        assert said in text


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_has_contrast_enough_to_be_read(scheme):
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in (scheme["ground"], scheme["raised"]):
        for name in scheme.keys() - {"ground", "raised", "line"}:
            pair = sorted((luminance(ground), luminance(scheme[name])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, name


def test_template_and_style_lie_in_the_package():
    import attnbench.report.page as package

    folder = Path(package.__file__).parent
    assert {"report.html.j2", "report.css"} <= {path.name for path in folder.iterdir()}
