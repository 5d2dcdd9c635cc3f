"""`attnbench quality --train` as a user runs it, with models of a few hundred weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from attnbench.ledger import Ledger
from attnbench.quality import scratch_training
from attnbench.quality.scratch_recipe import PRESETS
from tests.quality.test_scratch import TINY

ARMS = ("cy_bias,mode=nested", "--baseline", "alibi", "--baseline", "nope")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(tmp_path / "ledger.jsonl"))
    monkeypatch.setitem(PRESETS, "smoke", replace(TINY, steps=6, held_out_bytes=2000))
    (tmp_path / "text.txt").write_text("the cat sat on a mat. " * 500)
    return tmp_path


@pytest.fixture
def trains(attnbench, place):
    """Run it on the text, with options."""

    def run(*options):
        where = ("--text", "text.txt", "--checkpoints", "kept", "--device", "cpu")
        return attnbench("quality", *ARMS, "--train", *where, *options)

    return run


def test_models_are_trained_judged_and_recorded_and_the_record_is_built_again(
    trains, attnbench, place
):
    done = trains()
    for said in ("scratch:smoke", "ppl 16", "ppl 32", "cy_bias,mode=nested", "learned, mean over"):
        assert said in done.out
    records = list(Ledger(place / "ledger.jsonl").records())
    assert [r.kind.value for r in records] == ["session", "session", *["result"] * 3]
    assert records[0].body["task"]["arms"]["alibi,impl=torch"] == "baseline"
    assert all(r.cites == (records[1].id,) for r in records[2:])
    assert list((place / "kept").iterdir()) == []
    again = attnbench("ledger", "verify", "--recompute")
    assert again.code == 0
    assert "3  the same to the byte" in again.out
    assert "training with alibi" in attnbench("ledger", "log").out
    assert attnbench("report", "--out", "page.html").code == 0


def test_a_run_that_is_stopped_goes_on_and_every_session_is_in_the_ledger(
    trains, place, monkeypatch
):
    honest, begun = scratch_training.Training._step, []

    def stops(self):
        begun.append(self.method.label)
        if len(begun) == 10:  # in the second model
            raise KeyboardInterrupt
        return honest(self)

    with monkeypatch.context() as patch:
        patch.setattr(scratch_training.Training, "_step", stops)
        assert trains("--seeds", "1").code == 130
    whole = json.loads(trains("--seeds", "1", "--json", "--checkpoints", "other").out)
    resumed = json.loads(trains("--seeds", "1", "--json", "--resume").out)
    assert [o["nats"] for o in resumed["outcomes"]] == [o["nats"] for o in whole["outcomes"]]
    sessions = [
        (r.body["session"], r.body["phase"])
        for r in Ledger(place / "ledger.jsonl").records()
        if r.kind.value == "session" and r.body["run"] == resumed["run"]
    ]
    assert sessions == [(0, "opened"), (0, "aborted"), (1, "opened"), (1, "closed")]


def test_a_plan_trains_nothing(trains, place):
    done = trains("--plan")
    assert done.code == 0
    assert "6 models of preset smoke" in done.out
    assert json.loads(trains("--plan", "--json").out)["models"] == 6
    assert not (place / "ledger.jsonl").exists()
    assert not (place / "kept").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sdpa", "--train"), "no model is trained with it"),
        (("cy_bias", "--train", "--preset", "smoky"), "did you mean smoke"),
        (("cy_bias", "--train", "--seeds", "0"), "seeds from 1"),
        (("cy_bias", "--train", "--full"), "without --full"),
        (("cy_bias", "--train", "--resume"), "no run of this plan"),
        (("cy_bias", "cy_bias", "--train"), "named more than once"),
        (("cy_bias", "--train", "--dtype", "float16"), "not trained in float16"),
        (("cy_bias", "--train", "--preset", "l4"), "name a longer text"),
        (("cy_bias,impl=triton", "--train"), "needs a CUDA GPU"),
        (("int8_kv", "--preset", "smoke"), "without --train"),
        (("cy_bias",), "quality cy_bias --train"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(attnbench, place, arguments, said):
    done = attnbench("quality", *arguments, "--text", "text.txt", "--device", "cpu")
    assert done.code in (1, 2)
    assert said in done.err
    assert "Traceback" not in done.err
