from __future__ import annotations

import json
import re

import pytest

from attnbench.ledger import Kind, Ledger, Reason, retract, verify
from tests.ledger.samples import cell, record_run, result_body, session_body


@pytest.fixture
def ledger(tmp_path, monkeypatch) -> Ledger:
    """Two runs of one cell, a run of another, a session that nobody closed."""
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(path))
    ledger = Ledger(path)
    record_run(ledger, "aa11")
    record_run(ledger, "bb22", verdict={"latency": "VOID", "latency_reason": "throttled"})
    ledger.append(Kind.RESULT, result_body("cc33", arm="sink_window", cell=cell(context=512)))
    ledger.append(Kind.SESSION, session_body("dd44", "opened"))
    return ledger


def listed(outcome) -> list[dict]:
    assert outcome.code == 0
    return json.loads(outcome.out)


def test_log_prints_one_aligned_line_a_record_and_cuts_nothing_when_piped(attnbench, ledger):
    outcome = attnbench("ledger", "log")
    header, *rows = outcome.out.splitlines()
    assert len(rows) == len(list(ledger.records()))
    verdicts = header.index("verdict")
    assert rows[2][verdicts:].split("  ")[0] == "FASTER / PASS"
    assert rows[5][verdicts:].split("  ")[0] == "VOID (throttled)"
    assert "embedded · 8192 tokens · batch 4 · bfloat16 · step · graph · cpu" in rows[0]
    assert "1.200× [1.100, 1.300]" in rows[2]
    assert rows[-1].endswith("abandoned")


def test_log_and_diff_tell_the_baselines_second_arm_from_its_first(attnbench, ledger):
    for run in ("e" * 12, "f" * 12):
        record_run(ledger, run, arm="sdpa", method="sdpa")
        record_run(ledger, run, arm="sdpa#2", method="sdpa")
    log = attnbench("ledger", "log", "--run", "e" * 12, "--kind", "result").out.splitlines()[1:]
    assert ["sdpa (A′)" in line for line in log] == [False, True]
    diff = attnbench("ledger", "diff", "e" * 12, "f" * 12)
    assert diff.out.count("sdpa (A′)") == 1


@pytest.mark.parametrize(
    ("filters", "seqs"),
    [
        ([], [1, 2, 3, 4, 5, 6, 7, 8]),
        (["--kind", "result"], [3, 6, 7]),
        (["--cell", "context=512"], [7]),
        (["--cell", "text=8192 BATCH=4 step", "--kind", "result"], [3, 6]),
        (["--cell", "context=8192", "--method", "T8_K", "--verdict", "faster"], [3]),
        (["--method", "t8_kv,IMPL=triton", "--run", "aa11"], [3]),
        (["--method", "2.13"], []),
        (["--cell", "GRAPH context=8192", "--kind", "result"], [3, 6]),
        (["--method", "sink"], [7]),
        (["--verdict", "void"], [6]),
        (["--run", "bb"], [4, 5, 6]),
        (["--since", "2999-01-01"], []),
        (["--since", "2000-01-01T00:00+02:00", "--run", "dd"], [8]),
        (["--tainted"], []),
    ],
)
def test_log_filters(attnbench, ledger, filters, seqs):
    records = listed(attnbench("ledger", "log", "--json", *filters))
    assert [record["seq"] for record in records] == seqs


def test_log_lists_what_was_tainted_with_its_standing(attnbench, ledger):
    session = list(ledger.records())[1]
    retract(ledger, session.id, Reason.ENVIRONMENT, "hot")
    records = listed(attnbench("ledger", "log", "--json", "--tainted"))
    assert [record["standing"] for record in records] == ["retracted", "tainted"]


def test_log_lists_records_whose_verdict_or_cell_is_a_word(attnbench, ledger):
    ledger.append(Kind.CLAIM, {"claim": "all is caught", "verdict": "SUPPORTED", "cell": "a cell"})
    assert [r["seq"] for r in listed(attnbench("ledger", "log", "--json"))] == [*range(1, 10)]
    found = listed(attnbench("ledger", "log", "--json", "--verdict", "supported"))
    assert [record["seq"] for record in found] == [9]


@pytest.mark.parametrize(
    ("filter_", "said"),
    [
        (("--verdict", "fastr"), "no verdict is called 'fastr'; did you mean FASTER?"),
        (("--cell", "step contxt=4"), "is called 'contxt'; did you mean context?"),
    ],
)
def test_log_suggests_the_nearest_word_for_one_that_no_record_could_have(
    attnbench, ledger, filter_, said
):
    outcome = attnbench("ledger", "log", *filter_)
    assert outcome.code == 2
    assert said in outcome.err


