"""A protocol in words says what decides, whatever its quantity."""

from __future__ import annotations

import pytest

from attnbench.protocol.explain import explained
from tests.protocol.texts import ORDER, QUALITY, SPEED, file_of

CHANGES = [
    ("arms =", 'baseline = "sdpa"\narms ='),
    ("[publish]", '[schedule]\npreset = "sequential"\n[publish]'),
    ("[publish]", "[gates.norm-ratio]\nkill_above = 2.0\n[publish]"),
]


@pytest.mark.parametrize(
    ("text", "changes", "heading", "said"),
    [
        (SPEED, [], "claim", "the time of the baseline over that of int8_kv is at least 1.4."),
        (SPEED, [], "measured", "Baseline: the fastest exact arm of a pilot"),
        (SPEED, [], "schedule", "3 sessions, each a fresh process"),
        (SPEED, [], "control", "must be at least 1.1, or the run says nothing. It reads less."),
        (SPEED, [], "decided", "SUPPORTED where both 95 % intervals, of session means and"),
        (SPEED, CHANGES, "measured", "Baseline: sdpa, named here"),
        (SPEED, CHANGES, "schedule", "8 sessions, judged after 3, 5, 8, each"),
        (SPEED, CHANGES, "quality", "kills below 0.7 or above 2"),
        (ORDER, [], "claim", "is about 1.09, give or take 2 % of that. It is claimed of every GPU"),
        (ORDER, [], "control", "In randomised blocks the two must be equal within 1 %"),
        (ORDER, [], "quality", "Not judged."),
        (QUALITY, [], "claim", "the cosine of int8_kv's outputs with SDPA's, averaged"),
        (QUALITY, [], "measured", "sink_window,window=64, and exact attention computed in"),
        (QUALITY, [], "schedule", "Nothing is timed."),
        (QUALITY, [], "required", "must be at least 0.99, or the run says nothing. It attends to"),
        (QUALITY, [], "decided", "SUPPORTED where the 95 % interval, t over offsets, lies"),
        (QUALITY, [], "quality", "by the default bands; shown beside it"),
    ],
)  # fmt: skip
def test_each_part_is_said_in_words(text, changes, heading, said):
    assert said in dict(explained(file_of(text, *changes)))[heading]
