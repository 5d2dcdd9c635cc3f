"""`attnbench ledger` reinstate, repair, diff --fail-if-slower, export and verify --recompute."""

from __future__ import annotations

import csv
import io
import json
import os
import re

import jsonschema
import msgspec
import pytest

from attnbench.cli.ledger_export import schema_of_records
from attnbench.ledger import Kind, Ledger, Reason, retract, verify
from attnbench.measure.conductor import Conductor
from attnbench.measure.verdicts import arm_results
from tests.ledger.samples import record_run
from tests.ledger.test_own_ledger import OWN
from tests.measure.fake_workers import FakeWorkers, NoteTaker
from tests.measure.planned import plan

INTERVAL = {"level": 0.95}


@pytest.fixture
def ledger(tmp_path, monkeypatch) -> Ledger:
    path = tmp_path / "ledger" / "ledger.jsonl"
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(path))
    return Ledger(path)


@pytest.fixture
def two_runs(ledger) -> Ledger:
    record_run(ledger, "aa11", ratio={"estimate": 1.2, "low": 1.19, "high": 1.21, **INTERVAL})
    record_run(ledger, "bb22", ratio={"estimate": 1.0, "low": 0.99, "high": 1.01, **INTERVAL})
    return ledger


def test_reinstate_brings_back_what_was_retracted_and_says_so(attnbench, two_runs):
    session = list(two_runs.records())[1]
    retraction = retract(two_runs, session.id, Reason.ENVIRONMENT, "hot")
    done = attnbench("ledger", "reinstate", retraction.id[:12], "--note", "it was the other room")
    assert done.code == 0
    assert f"{session.id[:12]} is reinstated by" in done.out
    assert "records that derive from it: 1" in done.out
    assert json.loads(attnbench("ledger", "log", "--tainted", "--json").out) == []
    again = attnbench("ledger", "reinstate", session.id, "--note", "again")
    assert again.code == 2
    assert "not retracted" in again.err


def test_repair_says_what_it_would_do_and_does_it_when_told(attnbench, two_runs):
    whole = attnbench("ledger", "repair")
    assert whole.code == 0
    assert "nothing to repair" in whole.out
    os.truncate(two_runs.path, two_runs.path.stat().st_size - 100)
    torn = two_runs.path.read_bytes()
    plan = json.loads(attnbench("ledger", "repair", "--json").out)
    assert (plan["needed"], plan["applied"], plan["line"]) == (True, False, 6)
    assert "--apply does it" in attnbench("ledger", "repair").out
    assert two_runs.path.read_bytes() == torn
    done = attnbench("ledger", "repair", "--apply")
    assert f"moved to {plan['quarantine']}" in done.out
    assert verify(two_runs.path).is_sound
    assert "torn-tail" in attnbench("ledger", "log", "--kind", "repair").out


def test_repair_of_anything_else_leaves_with_13(attnbench, two_runs):
    two_runs.path.write_bytes(two_runs.path.read_bytes().replace(b"aa11", b"aa12", 1))
    refused = attnbench("ledger", "repair", "--apply")
    assert refused.code == 13
    assert "line 1" in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("aa11", "bb22", "--fail-if-slower", "2%"), 10, "more than 2 % slower: int8_kv"),
        (("aa11", "bb22", "--fail-if-slower", "25"), 0, "No candidate is more than 25 % slower."),
        (("aa11", "bb22", "--fail-if-slower", "20%"), 11, "cannot be told: int8_kv"),
        (("bb22", "aa11", "--fail-if-slower", "2%"), 0, "No candidate"),
        (("aa11", "bb22"), 0, "Intervals take"),
        (("aa11", "--fail-if-slower", "2%"), 11, "no earlier run"),
    ],
)
def test_diff_tells_a_build_server_whether_something_became_slower(
    attnbench, two_runs, arguments, code, said
):
    outcome = attnbench("ledger", "diff", *arguments)
    assert outcome.code == code
    assert said in outcome.out


@pytest.mark.parametrize("limit", ["fast", "-1%", "200%", "nan"])
def test_a_limit_that_is_no_percentage_is_a_usage_error(attnbench, two_runs, limit):
    outcome = attnbench("ledger", "diff", "--fail-if-slower", limit)
    assert outcome.code == 2
    assert "no percentage" in outcome.err