def test_log_of_an_unknown_run_names_the_nearest(attnbench, ledger):
    outcome = attnbench("ledger", "log", "--run", "aa12")
    assert outcome.code == 2
    assert "no run begins with 'aa12'" in outcome.err
    assert "Nearest: aa11" in outcome.err
    far = attnbench("ledger", "log", "--run", "nope", "--json")
    assert far.code == 2
    assert "`attnbench ledger log` lists the runs" in json.loads(far.out)["hint"]


def test_log_says_that_nothing_fits_of_a_run_that_is_there(attnbench, ledger):
    outcome = attnbench("ledger", "log", "--run", "aa", "--verdict", "slower")
    assert outcome.code == 0
    assert "No record of 8" in outcome.out


def test_log_shows_how_the_text_of_a_concern_or_claim_begins(attnbench, ledger):
    text = "the clock of this machine is read in microseconds " + "and so on " * 20
    ledger.append(Kind.CONCERN, {"concern": text})
    ledger.append(Kind.CLAIM, {"claim": "it is faster"})
    *_, concern, claim = attnbench("ledger", "log").out.splitlines()
    assert "the clock of this machine is read in microseconds and so" in concern
    assert " …" in concern
    assert "it is faster" in claim


def test_log_says_when_nothing_fits(attnbench, ledger):
    assert "No record of 8" in attnbench("ledger", "log", "--verdict", "slower").out


def test_a_date_that_is_none_is_a_usage_error(attnbench, ledger):
    outcome = attnbench("ledger", "log", "--since", "yesterday")
    assert outcome.code == 2
    assert "'yesterday' is no date" in outcome.err


def test_show_prints_a_record_with_all_that_bears_on_it(attnbench, ledger):
    records = list(ledger.records())
    session, result = records[1], records[2]
    retraction = retract(ledger, session.id, Reason.ENVIRONMENT, "the fan had stopped")
    out = attnbench("ledger", "show", session.id[:12]).out
    assert f"retracted by {retraction.id[:12]}" in out
    assert f"cited by\n  {result.id[:12]}  result" in out
    assert "environment · the fan had stopped" in out
    assert f"tainted by {session.id[:12]}" not in out
    (shown,) = [json.loads(attnbench("ledger", "show", result.id, "--json").out)]
    assert shown["standing"] == "tainted"
    assert shown["cites"] == [session.id]


def test_show_of_an_unknown_id_suggests_the_nearest(attnbench, ledger):
    id = next(ledger.records()).id
    mistyped = ("0" if id[3] != "0" else "1").join((id[:3], id[4:12]))
    outcome = attnbench("ledger", "show", mistyped)
    assert outcome.code == 2
    assert id[:12] in outcome.err


def test_diff_of_two_runs_shows_ratio_interval_verdicts_and_marks(attnbench, ledger):
    retract(ledger, list(ledger.records())[2].id, Reason.DUPLICATE, "of bb22")
    out = attnbench("ledger", "diff", "aa11", "bb22").out
    assert "latency FASTER → VOID" in out
    assert "before is retracted" in out
    assert re.search(r"\+0\.0%  -1\d\.\d% to \+1\d\.\d%", out)
    data = json.loads(attnbench("ledger", "diff", "aa11", "bb22", "--json").out)
    assert data["comparable"]
    (change,) = data["changes"]
    assert change["speedup_ratio"]["level"] == 0.95
    assert change["before"]["status"] == "retracted"


def test_bare_diff_compares_the_latest_run_with_the_one_before_it(attnbench, ledger):
    alone = attnbench("ledger", "diff")
    assert alone.code == 0
    assert "no earlier run" in alone.out
    assert not json.loads(attnbench("ledger", "diff", "--json").out)["comparable"]
    record_run(ledger, "ee55")
    out = attnbench("ledger", "diff").out
    assert "before: run bb22\nafter:  run ee55" in out


def test_diff_of_different_cells_says_not_comparable(attnbench, ledger):
    outcome = attnbench("ledger", "diff", "aa11", "cc33")
    assert outcome.code == 0
    assert "Not comparable: their cells differ: context 8192 → 512." in outcome.out


def test_diff_of_one_run_compares_it_with_the_one_before_it(attnbench, ledger):
    out = attnbench("ledger", "diff", "bb22").out
    assert "before: run aa11\nafter:  run bb22" in out
    assert "no earlier run" in attnbench("ledger", "diff", "aa11").out
    assert attnbench("ledger", "diff", "", "aa11").code == 2


def test_diff_of_a_ledger_with_itself_counts_what_did_not_change_and_lists_nothing(
    attnbench, ledger
):
    same = (str(ledger.path), str(ledger.path), "--fail-if-slower", "0.1%")
    outcome = attnbench("ledger", "diff", *same)
    assert outcome.code == 0
    assert outcome.out.splitlines()[2:] == [
        "",
        "2 results are the same record on both sides: unchanged.",
        "No candidate is more than 0.1 % slower.",
    ]
    assert json.loads(attnbench("ledger", "diff", *same, "--json").out)["unchanged"] == 2


