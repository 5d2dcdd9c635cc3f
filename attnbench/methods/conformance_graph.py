"""Checks that need a CUDA graph: a captured step gives what the same step gives uncaptured."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.methods.base import Method, MethodLayer
from attnbench.methods.conformance import APPENDED, BOUNDS, Check, relative_error
from attnbench.methods.trial import Case, Step, Trial

CASE = Case(1000, 64, 4)
NO_CUDA = "there is no CUDA GPU here"


def check_capture(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """One captured step, replayed on other inputs, agrees with the reference."""
    if device.type != "cuda":
        return Check.skipped("", NO_CUDA)
    trial = trial_for_capture(method, dtype, device)
    layer, cache = method.layer(trial.shape), trial.cache()
    layer.prefill(cache)
    replay = CapturedDecode(layer, trial.steps[0])
    errors = []
    for step in trial.steps:
        expected = alone(method, trial, step)
        errors.append(relative_error(replay(step), expected))
    return Check.measured("", max(errors), BOUNDS[dtype], f"{len(errors)} replays")


def check_growth(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """One captured step, replayed while the length grows on the device, agrees each time."""
    if device.type != "cuda":
        return Check.skipped("", NO_CUDA)
    if not method.dynamic_length:
        return Check.skipped("", "its length is a shape, and it says so")
    trial = trial_for_capture(method, dtype, device)
    layer, cache = method.layer(trial.shape), trial.cache()
    layer.prefill(cache)
    replay = CapturedDecode(layer, trial.steps[0])
    layer.reset()
    expected = trial.appended_by(method.reference_layer(trial.shape))
    errors = []
    for step, wanted in zip(trial.steps, expected, strict=True):
        errors.append(relative_error(replay(step), wanted))
        cache.length.advance()
    return Check.measured("", max(errors), BOUNDS[dtype], f"{len(errors)} tokens appended")


def trial_for_capture(method: Method, dtype: torch.dtype, device: torch.device) -> Trial:
    """A trial longer than one tile, in a dtype that decode runs in."""
    trial = Trial.make(CASE, dtype, device, APPENDED, seed=7)
    method.check(trial.shape)
    return trial


def alone(method: Method, trial: Trial, step: Step) -> Tensor:
    """The reference's output for one step right after prefill."""
    layer = method.reference_layer(trial.shape)
    layer.prefill(trial.cache())
    return layer.decode(step.q, step.k, step.v)


class CapturedDecode:
    """A layer's decode step in a CUDA graph, fed through static inputs."""

    def __init__(self, layer: MethodLayer, step: Step) -> None:
        self.inputs = Step(step.q.clone(), step.k.clone(), step.v.clone())
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(2):  # compiles kernels, which a capture must not
                layer.decode(self.inputs.q, self.inputs.k, self.inputs.v)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = layer.decode(self.inputs.q, self.inputs.k, self.inputs.v)

    def __call__(self, step: Step) -> Tensor:
        """Replay on this step's inputs; a copy of the output."""
        self.inputs.q.copy_(step.q)
        self.inputs.k.copy_(step.k)
        self.inputs.v.copy_(step.v)
        self.graph.replay()
        return self.output.clone()
