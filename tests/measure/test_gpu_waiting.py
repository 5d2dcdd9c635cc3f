"""A wait of known length on a real GPU: the device says how long it was, and events agree."""

from __future__ import annotations

from statistics import fmean

import msgspec
import pytest
import torch

from attnbench.measure.clock import CudaEventClock
from attnbench.measure.session import walk_cells
from attnbench.measure.world import World
from attnbench.methods.conformance import Outcome, conform
from attnbench.methods.registry import parse
from attnbench.methods.trial import Case, Trial
from attnbench.methods.waiting import Waiting
from attnbench.models.step import CapturedStep
from attnbench.protocol.cell import Arm, Mode, Role, Scope
from tests.measure.simulated import Muted
from tests.measure.standing import CPU, STEPS, cell, standing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CUDA = torch.device("cuda")
# What the device says it waited, of what events say: two runs of 100 µs steps, one after the other,
# differed by 0.27 µs on an H100.
RIGHT_US = 0.5
ASKED_SHARE = 0.03  # the SM clock that ends a wait was measured to half a per cent and may move
# All of them longer than the host takes to launch a step, so that the device never waits for it.
LEAST_US, *MORE_US = (100.0, 103.0, 115.0, 175.0)


class Replayed:
    """One layer's step in a CUDA graph, by the harness's own capture."""

    def __init__(self, wait_us: float) -> None:
        trial = Trial.make(Case(1000, 64, 4), torch.bfloat16, CUDA)
        method = Waiting(wait_us=wait_us, inner="flash_decode", impl="triton")
        self.layer = method.layer(trial.shape)
        self.layer.prefill(trial.cache())
        self.layers = (self.layer,)
        self._step = trial.steps[0]
        self.replay = CapturedStep(self)

    def __call__(self) -> torch.Tensor:
        return self.layer.decode(self._step.q, self._step.k, self._step.v)

    def reset(self) -> None:
        self.layer.reset()

    def timed_us(self) -> float:
        clock = CudaEventClock()
        clock.time(self.replay, 200)
        # Events resolve half a microsecond: the mean is what they know better.
        return fmean(clock.time(self.replay, 2000).steps_us)

    def waited_us(self) -> float:
        return self.layer.witness()["waited_us"]


def test_the_device_says_how_long_it_really_waited():
    steps = {wait_us: Replayed(wait_us) for wait_us in (LEAST_US, *MORE_US)}
    taken_us = {wait_us: step.timed_us() for wait_us, step in steps.items()}
    waited_us = {wait_us: step.waited_us() for wait_us, step in steps.items()}
    for wait_us in MORE_US:
        more_us = waited_us[wait_us] - waited_us[LEAST_US]
        assert more_us == pytest.approx(taken_us[wait_us] - taken_us[LEAST_US], abs=RIGHT_US)
        assert waited_us[wait_us] == pytest.approx(wait_us, rel=ASKED_SHARE)


def test_a_sham_waits_next_to_nothing_and_says_so():
    sham = Replayed(0.0)
    sham.timed_us()
    assert 0 <= sham.waited_us() < 1


def test_it_conforms_and_its_step_can_be_captured():
    checks = conform(parse("waiting,wait_us=5,inner=flash_decode"), CUDA)
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert "CUDA graph" in {check.name for check in checks if check.passed}


def test_in_a_session_only_the_layer_that_was_named_waits():
    method = "waiting,wait_us=40,inner=flash_decode,at_layer=1"
    arms = (Arm(label="slow", method=method, role=Role.CANDIDATE),)
    bench = msgspec.structs.replace(CPU, device="cuda", dtype="bfloat16", arms=(*arms, *_sham()))
    with standing(bench, "qwen3") as stands:
        plan = cell(bench, Scope.ATTENTION, Mode.GRAPH)
        result = walk_cells(stands, (plan,), STEPS, Muted(), World(stands.device).settle())
        layers = len(stands.tables.shapes)
    (walked,) = result.cells
    assert walked.failures == {}
    waited = {arm: figures["waited_us"] * layers for arm, figures in walked.samples.witness.items()}
    assert waited["slow"] - waited["sham"] == pytest.approx(40, rel=0.05)


def _sham() -> tuple[Arm, ...]:
    method = "waiting,inner=flash_decode,at_layer=1"
    return (Arm(label="sham", method=method, role=Role.CANDIDATE),)
