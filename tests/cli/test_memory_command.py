"""`attnbench memory` as a user runs it."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--limit", "8GiB"], 2, "goes with --fit"),
        (["--fit", "--ctx", "100"], 2, "--fit finds the context"),
        (["--fit", "--limit", "much"], 2, "is no size"),
        (["--ctx", "a,b"], 2, "no list of whole numbers"),
        (["--fit", "--limit", "99999GiB"], 1, "are free on"),
        (["--fit", "--limit", "1MiB"], 1, "the weights of embedded"),
        (["--method", "int8_kw"], 2, "did you mean int8_kv?"),
        (["--model", "embeded"], 2, "did you mean embedded?"),
    ],
)
def test_bad_input_is_an_error_with_a_way_out_and_nothing_is_recorded(
    attnbench, here, arguments, code, said
):
    done = attnbench("memory", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert list(here.iterdir()) == []


def test_a_plan_runs_nothing(attnbench, here):
    arguments = ("memory", "--plan", "--fit", "--limit", "1GiB", "--batch", "1,4")
    assert "limit for weights and caches" in attnbench(*arguments).out
    data = json.loads(attnbench(*arguments, "--json").out)
    assert [place["batch"] for place in data["places"]] == [1, 4]
    assert list(here.iterdir()) == []


def test_a_run_prints_figures_and_records_them(attnbench, here):
    done = attnbench("memory", "--ctx", "128", "--method", "int8_kv", "--json")
    assert done.code == 0
    data = json.loads(done.out)
    (place,) = data["places"]
    assert place["figures"]["sdpa"]["reachable_bytes"] == 6 * 2 * 2 * 129 * 64 * 4
    assert place["verdicts"] == {"int8_kv,impl=torch": place["verdicts"]["int8_kv,impl=torch"]}
    log = attnbench("ledger", "log")
    assert "memory: cell" in log.out
    assert attnbench("ledger", "verify").code == 0
