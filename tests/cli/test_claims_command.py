from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attnbench.ledger import Kind, Ledger, merge
from attnbench.protocol.claim_log import import_claims
from tests.protocol.claims import CLAIMS, FOLDER

QUICK = ("CY-04", "CY-12", "SL-05")  # held, missed, out of reach


@pytest.fixture
def claims(attnbench, tmp_path, monkeypatch):
    """Run `attnbench claims ARGUMENTS` on the repository's claims and a ledger of its own."""
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(tmp_path / "ledger.jsonl"))

    def run(*arguments):
        return attnbench("claims", *arguments, "--claims", str(FOLDER))

    return run


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A ledger that holds every claim; to copy."""
    path = tmp_path_factory.mktemp("imported") / "ledger.jsonl"
    import_claims(Ledger(path), list(CLAIMS.values()))
    return path


@pytest.fixture
def ledger(claims, tmp_path, imported):
    return Ledger(Path(shutil.copy(imported, tmp_path / "ledger.jsonl")))


def test_without_a_ledger_every_claim_is_listed_as_not_imported(claims, tmp_path):
    outcome = claims("list", "--system", "aether")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "14 claims: 14 not imported"
    assert not (tmp_path / "ledger.jsonl").exists()


def test_import_says_what_it_did_and_the_second_time_that_it_did_nothing(claims, tmp_path):
    path, count = tmp_path / "ledger.jsonl", len(CLAIMS)
    assert claims("import").out == f"{count} claims added to {path}, 0 changed, 0 were there.\n"
    assert claims("import").out == f"0 claims added to {path}, 0 changed, {count} were there.\n"
    assert len(list(Ledger(path).records())) == count
    assert json.loads(claims("import", "--json").out) == {
        "added": [], "changed": [], "known": count,
    }  # fmt: skip


def test_adjudicate_judges_records_and_leaves_with_the_gravest_code(claims, ledger):
    outcome = claims("adjudicate", *QUICK)
    assert outcome.code == 10
    header, *rows = outcome.out.splitlines()
    said = {row.split()[0]: row.split()[1] for row in rows}
    assert said == {"CY-04": "SUPPORTED", "CY-12": "FALSIFIED", "SL-05": "UNTESTABLE"}
    assert header.split() == ["key", "verdict", "claimed", "seen", "record"]
    assert "at least 226 tokens" in rows[1]
    assert claims("adjudicate", "cy-04").code == 0
    assert claims("adjudicate", "SL-05").code == 11
    records = list(ledger.records())[-3:]
    assert [record.body["key"] for record in records] == list(QUICK)
    assert all(record.kind is Kind.CLAIM for record in records)


def test_list_shows_and_filters_by_the_verdict_so_far(claims, ledger):
    claims("adjudicate", *QUICK)
    chosen = json.loads(claims("list", "--verdict", "FALSIFIED", "--json").out)
    assert [claim["key"] for claim in chosen] == ["CY-12"]
    assert chosen[0]["verdict"] == "FALSIFIED"
    assert chosen[0]["decisions"][0]["observed"]["value"] == 125
    text = claims("list", "--kind", "source-code").out
    assert "SL-05  source-code  UNTESTABLE (source-only)" in text
    assert text.splitlines()[-1] == "3 claims: 2 INCONCLUSIVE, 1 UNTESTABLE"
    assert claims("list", "--verdict", "VOID").out.startswith("No claim of 137")


def test_show_prints_the_rule_and_every_verdict(claims, ledger):
    claims("adjudicate", "CY-12")
    text = claims("show", "CY-12").out
    for part in (
        "FALSIFIED (bound-missed)",
        "holds if      at least 226 tokens",
        "WRONG [NUM] (imported, not measured)",
        "kept distances: 125, 226, 376, 477",
        "reach         definition",
    ):
        assert part in text
    assert "this-gpu: NVIDIA GeForce RTX 4060 Ti" in claims("show", "DCR-24").out
    assert "has to pass every gate" in claims("show", "DCR-24").out
    assert json.loads(claims("show", "CY-12", "--json").out)["rule"]["bound"] == 226


def test_a_changed_file_is_seen_before_it_is_imported(claims, ledger, attnbench, tmp_path):
    folder = tmp_path / "claims"
    folder.mkdir()
    text = (FOLDER / "cy-sieve.toml").read_text()
    (folder / "cy-sieve.toml").write_text(text.replace("bound = 226", "bound = 100"))
    mine = ("--claims", str(folder))
    assert "rule changed: import it" in attnbench("claims", "list", *mine).out
    refused = attnbench("claims", "adjudicate", "CY-12", *mine)
    assert refused.code == 2
    assert "attnbench claims import" in refused.err
    assert "1 changed (CY-12)" in attnbench("claims", "import", *mine).out
    assert attnbench("claims", "adjudicate", "CY-12", *mine).code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("show", "DCR-99"), "Nearest: DCR-"),
        (("adjudicate", "DCR-01"), "arithmetic does not decide it"),
        (("list", "--system", "dcr2"), "There are aether, anchors"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(claims, ledger, arguments, complaint):
    outcome = claims(*arguments)
    assert outcome.code == 2
    assert complaint in outcome.err


def test_adjudicate_without_a_ledger_says_to_import_first(claims):
    outcome = claims("adjudicate", "CY-12")
    assert outcome.code == 2
    assert "attnbench claims import" in outcome.err


def test_a_folder_without_claims_is_refused(attnbench, tmp_path):
    outcome = attnbench("claims", "list", "--claims", str(tmp_path))
    assert outcome.code == 2
    assert "holds no file of claims" in outcome.err


def test_a_claim_about_recorded_results_is_judged_by_them_and_says_so(claims, ledger):
    assert "no live result of this ledger decides PR-01" in claims("adjudicate", "PR-01").err
    own = Path(__file__).parents[2] / "ledger"
    assert merge(ledger, own / "ledger.jsonl").added > 100
    claims("import")
    outcome = claims("adjudicate", "PR-01", "CY-04")
    assert outcome.code == 10
    (time, _) = outcome.out.splitlines()[1:]
    assert time.startswith("PR-01  FALSIFIED (bound-missed)  about 1.48 ms within 5 %")
    shown = claims("show", "PR-01").out
    assert "retrospective: by results that were in the ledger before it was decided" in shown
    assert "quantity step-time, arms sdpa, context 32768" in shown
    assert "nothing that attnbench measures yet" in claims("show", "DCR-01").out
    assert "decided by" not in claims("show", "CY-04").out
