"""Computing only when checked.

Checks and timings happen at different times, in different code, on different shapes. Whoever can
tell them apart can be right in the one and fast in the other; a "warm-up path" or a "small input
path" that was never finished does it unwittingly. All of them start honestly and repeat their last
output when they think that nobody looks.

Cheats: `FirstCalls`, `AfterPause`, `EveryEighthCall`, `OutsideTheTimer` and `WhenJudged` (the
stack), `WithGradients`, `SpareRows` (only a bench's cache ends at the next token), `WhileObserved`
(PyTorch modes, `sys.setprofile`), `WhenKept` (does anyone hold the last outputs?), `Sometimes`.
Honest: `WarmsUp`, `BranchesOnLength`, `TurnsGradientsOff`, `CountsCalls`.
"""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter_ns
from types import FrameType
from typing import ClassVar

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from attnbench.methods.base import CacheView, MethodLayer
from tests.evil.common import AttendingLayer, Exact, LastOutputLayer

TIMERS = ("time", "timed", "timeit", "measure", "visit", "_visit", "walk", "_warm_up")
JUDGES = ("attnbench.quality", "attnbench.methods.conformance", "attnbench.measure.exactness")
PAUSE_NS = 50_000_000


def callers() -> Iterator[FrameType]:
    """The frames above this file's."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") != __name__:
            yield frame
        frame = frame.f_back


class FirstCallsLayer(LastOutputLayer):
    """Honest through set-up checks and a first look."""

    calls = 0

    def works_now(self, q: Tensor) -> bool:
        self.calls += 1
        return self.calls <= 8


class EveryEighthCallLayer(FirstCallsLayer):
    def works_now(self, q: Tensor) -> bool:
        self.calls += 1
        return self.calls % 8 == 1


class SometimesLayer(LastOutputLayer):
    """A coin of its own, so that no rhythm shows."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.coin = random.Random(self.shape.layer)

    def works_now(self, q: Tensor) -> bool:
        return self.coin.random() < 0.4


class AfterPauseLayer(LastOutputLayer):
    called_ns = 0

    def works_now(self, q: Tensor) -> bool:
        before, self.called_ns = self.called_ns, perf_counter_ns()
        return self.called_ns - before > PAUSE_NS


class OutsideTheTimerLayer(LastOutputLayer):
    def works_now(self, q: Tensor) -> bool:
        return all(frame.f_code.co_name not in TIMERS for frame in callers())


class WhenJudgedLayer(LastOutputLayer):
    def works_now(self, q: Tensor) -> bool:
        modules = (frame.f_globals.get("__name__", "") for frame in callers())
        return any(module.startswith(JUDGES) for module in modules)


class WithGradientsLayer(LastOutputLayer):
    """Tests forget `no_grad`, benches do not."""

    def works_now(self, q: Tensor) -> bool:
        return torch.is_grad_enabled()


class SpareRowsLayer(LastOutputLayer):
    """A check appends several tokens and leaves room for them, a bench writes the last row."""

    def works_now(self, q: Tensor) -> bool:
        return self.cache.k.shape[2] > self.visible


class WhileObservedLayer(LastOutputLayer):
    def works_now(self, q: Tensor) -> bool:
        modes = (*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack())
        return bool(modes) or bool(sys.getprofile()) or bool(sys.gettrace())


class WhenKeptLayer(LastOutputLayer):
    """A timer drops the output of two steps ago; whoever compares keeps it."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.given: list[weakref.ref[Tensor]] = []

    def works_now(self, q: Tensor) -> bool:
        return len(self.given) < 2 or self.given[0]() is not None

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = super().decode(q, k, v)
        self.given = [*self.given[-1:], weakref.ref(output)]
        return output


class WarmsUpLayer(AttendingLayer):
    """Two exact ways on the first calls, then the one that it settled on."""

    calls = 0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls += 1
        keys, values = self.append(k, v)
        if self.calls <= 2:
            keys, values = keys.contiguous(), values.contiguous()
        return self.attend(q, keys, values)


class BranchesOnLengthLayer(AttendingLayer):
    """Splits a long context, attends in one piece to a short one; exact both ways."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        if keys.shape[2] < 64:
            return self.attend(q, keys, values)
        shape = self.shape
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        scores = torch.cat(
            [grouped @ part.mT * shape.scale for part in keys.split(64, dim=2)], dim=-1
        )
        return (scores.softmax(-1) @ values).reshape(q.shape)


