"""`attnbench calibrate` as a user runs it, on the embedded model, with good and bad input."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from attnbench.ledger import verify
from tests.cli.test_decode_command import Place, environment, phases

TINY = ("--ctx", "64", "--protocol", "quick")


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> tuple[Place, subprocess.CompletedProcess[str]]:
    """A place where a calibration of two sessions has ended."""
    place = Place(tmp_path_factory.mktemp("calibrated"))
    return place, place.run("calibrate", *TINY, "--sessions", "2")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    """A place without a run, for commands in this process."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return Place(tmp_path)


def run_of(done: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"^run ([0-9a-f]{12})$", done.stderr, re.MULTILINE)
    assert found is not None, done.stderr
    return found[1]


def test_a_calibration_prints_what_it_found_and_records_it(begun):
    place, done = begun
    assert done.returncode == 0, done.stderr
    for said in ("embedded · 64 tokens", "spread of a session's ratio", "+5%", "harness's own"):
        assert said in done.stdout
    assert "Traceback" not in done.stderr
    assert phases(place.ledger)[:6] == ["opened", "closed"] * 3
    assert verify(place.ledger.path).exit_code == 0


def test_it_goes_on_to_more_sessions_and_then_judges_a_run_of_three(begun):
    place, done = begun
    more = place.run("calibrate", "--resume", run_of(done)[:6], "--sessions", "3", "--json")
    assert more.returncode == 0, more.stderr
    result = json.loads(more.stdout)
    assert result["run"] == run_of(done)
    assert result["findings"]["sessions"] == 3
    verdicts = result["findings"]["sham_verdicts"]
    assert sum(verdicts.values()) == 1
    counted = sum(n for verdict, n in verdicts.items() if not verdict.startswith("VOID"))
    assert result["findings"].get("false_positives", {"trials": 0})["trials"] == counted
    levels = result["findings"]["levels"]
    asked = [level["asked"] for level in levels]
    assert asked == sorted(asked)
    assert len(asked) == 5
    assert all(level["waited_us"] > 0 for level in levels)
    assert 0 < result["findings"]["harness_share"] < 1
    assert phases(place.ledger).count("closed") == 4
    assert verify(place.ledger.path).exit_code == 0


def test_the_ledger_lists_and_shows_a_calibration(begun):
    place, _ = begun
    listed = place.run("ledger", "log", "--kind", "result")
    assert "calibration: instrument" in listed.stdout
    (record, *_) = (r for r in place.ledger.records() if r.kind == "result")
    shown = place.run("ledger", "show", record.id[:12])
    assert '"sham_verdicts"' in shown.stdout
    assert "cites" in shown.stdout
    refused = place.run("ledger", "diff", record.id[:12], record.id[:12])
    assert refused.returncode == 13 or refused.returncode == 2
    assert "is a calibration" in refused.stderr


def test_what_a_run_began_with_cannot_be_changed_when_it_goes_on(begun):
    place, done = begun
    refused = place.run("calibrate", "--resume", run_of(done), "--ctx", "128")
    assert refused.returncode == 2
    assert "has ctx 64, not 128" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--resume", "nosuch"], 2, "no calibration begins"),
        (["--sessions", "0"], 2, "--sessions is at least 1"),
        (["--protocol", "canonicl"], 2, "did you mean canonical?"),
        (["--scope", "layer"], 2, "layer"),
        (["--mode", "graph", "--device", "cpu"], 1, "needs a CUDA GPU"),
    ],
)
def test_bad_input_is_an_error_with_a_way_out_and_nothing_is_recorded(
    attnbench, place, arguments, code, said
):
    done = attnbench("calibrate", *arguments)
    assert done.code == code
    assert said in done.err
    assert not place.ledger.path.exists()


def test_a_plan_names_the_arms_and_runs_nothing(attnbench, place):
    shown = attnbench("calibrate", "--plan", "--ctx", "64")
    assert shown.code == 0
    assert "+0.2%" in shown.out
    assert "6 sessions" in shown.out
    data = json.loads(attnbench("calibrate", "--plan", "--ctx", "64", "--json").out)
    assert [arm["arm"] for arm in data["arms"]][:3] == ["A", "A#2", "S"]
    assert list(place.folder.iterdir()) == []


def test_help_names_exit_codes_and_shows_examples(attnbench):
    out = attnbench("calibrate", "--help").out
    assert "130" in out
    assert "attnbench calibrate --resume" in out
    assert "attnbench calibrate --order-effect" in out