def test_diff_names_each_verdict(attnbench, ledger):
    record_run(ledger, "ee55")
    record_run(ledger, "ff66")
    assert "latency FASTER, quality PASS" in attnbench("ledger", "diff", "ee55", "ff66").out


def test_verify_says_what_holds_and_leaves_with_13_when_broken(attnbench, ledger):
    sound = attnbench("ledger", "verify")
    assert sound.code == 0
    assert "8 records and 2 blobs hold" in sound.out
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b"aa11", b"aa12", 1))
    broken = attnbench("ledger", "verify", "--json")
    assert broken.code == 13
    assert json.loads(broken.out)["problems"][0]["line"] == 1
    assert attnbench("ledger", "log").code == 13


def test_a_checkpoint_that_was_printed_is_one_to_verify_against(attnbench, ledger, tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text(attnbench("ledger", "checkpoint").out)
    record_run(ledger, "ff66")
    agrees = attnbench("ledger", "verify", "--against", str(kept))
    assert agrees.code == 0
    assert "continues the checkpoint" in agrees.out
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:5]))
    assert attnbench("ledger", "verify").code == 0
    assert attnbench("ledger", "verify", "--against", str(kept)).code == 13


def test_retract_appends_and_tells_what_it_tainted(attnbench, ledger):
    session = list(ledger.records())[1]
    arguments = ["--reason", "wrong-baseline", "--note", "SDPA ran in math", "--evidence", "log"]
    outcome = attnbench("ledger", "retract", session.id[:12], *arguments)
    assert outcome.code == 0
    assert f"{session.id[:12]} is retracted" in outcome.out
    assert "records tainted by it: 1" in outcome.out
    assert list(ledger.records())[-1].body["reason"] == "wrong-baseline"
    assert verify(ledger.path).is_sound


def test_retract_wants_a_reason_from_the_list(attnbench, ledger):
    id = next(ledger.records()).id
    assert attnbench("ledger", "retract", id, "--reason", "dislike", "--note", "x").code == 2
    assert len(list(ledger.records())) == 8


def test_what_cannot_be_retracted_or_reinstated_is_refused_before_reason_and_note_are_asked_for(
    attnbench, ledger
):
    session = list(ledger.records())[1]
    for command in ("retract", "reinstate"):
        unknown = attnbench("ledger", command, "nope")
        assert (unknown.code, "no record begins with 'nope'" in unknown.err) == (2, True)
        assert "aa11 is a run, not a record" in attnbench("ledger", command, "aa11").err
    assert "is not retracted" in attnbench("ledger", "reinstate", session.id).err
    without = attnbench("ledger", "retract", session.id)
    assert (without.code, "--reason REASON: wrong-baseline" in without.err) == (2, True)
    asked = attnbench("ledger", "retract", session.id, "--reason", "environment")
    assert (asked.code, "Say in --note" in asked.err) == (2, True)
    assert len(list(ledger.records())) == 8


def test_a_ledger_that_is_not_there_is_an_environment_error(attnbench, tmp_path):
    outcome = attnbench("ledger", "log", "--ledger", str(tmp_path / "none.jsonl"))
    assert outcome.code == 1
    assert "attnbench decode" in outcome.err


def test_without_a_path_the_ledger_is_the_one_in_the_folder_ledger(
    attnbench, ledger, tmp_path, monkeypatch
):
    monkeypatch.delenv("ATTNBENCH_LEDGER")
    monkeypatch.chdir(tmp_path)
    Ledger(tmp_path / "ledger" / "ledger.jsonl").append(Kind.CLAIM, {"note": "here"})
    assert len(listed(attnbench("ledger", "log", "--json"))) == 1


def test_correct_and_concern_stand_beside_the_record_and_show_says_them(attnbench, ledger):
    result = next(r for r in ledger.records() if r.kind is Kind.RESULT)
    wrong = ["--member", "ratio.estimate", "--value", "1.5", "--reason", "a typo"]
    corrected = attnbench("ledger", "correct", result.id[:12], *wrong)
    assert corrected.code == 0
    assert "ratio.estimate 1.2 should be 1.5" in corrected.out
    doubted = attnbench("ledger", "concern", result.id, "--note", "it was hot", "--json")
    assert json.loads(doubted.out)["body"] == {"target": result.id, "concern": "it was hot"}
    out = attnbench("ledger", "show", result.id).out
    assert "correction" in out
    assert "concern" in out
    assert attnbench("ledger", "concern", result.id).code == 2
    assert attnbench("ledger", "correct", result.id, "--member", "x", "--value", "1").code == 2
    assert verify(ledger.path).is_sound