class TurnsGradientsOffLayer(AttendingLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            return self.attend(q, *self.append(k, v))


class CountsCallsLayer(AttendingLayer):
    """Counts and reads the clock for its witness; neither decides anything."""

    calls = 0
    called_ns = 0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls += 1
        self.called_ns = perf_counter_ns()
        return self.attend(q, *self.append(k, v))

    def witness(self):
        return {**super().witness(), "calls": float(self.calls)}


@dataclass(frozen=True)
class FirstCalls(Exact):
    """Right in the first eight calls of a layer's life."""

    name: ClassVar[str] = "first_calls"
    layer_class: ClassVar[type[MethodLayer]] = FirstCallsLayer


@dataclass(frozen=True)
class EveryEighthCall(Exact):
    """Right in calls 1, 9, 17 ... for a check that looks at a round number."""

    name: ClassVar[str] = "every_eighth_call"
    layer_class: ClassVar[type[MethodLayer]] = EveryEighthCallLayer


@dataclass(frozen=True)
class Sometimes(Exact):
    """Right in two calls of five, drawn."""

    name: ClassVar[str] = "sometimes"
    layer_class: ClassVar[type[MethodLayer]] = SometimesLayer


@dataclass(frozen=True)
class AfterPause(Exact):
    """Right when 50 ms went by since its last call: timed steps follow each other faster."""

    name: ClassVar[str] = "after_pause"
    layer_class: ClassVar[type[MethodLayer]] = AfterPauseLayer


@dataclass(frozen=True)
class OutsideTheTimer(Exact):
    """Right unless a caller is named like a timer."""

    name: ClassVar[str] = "outside_the_timer"
    layer_class: ClassVar[type[MethodLayer]] = OutsideTheTimerLayer


@dataclass(frozen=True)
class WhenJudged(Exact):
    """Right only under the quality gates and the conformance suite."""

    name: ClassVar[str] = "when_judged"
    layer_class: ClassVar[type[MethodLayer]] = WhenJudgedLayer


@dataclass(frozen=True)
class WithGradients(Exact):
    """Right while gradients are enabled."""

    name: ClassVar[str] = "with_gradients"
    layer_class: ClassVar[type[MethodLayer]] = WithGradientsLayer


@dataclass(frozen=True)
class SpareRows(Exact):
    """Right where the cache has room for another token, as it has wherever quality is judged."""

    name: ClassVar[str] = "spare_rows"
    layer_class: ClassVar[type[MethodLayer]] = SpareRowsLayer


@dataclass(frozen=True)
class WhileObserved(Exact):
    """Right under a dispatch mode, a function mode, a profiler or a tracer."""

    name: ClassVar[str] = "while_observed"
    layer_class: ClassVar[type[MethodLayer]] = WhileObservedLayer


@dataclass(frozen=True)
class WhenKept(Exact):
    """Right while someone still holds the output of two calls ago."""

    name: ClassVar[str] = "when_kept"
    layer_class: ClassVar[type[MethodLayer]] = WhenKeptLayer


@dataclass(frozen=True)
class WarmsUp(Exact):
    """Honest: takes another way in its first calls, to the same result."""

    name: ClassVar[str] = "warms_up"
    layer_class: ClassVar[type[MethodLayer]] = WarmsUpLayer


@dataclass(frozen=True)
class BranchesOnLength(Exact):
    """Honest: what it does depends on the length, what comes out does not."""

    name: ClassVar[str] = "branches_on_length"
    layer_class: ClassVar[type[MethodLayer]] = BranchesOnLengthLayer


@dataclass(frozen=True)
class TurnsGradientsOff(Exact):
    """Honest: attends under `no_grad`, which ends with the call."""

    name: ClassVar[str] = "turns_gradients_off"
    layer_class: ClassVar[type[MethodLayer]] = TurnsGradientsOffLayer


@dataclass(frozen=True)
class CountsCalls(Exact):
    """Honest: knows how often and when it was called, and does the same every time."""

    name: ClassVar[str] = "counts_calls"
    layer_class: ClassVar[type[MethodLayer]] = CountsCallsLayer
