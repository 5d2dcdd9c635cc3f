from __future__ import annotations

import pytest
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.methods import registry
from attnbench.methods.base import Family
from attnbench.methods.conformance import Outcome, conform
from attnbench.methods.sdpa import Sdpa
from attnbench.methods.trial import Case, Trial
from attnbench.methods.waiting import Waiting

CPU = torch.device("cpu")
SMALL = Case(33, 64, 4)


def stepped(method: Waiting, steps: int = 3):
    """A layer after so many steps; layer 3, as every trial's."""
    trial = Trial.make(SMALL, torch.float32, CPU, steps)
    layer = method.resolved(CPU).layer(trial.shape)
    for _ in trial.appended_by(layer):
        pass
    return layer


@pytest.mark.parametrize("spec", ["waiting,wait_us=20", "waiting,inner=sdpa_packed,at_layer=1"])
def test_it_conforms_like_the_exact_method_that_it_waits_on(spec):
    checks = conform(registry.parse(spec), CPU)
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert sum(check.passed for check in checks) >= 25


def test_it_says_how_long_a_step_really_waited_and_never_less_than_asked():
    assert 300 <= stepped(Waiting(wait_us=300)).witness()["waited_us"] < 30_000
    assert 0 <= stepped(Waiting()).witness()["waited_us"] < 300


def test_only_the_layer_that_it_names_waits():
    assert stepped(Waiting(wait_us=200, at_layer=3)).witness()["waited_us"] >= 200
    assert stepped(Waiting(wait_us=200, at_layer=2)).witness()["waited_us"] == 0.0


def test_a_reset_keeps_what_was_waited_and_a_new_prefill_does_not():
    trial = Trial.make(SMALL, torch.float32, CPU)
    layer, cache = Waiting(wait_us=200, impl="torch").layer(trial.shape), trial.cache()
    layer.prefill(cache)
    assert layer.witness()["waited_us"] == 0.0
    step = trial.steps[0]
    layer.decode(step.q, step.k, step.v)
    layer.reset()
    assert layer.witness()["waited_us"] >= 200
    layer.prefill(cache)
    assert layer.witness()["waited_us"] == 0.0


def test_the_inner_method_is_written_with_a_plus_and_the_label_finds_it_again():
    method = registry.parse("waiting,wait_us=2.5,inner=sdpa+backend=math,at_layer=7")
    assert method.exact == Sdpa(backend="math")
    assert registry.parse(method.label) == method
    assert method.family is Family.CONTROL


@pytest.mark.parametrize("spec", ["inner=int8_kv", "inner=zero_cost", "wait_us=-1", "wait_us=inf"])
def test_what_is_not_exact_or_no_time_is_refused(spec):
    with pytest.raises(UsageError, match="waiting: "):
        registry.parse(f"waiting,{spec}")


def test_a_wait_that_the_device_would_not_feel_is_refused():
    shape = SMALL.shape(torch.float32, CPU, 1)
    Waiting(impl="torch").check(shape)
    with pytest.raises(Unsupported, match="cannot wait on cpu"):
        Waiting(impl="triton").check(shape)
