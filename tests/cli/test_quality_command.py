"""`attnbench quality` as a user runs it, with workers that answer at once."""

from __future__ import annotations

import json

import pytest

from attnbench.ledger import Ledger
from attnbench.measure.appraising import Appraiser
from tests.measure.fake_workers import FakeWorkers


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(tmp_path / "ledger.jsonl"))
    return tmp_path


@pytest.fixture
def workers(monkeypatch) -> FakeWorkers:
    fake = FakeWorkers(cosine={"random_k": 0.3})
    monkeypatch.setitem(Appraiser.__init__.__kwdefaults__, "run", fake)
    return fake


def test_a_table_is_printed_recorded_and_mapped(attnbench, place, workers):
    done = attnbench("quality", "int8_kv", "--device", "cpu", "--maps", "heads.png")
    assert done.code == 0
    for said in (
        "embedded · 1024 tokens",
        "MARGINAL",
        "mean-cosine",
        "(floor)",
        "in ten-thousandths",
    ):
        assert said in done.out
    assert (place / "heads.png").stat().st_size > 1000
    log = attnbench("ledger", "log")
    assert "quality of int8_kv,impl=torch" in log.out
    assert "MARGINAL" in log.out


def test_a_killed_method_ends_with_ten_and_json_holds_everything(attnbench, place, workers):
    done = attnbench("quality", "tests.third_party.my_window:MyWindow", "--device", "cpu", "--json")
    assert done.code == 0
    workers.cosine["my_window"] = 0.3
    done = attnbench("quality", "tests.third_party.my_window:MyWindow", "--device", "cpu", "--json")
    assert done.code == 10
    arm, floor = json.loads(done.out)
    assert arm["verdict"]["quality"] == "KILL"
    assert arm["figures"]["cosine_mean"] == pytest.approx(0.3)
    assert floor["floor"]


def test_a_method_is_shown_beside_what_it_is_on_made_up_data(attnbench, place, workers):
    workers.contrast = {"made-up data": {"random_k": 0.99}, "random weights": {"random_k": 0.98}}
    done = attnbench("quality", "random_k", "--why-random", "--device", "cpu")
    assert done.code == 0
    (row,) = (line for line in done.out.splitlines() if line.strip().startswith("random_k  "))
    assert row.split()[2::3] == ["0.9900", "0.9800", "0.3000", "KILL"]
    assert "(floor)" not in done.out
    records = list(Ledger(place / "ledger.jsonl").records())
    assert [r.kind.value for r in records] == ["session", "session", "result"]
    assert records[-1].body["contrast"]["random weights"]["cosine_mean"] == pytest.approx(0.98)
    assert records[0].body["task"]["counts"]["contrast"]


def test_a_plan_runs_nothing(attnbench, place):
    done = attnbench("quality", "int8_kv", "--plan", "--device", "cpu", "--full")
    assert done.code == 0
    for said in ("10 offsets", "40 facts", "int8_kv", "the floor"):
        assert said in done.out
    as_json = json.loads(attnbench("quality", "--plan", "--device", "cpu", "--json").out)
    assert as_json["level"] == "quick"
    assert len(as_json["arms"]) == 3
    assert not (place / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("int8_kv", "--model", "preset:llama-3.2-1b"), "random weights"),
        (("tests.measure.odd_methods:Replacing",), "trained with"),
        (("int8_kv", "--text", "missing.txt"), "cannot read"),
        (("int8_kv", "--text", "short.txt"), "too few for"),
        (("int8_kv", "--text", "wikitext"), "datasets"),
        (("int8_kv", "--band", "top-1.pass_from=high"), "no number"),
        (("int8_kv", "--band", "top-1=0.9"), "no limit"),
        (("int8_kv", "--band", "top-2.pass_from=0.9"), "did you mean top-1"),
        (("int8_kv", "--ctx", "100000"), "beyond embedded"),
        (("int8_kv", "--seed", "-1"), "makes no sense"),
    ],
)
def test_bad_input_is_a_usage_error_that_says_what_to_do(
    attnbench, place, monkeypatch, arguments, said
):
    monkeypatch.setattr("importlib.util.find_spec", without_datasets)
    (place / "short.txt").write_text("far too short. " * 20)
    done = attnbench("quality", *arguments, "--device", "cpu")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert list(Ledger(place / "ledger.jsonl").path.parent.glob("*.jsonl")) == []


def test_a_gguf_file_that_is_a_vocabulary_alone_is_refused(attnbench, place):
    header = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)
    (place / "vocab.gguf").write_bytes(header)
    done = attnbench("quality", "int8_kv", "--model", "vocab.gguf")
    assert done.code == 1
    assert "vocabulary and no weights" in done.err


def without_datasets(name: str, package: str | None = None):
    import importlib.machinery

    if name == "datasets":
        return None
    return importlib.machinery.PathFinder.find_spec(name)
