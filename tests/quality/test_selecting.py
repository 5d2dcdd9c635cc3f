"""`attnbench quality --selection` on the embedded model."""

from __future__ import annotations

import json

import msgspec
import pytest

from attnbench.measure import following
from attnbench.methods.registry import parse
from attnbench.models.sources import EMBEDDED_FOLDER, inspect
from attnbench.quality import selecting
from attnbench.quality.made_up_axis import axis_table
from attnbench.quality.selecting import STEPS, default_arms, followed
from tests.cli.conftest import attnbench as attnbench  # the command as a user runs it

pytestmark = pytest.mark.skipif(
    not (EMBEDDED_FOLDER / "model.safetensors").exists(),
    reason="the weights of the embedded model are not here yet",
)
ARMS = ("oracle_topk", "random_k,share=0.3", "abkv,k_min=1")
CONTEXT = 128


@pytest.fixture
def quick(monkeypatch):
    """Two windows, and one row of made-up data: the whole table has a test of its own."""
    row = tuple(axis_table((0.2,), (42,)))[:1]
    fewer = lambda counts: msgspec.structs.replace(followed(counts), windows=2)  # noqa: E731
    monkeypatch.setattr(following, "followed", fewer)
    monkeypatch.setattr(selecting, "axis_table", lambda: row)


def test_selections_of_a_trained_model_are_followed_and_shown(attnbench, quick, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    command = ("quality", "--selection", "--device", "cpu", "--ctx", str(CONTEXT), *ARMS)
    done = attnbench(*command, "--json", "--ledger", str(ledger))
    assert done.code == 0
    found = json.loads(done.out)
    assert found["taken"]["context"] == CONTEXT
    assert (found["pairs"], found["taken"]["windows"]) == (24, 2)
    oracle, random, abkv = found["arms"]
    assert oracle["overlap"] == 1.0
    assert oracle["correlation"] is None
    assert random["overlap"] == pytest.approx(0.3, abs=0.05)
    assert abkv["cosine"] < random["cosine"] < oracle["cosine"]
    # Real selections stay far more than chance would have it, and none stays as it is.
    assert found["random_drift"] == pytest.approx(1 - round(0.15 * CONTEXT) / CONTEXT)
    assert 0.1 < found["drift"]["50"]["mean"] < 0.75
    assert found["drift"]["1"]["mean"] < found["drift"]["50"]["mean"]
    assert 0 < found["reshuffle"]["mean"] < found["random_drift"]
    assert found["stable_pairs"] < 12
    assert found["axis_overlap"]["mean"] < 0.5
    assert found["axis_correlation"]["mean"] < 0
    assert found["most_cosine_for_overlap"]["cosine"] > found["most_cosine_for_overlap"]["overlap"]
    assert not ledger.exists()


def test_what_means_nothing_beside_it_is_refused(attnbench):
    for option in ("--plan", "--why-random"):
        done = attnbench("quality", "--selection", option)
        assert done.code == 2
        assert f"without {option}" in done.err
    context = str(inspect("embedded").max_context - STEPS + 1)
    done = attnbench("quality", "--selection", "--device", "cpu", "--ctx", context)
    assert done.code == 2
    assert f"no room for the {STEPS} steps" in done.err


def test_bare_it_follows_four_selections_at_three_coverages_of_the_context():
    arms = default_arms(1000)
    assert len(arms) == 12
    assert parse("sink_window,window=146") in arms
    assert parse("rank_window,coverage=0.05,k_min=1") in arms
