from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.report.ledgers import made_up


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a made-up ledger that the commands find."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(made_up(tmp_path / "ledger.jsonl").ledger.path))
    return tmp_path


def test_report_writes_the_page_and_everything_that_is_asked_for(attnbench, here):
    outcome = attnbench(
        "report", "--figures", "figures", "--latex", "t/tables.tex", "--markdown", "t/tables.md"
    )
    assert outcome.code == 0
    assert outcome.err == ""
    assert "wrote report.html" in outcome.out
    assert "28 records: 13 results in 3 cells" in outcome.out
    files = sorted(path.name for path in (here / "figures").iterdir())
    assert [name for name in files if name.startswith("context-")] != []
    assert len(files) == 16
    assert (here / "report.html").read_text().startswith("<!doctype html>")
    assert r"\toprule" in (here / "t/tables.tex").read_text()
    assert "| --- |" in (here / "t/tables.md").read_text()


def test_report_says_in_json_what_it_wrote_and_what_stands(attnbench, here):
    said = json.loads(attnbench("report", "-o", "page.html", "--json").out)
    assert said["written"] == ["page.html"]
    assert said["standing"] == {"live": 26, "retracted": 1, "tainted": 1}
    assert {claim["key"]: claim["verdict"] for claim in said["claims"]} == {
        "DCR-2": "no verdict",
        "DCR-18": "SUPPORTED",
        "SL-3": "taken back",
    }
    assert said["sessions"]["abandoned"] == 1


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