def test_the_limit_is_in_the_json_too(attnbench, two_runs):
    outcome = attnbench("ledger", "diff", "aa11", "bb22", "--fail-if-slower", "2%", "--json")
    assert json.loads(outcome.out)["limit"]["slower"]
    assert "limit" not in json.loads(attnbench("ledger", "diff", "aa11", "bb22", "--json").out)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_export_has_a_row_for_each_record_and_a_column_for_each_member(attnbench, two_runs):
    two_runs.append(Kind.CLAIM, {"text": 'commas, "quotes"\nlines', "list": [1, {"a": 2}]})
    every = rows(attnbench("ledger", "export").out)
    assert [row["seq"] for row in every] == ["1", "2", "3", "4", "5", "6", "7"]
    assert every[2]["body.ratio.estimate"] == "1.2"
    assert every[2]["body.cell.context"] == "8192"
    assert every[2]["cites"] == every[1]["id"]
    assert every[6]["body.text"] == 'commas, "quotes"\nlines'
    assert json.loads(every[6]["body.list"]) == [1, {"a": 2}]
    assert every[6]["body.ratio.estimate"] == ""
    results = rows(attnbench("ledger", "export", "--kind", "result", "--run", "bb").out)
    assert [row["body.run"] for row in results] == ["bb22"]
    assert "body.text" not in results[0]


def test_export_knows_the_standing_and_writes_a_file(attnbench, two_runs, tmp_path):
    retract(two_runs, list(two_runs.records())[1].id, Reason.ENVIRONMENT, "hot")
    out = tmp_path / "results.csv"
    assert attnbench("ledger", "export", "--kind", "result", "--out", str(out)).code == 0
    assert [row["standing"] for row in rows(out.read_text())] == ["tainted", "live"]
    nowhere = attnbench("ledger", "export", "--out", str(tmp_path / "no" / "folder.csv"))
    assert nowhere.code == 1


