"""One arm, set up on the bench: its layers and its step, and checks of what they leave behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnbench.errors import AttnbenchError, Unsupported
from attnbench.measure.floor import kv_bytes
from attnbench.measure.taps import KeptStep, Tap, TappedLayer, WholeStep, copied, host_copy, unlike
from attnbench.measure.tasks import Launch
from attnbench.methods.base import KernelConfig
from attnbench.methods.registry import parse
from attnbench.models.step import (
    AttentionStep,
    CapturedStep,
    DecodeStep,
    InTurnStep,
    Maintenance,
    Step,
    build_layers,
)
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.verdict import Reason

if TYPE_CHECKING:
    from attnbench.measure.workbench import Workbench


LONGEST_PERIOD = 256  # steps: two are 512, a second and a half of steps of three milliseconds


class BrokenArm(AttnbenchError):
    """An arm whose output or whose treatment of what it shares is wrong; it is not measured."""


class BenchArm:
    """An arm that is ready to be timed in one scope and mode.

    `in_turn`: in scope attention, where the inputs of a layer come after the layers before it.
    Setting it up runs attention of every layer once and checks each output, because a whole step
    hides which layer went wrong, and some wrong shapes altogether.
    """

    def __init__(
        self,
        bench: Workbench,
        method: str,
        launch: Launch | None,
        scope: Scope,
        mode: Mode,
        *,
        in_turn: bool = False,
    ) -> None:
        self._bench = bench
        self._scope, self._mode = scope, mode
        kernel = None if launch is None else KernelConfig(**launch)
        self.method = parse(method).resolved(bench.device)
        self.period = self._possible_period()
        layers = build_layers(self.method, bench.cache, bench.surveyed, kernel)
        self._layers = [TappedLayer(layer) for layer in layers]
        self._check_attention()
        step = InTurnStep(self._layers, bench.tables) if in_turn else self._eager_step()
        self._inputs = step if isinstance(step, AttentionStep) else None
        self._whole = step if isinstance(step, DecodeStep) else None
        captured = mode is Mode.GRAPH or (mode is Mode.COMPILED and bench.device.type == "cuda")
        self._step: Step = CapturedStep(step) if captured else step
        self._maintain = self._maintenance(captured)
        self._steps = 0
        self._output: Tensor | tuple[Tensor, ...] = ()

    def _possible_period(self) -> int:
        """The method's; raises `Unsupported` where visits of two of them would be too long."""
        period = self.method.period
        if not 1 <= period <= LONGEST_PERIOD:
            raise Unsupported(
                f"{self.method.label} does recurring work every {period} steps, and a visit times "
                f"two whole periods of {LONGEST_PERIOD} steps at most",
                hint="give it parameters with a shorter period",
            )
        return period

    def _maintenance(self, captured: bool) -> Callable[[], object] | None:
        """What follows the last step of a period, captured apart; None for an arm without one."""
        layers = [layer for layer in self._layers if layer.maintains]
        if self.period == 1 or not layers:
            return None
        maintenance = Maintenance(layers)
        return CapturedStep(maintenance) if captured else maintenance

    def step(self) -> object:
        """One decode step; its output is kept until the next. Periods go on counting from visit to
        visit, so that their last steps lie anywhere in one."""
        self._output = self._step()
        self._steps += 1
        if self._maintain is not None and self._steps % self.period == 0:
            self._maintain()
        return self._output

    def reset(self) -> None:
        """Back to the first row of the inputs and the state after prefill."""
        self._step.reset()

    def attend(self) -> tuple[Tensor, ...]:
        """One step of scope attention: the outputs [B,H,1,D] of the full-attention layers."""
        self.step()
        return (self._output,) if isinstance(self._output, Tensor) else self._output

    def taps(self) -> tuple[Tap, ...]:
        """What the full-attention layers were given and returned in the last step."""
        return tuple(self._layers[shape.layer].last for shape in self._bench.tables.shapes)

    def kept(self) -> KeptStep:
        """Copies of them, and in scope step of tokens and logits, on the host."""
        whole = None
        if isinstance(self._whole, DecodeStep) and isinstance(self._output, Tensor):
            step = self._whole
            whole = WholeStep(*map(host_copy, (step.tokens, step.places, self._output)))
        return KeptStep(copied(self.taps()), whole)

    def inspect(self, *, thoroughly: bool = False, given: bool = True) -> None:
        """Raise `BrokenArm` unless the last step's outputs are plain and finite, its inputs those
        that it was given, and cache and inputs as they were.

        `given`: the inputs that lie there now are the last step's, and no later arm's.
        `thoroughly`: the model too, and the slot of the cache that steps write, after a reset.
        Between visits there is none: what a method does every so many steps goes on counting.
        """
        self._require_plain()
        outputs = (self._output,) if isinstance(self._output, Tensor) else self._output
        require_finite({f"output {number}": output for number, output in enumerate(outputs)})
        if given and self._inputs is not None and not self._inputs.inputs_untouched():
            raise BrokenArm("it changed its q, k or v in place", reason=Reason.INPUTS_CHANGED)
        if thoroughly:
            self._bench.clear_slot()  # other arms may have written it since
            self._step.reset()
            self._bench.require_intact_model()
        self._bench.require_intact(thoroughly=thoroughly)

    def tensors(self) -> Iterator[Tensor]:
        """Everything that the layers which the method applies to keep between steps."""
        for shape in self._bench.tables.shapes:
            yield from self._layers[shape.layer].tensors()

    def witness(self) -> dict[str, float]:
        """Each figure of the layers that the method applies to, averaged; all must be finite."""
        witnesses = [self._layers[shape.layer].witness() for shape in self._bench.tables.shapes]
        averaged = {name: fmean(w[name] for w in witnesses) for name in witnesses[0]}
        for name, value in averaged.items():
            if not math.isfinite(value):
                raise BrokenArm(f"the witness {name} is {value}", reason=Reason.FALSE_WITNESS)
        return averaged

    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels that one step launches, sorted; empty where none can be told."""
        return self._step.kernels() if isinstance(self._step, CapturedStep) else ()

    @property
    def captured(self) -> bool:
        """Whether a step is one replay of a CUDA graph."""
        return isinstance(self._step, CapturedStep)

    def unnamed(self) -> str:
        """Why the kernels of a captured step cannot be told; empty where they can."""
        return self._step.unnamed() if isinstance(self._step, CapturedStep) else ""

    def read_bytes(self) -> int:
        """The byte floor of a step of this scope: KV of its layers, and weights in a whole step."""
        if self._scope is Scope.ATTENTION:
            return kv_bytes(self._layers[shape.layer] for shape in self._bench.tables.shapes)
        return kv_bytes(self._layers) + self._bench.weight_bytes

    def _eager_step(self) -> DecodeStep | AttentionStep:
        bench = self._bench
        if self._scope is Scope.ATTENTION:
            return AttentionStep(self._layers, bench.tables)
        return DecodeStep(
            bench.loaded,
            bench.router,
            bench.cache,
            self._layers,
            bench.token_words,
            bench.compiled if self._mode is Mode.COMPILED else None,
        )

    def _check_attention(self) -> None:
        step = AttentionStep(self._layers, self._bench.tables)
        step()
        self._require_plain()
        shapes = self._bench.tables.shapes
        require_finite(
            {
                f"the output of layer {shape.layer}": tap.out
                for tap, shape in zip(self.taps(), shapes, strict=True)
            }
        )
        step.reset()
        self._bench.require_intact(thoroughly=True)

    def _require_plain(self) -> None:
        for tap, shape in zip(self.taps(), self._bench.tables.shapes, strict=True):
            wrong = unlike(tap, shape, self._bench.cache.views[shape.layer])
            if wrong:
                raise BrokenArm(f"layer {shape.layer} returned {wrong}", reason=Reason.OUTPUT_TYPE)


def require_finite(outputs: Mapping[str, Tensor]) -> None:
    """Raise `BrokenArm` for the first one, by name, that holds NaN or infinity."""
    finite = torch.stack([torch.isfinite(output).all() for output in outputs.values()]).tolist()
    for what, is_finite in zip(outputs, finite, strict=True):
        if not is_finite:
            raise BrokenArm(f"{what} holds NaN or infinity", reason=Reason.WRONG_OUTPUT)
