"""One arm, set up on the bench: its layers and its step, and checks of what they leave behind."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.measure.floor import kv_bytes
from attnbench.measure.tasks import Launch
from attnbench.methods.base import KernelConfig
from attnbench.methods.registry import parse
from attnbench.models.step import AttentionStep, CapturedStep, DecodeStep, Step, build_layers
from attnbench.protocol.cell import Mode, Scope

if TYPE_CHECKING:
    from attnbench.measure.workbench import Workbench


class BrokenArm(AttnbenchError):
    """An arm whose output or whose treatment of the shared cache is wrong; it is not measured."""


class BenchArm:
    """An arm that is ready to be timed in one scope and mode.

    Setting it up runs attention of every layer once and checks each output, because a whole step
    hides which layer went wrong, and some wrong shapes altogether.
    """

    def __init__(
        self, bench: Workbench, method: str, launch: Launch | None, scope: Scope, mode: Mode
    ) -> None:
        self._bench = bench
        self._scope = scope
        kernel = None if launch is None else KernelConfig(**launch)
        resolved = parse(method).resolved(bench.device)
        self._layers = build_layers(resolved, bench.cache, bench.surveyed, kernel)
        self._check_attention()
        step = self._eager_step()
        self._step: Step = CapturedStep(step) if mode is Mode.GRAPH else step
        self._output: Tensor | tuple[Tensor, ...] = ()

    def step(self) -> object:
        """One decode step; its output is kept until the next."""
        self._output = self._step()
        return self._output

    def attend(self) -> tuple[Tensor, ...]:
        """One step of scope attention: the outputs [B,H,1,D] of the full-attention layers."""
        self.step()
        return (self._output,) if isinstance(self._output, Tensor) else self._output

    def inspect(self) -> None:
        """Raise `BrokenArm` unless the last output is finite and the cache is as it was."""
        outputs = (self._output,) if isinstance(self._output, Tensor) else self._output
        for number, output in enumerate(outputs):
            require_finite(output, f"output {number}")
        self._step.reset()
        self._bench.require_intact_cache()

    def witness(self) -> dict[str, float]:
        """Each figure of the layers that the method applies to, averaged; all must be finite."""
        witnesses = [self._layers[shape.layer].witness() for shape in self._bench.tables.shapes]
        averaged = {name: fmean(w[name] for w in witnesses) for name in witnesses[0]}
        for name, value in averaged.items():
            if not math.isfinite(value):
                raise BrokenArm(f"the witness {name} is {value}")
        return averaged

    def read_bytes(self) -> int:
        """The byte floor of a step of this scope: KV of its layers, and weights in a whole step."""
        if self._scope is Scope.ATTENTION:
            return kv_bytes(self._layers[shape.layer] for shape in self._bench.tables.shapes)
        return kv_bytes(self._layers) + self._bench.weight_bytes

    def _eager_step(self) -> DecodeStep | AttentionStep:
        bench = self._bench
        if self._scope is Scope.ATTENTION:
            return AttentionStep(self._layers, bench.tables)
        return DecodeStep(bench.loaded, bench.router, bench.cache, self._layers, bench.token_table)

    def _check_attention(self) -> None:
        step = AttentionStep(self._layers, self._bench.tables)
        for output, shape in zip(step(), self._bench.tables.shapes, strict=True):
            expected = (shape.batch, shape.heads, 1, shape.head_dim)
            if tuple(output.shape) != expected or output.dtype != shape.dtype:
                raise BrokenArm(
                    f"layer {shape.layer} returned {tuple(output.shape)} of {output.dtype}, "
                    f"not {expected} of {shape.dtype}"
                )
            require_finite(output, f"the output of layer {shape.layer}")
        step.reset()
        self._bench.require_intact_cache()


def require_finite(output: Tensor, what: str) -> None:
    """Raise `BrokenArm` for NaN and infinity."""
    if not bool(torch.isfinite(output).all()):
        raise BrokenArm(f"{what} holds NaN or infinity")