def test_export_to_parquet_keeps_types(attnbench, two_runs, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    two_runs.append(Kind.CLAIM, {"count": 3, "true": True, "mixed": 1})
    two_runs.append(Kind.CLAIM, {"count": 4, "true": False, "mixed": "a"})
    out = tmp_path / "records.parquet"
    done = attnbench("ledger", "export", "--format", "parquet", "--out", str(out))
    assert done.code == 0
    table = parquet.read_table(out)
    types = {field.name.removeprefix("body."): str(field.type) for field in table.schema}
    assert (types["count"], types["true"], types["mixed"]) == ("int64", "bool", "string")
    assert (types["seq"], types["ratio.estimate"]) == ("int64", "double")
    assert table.column("body.count").to_pylist()[-2:] == [3, 4]
    assert table.column("body.mixed").to_pylist()[-2:] == ["1", "a"]
    assert table.column("body.ratio.estimate").to_pylist()[2] == 1.2


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("option", ["-o", "--out", "--output"])
def test_export_says_in_json_what_it_wrote(attnbench, two_runs, tmp_path, form, option):
    pytest.importorskip("pyarrow.parquet")
    out = tmp_path / f"results.{form}"
    export = ("ledger", "export", "--kind", "result", "--format", form, "--json")
    said = json.loads(attnbench(*export, option, str(out)).out)
    assert (said["written"], said["format"], said["rows"]) == (str(out), form, 2)
    assert said["columns"][0] == "seq"
    assert "body.ratio.estimate" in said["columns"]
    assert attnbench(*export).code == 2  # standard output is taken


def test_parquet_without_pyarrow_or_a_file_is_an_error_that_says_what_to_do(
    attnbench, two_runs, tmp_path, monkeypatch
):
    import sys

    to_nowhere = attnbench("ledger", "export", "--format", "parquet")
    assert to_nowhere.code == 2
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused = attnbench("ledger", "export", "--format", "parquet", "--out", str(tmp_path / "x"))
    assert refused.code == 1
    assert "attnbench[parquet]" in refused.err


def test_every_record_of_this_repository_fits_the_exported_schema(attnbench):
    schema = json.loads(attnbench("ledger", "export", "--format", "jsonschema").out)
    assert schema == json.loads(json.dumps(schema_of_records()))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    by_kind = {
        kind: jsonschema.Draft202012Validator(
            {"$ref": f"#/$defs/{kind.value}-record", "$defs": schema["$defs"]}
        )
        for kind in Kind
    }
    lines = [json.loads(line) for line in OWN.read_text().splitlines()]
    for line in lines:
        assert not list(by_kind[Kind(line["kind"])].iter_errors(line)), line["seq"]
    assert not list(validator.iter_errors(lines[0]))


@pytest.mark.parametrize(
    "harm",
    [{"seq": 0}, {"kind": "prophecy"}, {"extra": 1}, {"body": {}}, {"hash": "x"}, {"schema": 2}],
)
def test_a_line_that_is_none_does_not_fit_the_schema(harm):
    validator = jsonschema.Draft202012Validator(schema_of_records())
    line = json.loads(OWN.read_text().splitlines()[0])
    assert list(validator.iter_errors({**line, **harm}))


def test_what_attnbench_says_of_records_fits_the_schema(attnbench, two_runs, tmp_path):
    first, session = list(two_runs.records())[:2]
    retract(two_runs, session.id, Reason.ENVIRONMENT, "hot", evidence="the log")
    attnbench("ledger", "reinstate", session.id, "--note", "cool")
    os.truncate(two_runs.path, two_runs.path.stat().st_size - 1)
    attnbench("ledger", "repair", "--apply")
    two_runs.append(Kind.CORRECTION, {"target": first.id, "note": "a word"})
    os.truncate(two_runs.path, two_runs.path.stat().st_size - 9)
    attnbench("ledger", "repair", "--apply")
    other = Ledger(tmp_path / "other" / "ledger.jsonl")
    other.append(Kind.CLAIM, {"claim": "x"})
    attnbench("ledger", "merge", str(other.path))
    validator = jsonschema.Draft202012Validator(schema_of_records())
    lines = [json.loads(line) for line in two_runs.path.read_text().splitlines()]
    said = [line for line in lines if line["kind"] not in ("session", "result")]
    assert {line["kind"] for line in said} == {
        "retraction", "reinstatement", "repair", "claim", "checkpoint",
    }  # fmt: skip
    for line in said:
        assert not list(validator.iter_errors(line)), line


@pytest.fixture
def measured(ledger) -> Ledger:
    """A decode run with workers that answer at once, and its results."""
    evidence = Conductor(plan(), ledger, NoteTaker(), run=FakeWorkers()).conduct()
    for result in arm_results(evidence):
        ledger.append(Kind.RESULT, msgspec.to_builtins(result), cites=evidence.cites)
    return ledger


def test_verify_recompute_lists_what_is_not_as_recorded(attnbench, measured):
    honest = attnbench("ledger", "verify", "--recompute")
    assert honest.code == 0
    *_, result = results = [r for r in measured.records() if r.kind is Kind.RESULT]
    assert f"{len(results)} results built again from their samples" in honest.out
    assert re.search(rf"^ +{len(results)}  the same to the byte$", honest.out, re.MULTILINE)
    forged = measured.append(
        Kind.RESULT, {**result.body, "captured_share": 0.5}, cites=result.cites
    )
    told = attnbench("ledger", "verify", "--recompute")
    assert told.code in (11, 13)
    assert f"{forged.id[:12]} (record {forged.seq}, run {result.body['run']}" in told.out
    assert "  captured_share: 0.5 → " in told.out
    assert attnbench("ledger", "verify").code == 0
    data = json.loads(attnbench("ledger", "verify", "--recompute", "--json").out)
    assert data["recomputed"]["outcomes"]["differs"] == 1
    assert data["exit_code"] == told.code


def test_verify_recomputes_nothing_of_a_ledger_that_does_not_hold(attnbench, measured):
    measured.path.write_bytes(measured.path.read_bytes().replace(b"canonical", b"camonical", 1))
    told = attnbench("ledger", "verify", "--recompute")
    assert told.code == 13
    assert "Nothing was computed again" in told.out
