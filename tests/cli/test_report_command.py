from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench.ledger import Kind
from tests.report.ledgers import claim, ledger_at, made_up, opened


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a made-up ledger that the commands find."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(made_up(tmp_path / "ledger.jsonl").ledger.path))
    return tmp_path


def test_report_writes_what_is_asked_for_and_says_in_json_what_stands(attnbench, here):
    more = ("--figures", "figures", "--latex", "t/tables.tex", "--markdown", "t/tables.md")
    outcome = attnbench("report", *more, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    said = json.loads(outcome.out)
    assert said["written"][:3] == ["report.html", "t/tables.tex", "t/tables.md"]
    assert sorted(said["written"][3:]) == sorted(
        f"figures/{f.name}" for f in Path("figures").iterdir()
    )
    assert {Path(file).suffix for file in said["written"][3:]} == {".png", ".svg"}
    assert Path("report.html").read_text().startswith("<!doctype html>")
    assert r"\toprule" in Path("t/tables.tex").read_text()
    assert "| --- |" in Path("t/tables.md").read_text()
    assert said["standing"] == {"live": 27, "retracted": 1, "tainted": 1}
    assert {claim["key"]: claim["verdict"] for claim in said["claims"]} == {
        "DCR-02": "INCONCLUSIVE",
        "DCR-18": "SUPPORTED",
        "SL-03": "taken back",
    }
    assert said["sessions"]["abandoned"] == 1


def test_report_says_in_a_few_lines_what_it_read_and_wrote(attnbench, tmp_path):
    ledger = ledger_at(tmp_path / "ledger.jsonl")
    ledger.append(Kind.CLAIM, claim("DCR-1"))
    ledger.append(Kind.RESULT, {"run": "of a form that nobody knows"})
    page = tmp_path / "page.html"
    outcome = attnbench("report", "--ledger", str(ledger.path), "-o", str(page))
    assert outcome.out.splitlines() == [
        "2 records: 0 results in 0 cells; claims: 1 INCONCLUSIVE.",
        "1 result cannot be read by this version; the page says why.",
        f"wrote {page}",
    ]
    assert page.exists()
    other = tmp_path / "other.html"
    assert attnbench("report", "--ledger", str(ledger.path), "--out", str(other)).code == 0
    assert other.read_text() == page.read_text()


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ((), 2),
        (("--last", "1"), 1),
        (("--last", "0"), 3),
        (("--run", "r1"), 1),
        (("--run", "r1", "--run", "r2", "--run", "r3"), 3),
        (("--since", "2026-01-01"), 3),
    ],
)
def test_of_a_long_ledger_the_last_runs_are_shown_unless_others_are_chosen(
    attnbench, tmp_path, monkeypatch, options, runs
):
    monkeypatch.setattr("attnbench.report.page.selection.LAST", 2)
    ledger = ledger_at(tmp_path / "ledger.jsonl")
    for run in ("r1", "r2", "r3"):
        ledger.append(Kind.SESSION, opened(run))
    report = ("report", "--ledger", str(ledger.path), "-o", str(tmp_path / "page.html"), *options)
    said = json.loads(attnbench(*report, "--json").out)
    assert said["runs"] == {"shown": runs, "of": 3}
    text = attnbench(*report).out
    assert (f"{runs} of 3 runs are shown; --run, --since and" in text) == (runs < 3)


def test_a_run_that_is_not_there_gives_no_page(attnbench, here):
    outcome = attnbench("report", "--run", "r9")
    assert outcome.code == 2
    assert "no run begins with 'r9'" in outcome.err
    assert not (here / "report.html").exists()


def test_a_broken_ledger_gives_no_page_and_code_13(attnbench, here):
    ledger = here / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("int8_kv", "int4_kv"))
    outcome = attnbench("report")
    assert outcome.code == 13
    assert "does not match" in outcome.err or "do not match" in outcome.err
    assert not (here / "report.html").exists()


def test_a_ledger_that_is_not_there_is_an_error_that_names_it(attnbench, here):
    outcome = attnbench("report", "--ledger", "nowhere.jsonl")
    assert outcome.code == 1
    assert "nowhere.jsonl" in outcome.err


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(attnbench, here):
    (here / "file").touch()
    (here / "empty.jsonl").touch()
    outcome = attnbench("report", "--ledger", "empty.jsonl", "-o", "file/report.html")
    assert outcome.code == 1
    assert "file/report.html cannot be written" in outcome.err


WITHOUT_FIGURES = """
import sys
sys.argv = ["attnbench", "report", "--ledger", "nowhere.jsonl"]
from attnbench.cli.main import main
try:
    main()
finally:
    print(sorted({"torch", "scipy", "matplotlib"} & sys.modules.keys()), file=sys.stderr)
"""


def test_report_needs_no_torch_and_draws_with_matplotlib_only_when_it_draws(tmp_path):
    command = [sys.executable, "-c", WITHOUT_FIGURES]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "[]"
