"""Eviction by position: what is kept, in how little memory, and which policies are one."""

from __future__ import annotations

import pytest
import torch

from attnbench.errors import UsageError
from attnbench.measure.aliases import refuse_aliases
from attnbench.methods.conformance import Outcome, conform
from attnbench.methods.evict import Evict
from attnbench.methods.registry import parse
from attnbench.methods.sink_window import SinkWindow
from attnbench.methods.trial import Case, Trial

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", Evict.variants("cpu"), ids=lambda method: method.label)
def test_every_policy_conforms(method):
    checks = conform(method, CPU)
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []


def test_policies_keep_what_they_say():
    assert Evict(policy="recent", budget=3).rows_by_position(10) == {7, 8, 9}
    assert Evict(budget=5, sinks=2).rows_by_position(10) == {0, 1, 7, 8, 9}
    assert Evict(budget=5, sinks=2).rows_by_position(3) == {0, 1, 2}


@pytest.mark.parametrize("budget", [1, 2, 7, 64, 128, 200])
@pytest.mark.parametrize("tokens", [1, 100, 512, 4096])
def test_holo_strided_keeps_what_recent_keeps(budget, tokens):
    strided, recent = (
        Evict(policy=name, budget=budget, sinks=0) for name in ("holo_strided", "recent")
    )
    assert strided.rows_by_position(tokens) == recent.rows_by_position(tokens)


def test_aliases_are_refused_and_what_differs_is_not():
    strided, recent = (Evict(policy=name, budget=64) for name in ("holo_strided", "recent"))
    with pytest.raises(UsageError, match="keep the same 64 of 257 tokens"):
        refuse_aliases([recent, Evict(budget=64), strided], 256)
    refuse_aliases([recent, strided], 63)  # nothing is left out
    refuse_aliases([recent, Evict(budget=64), SinkWindow(sinks=0, window=64)], 256)
    refuse_aliases([SinkWindow(window=9, impl=impl) for impl in ("torch", "triton")], 256)
    refuse_aliases([parse("sdpa"), parse("int8_kv")], 256)


def test_the_cache_that_is_kept_is_as_small_as_the_budget_and_needs_no_other():
    trial = Trial.make(Case(300, 64, 4), torch.float32, CPU, 2)
    layer, cache = Evict(budget=40).layer(trial.shape), trial.cache()
    layer.prefill(cache)
    room = trial.shape.capacity - 300
    assert sum(t.nbytes for t in layer.tensors()) == (39 + room) * trial.shape.row_bytes
    expected = list(trial.appended_by(Evict(budget=40).layer(trial.shape)))
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    assert torch.equal(torch.stack(list(trial.continued(layer, cache))), torch.stack(expected))


@pytest.mark.parametrize("spec", ["evict,budget=0", "evict,budget=4", "evict,sinks=-1"])
def test_a_budget_that_keeps_nothing_is_refused(spec):
    with pytest.raises(UsageError, match="evict"):
        parse(spec)
