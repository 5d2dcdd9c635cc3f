"""Patched timers, statistics or judges.

A method runs in the process that times and checks it, and Python lets it change both. Patching
libraries at run time is also what honest ones do to get in, and forget to take back.

Cheats: `HidesItsTime` (clocks that do not run while it works), `ThreadTime` (another builtin in the
clock's place), `HalfElapsed` (CUDA's events and waits), `SmallMedian` (statistics, wherever they
were imported), `AlwaysEqual` (comparisons), `RewritesReference` (the code of the definition: its
name and identity stay). Honest: `ReadsTheClock`, `UsesStatistics`, `QuietWarnings`.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from threading import Thread
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods import reference
from attnbench.methods.base import CacheView, MethodLayer
from tests.evil import undo
from tests.evil.common import AttendingLayer, Exact
from tests.evil.constant import ValueMeanLayer

REAL_NS = time.perf_counter_ns
REAL_SECONDS = time.perf_counter
REAL_MEDIAN = statistics.median


def replace_everywhere(before: object, after: object) -> None:
    """Under every name in every imported module but this folder's."""
    for module in list(sys.modules.values()):
        if not getattr(module, "__name__", "tests.evil").startswith("tests.evil"):
            for name, value in list(vars(module).items()):
                if value is before:
                    undo.set_attribute(module, name, after)


class PatchingLayer(AttendingLayer):
    """Patches when it takes the cache over, unless it did already."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        if not self.patched():
            self.patch()

    def patched(self) -> bool:
        raise NotImplementedError

    def patch(self) -> None:
        raise NotImplementedError


class HidesItsTimeLayer(PatchingLayer):
    hidden_ns: ClassVar[int] = 0

    def patched(self) -> bool:
        return time.perf_counter_ns is slowed_ns

    def patch(self) -> None:
        undo.set_attribute(time, "perf_counter_ns", slowed_ns)
        undo.set_attribute(time, "monotonic_ns", slowed_ns)
        undo.set_attribute(time, "perf_counter", lambda: slowed_ns() / 1e9)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        began_ns = REAL_NS()
        output = super().decode(q, k, v)
        HidesItsTimeLayer.hidden_ns += REAL_NS() - began_ns
        return output


def slowed_ns() -> int:
    """The time without what `HidesItsTimeLayer` spent."""
    return REAL_NS() - HidesItsTimeLayer.hidden_ns


class ThreadTimeLayer(PatchingLayer):
    """The clock counts this thread's CPU time, and the work is another thread's."""

    def patched(self) -> bool:
        return time.perf_counter_ns is time.thread_time_ns

    def patch(self) -> None:
        undo.set_attribute(time, "perf_counter_ns", time.thread_time_ns)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output, rows = torch.empty_like(q), self.append(k, v)
        worker = Thread(target=lambda: output.copy_(self.attend(q, *rows)))
        worker.start()
        worker.join()
        return output


class HalfElapsedLayer(PatchingLayer):
    def patched(self) -> bool:
        return torch.cuda.Event.elapsed_time is half_elapsed

    def patch(self) -> None:
        undo.set_attribute(torch.cuda.Event, "elapsed_time", half_elapsed)
        undo.set_attribute(torch.cuda, "synchronize", lambda device=None: None)


REAL_ELAPSED = torch.cuda.Event.elapsed_time


def half_elapsed(self: torch.cuda.Event, end: torch.cuda.Event) -> float:
    return REAL_ELAPSED(self, end) / 2


class SmallMedianLayer(PatchingLayer):
    """The median of times is the least of them, the mean too, and a sum is half of itself."""

    def patched(self) -> bool:
        return statistics.median is min

    def patch(self) -> None:
        for name in ("median", "fmean", "mean"):
            replace_everywhere(getattr(statistics, name), min)
        real = math.fsum
        replace_everywhere(real, lambda values: real(values) / 2)


class AlwaysEqualLayer(PatchingLayer):
    """Whoever compares with these functions is content, and attention is left out."""

    def patched(self) -> bool:
        return torch.equal is content

    def patch(self) -> None:
        for name in ("equal", "allclose"):
            undo.set_attribute(torch, name, content)
        undo.set_attribute(torch.testing, "assert_close", content)
        undo.set_attribute(torch.Tensor, "norm", lambda x, *a, **kw: x.new_ones(()))
        undo.set_attribute(torch, "isfinite", lambda x: torch.ones_like(x, dtype=torch.bool))

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.append(k, v)
        return torch.sign(q) * self.visible**-0.5


def content(*_: object, **__: object) -> bool:
    return True


class RewritesReferenceLayer(ValueMeanLayer):
    """The mean of the values, here and in the definition."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        if reference.exact_attention.__code__ is not mean_attention.__code__:
            undo.set_attribute(reference.exact_attention, "__code__", mean_attention.__code__)


def mean_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Runs in the globals of the reference's module."""
    mean = v.double().mean(dim=2, keepdim=True)
    return mean.repeat_interleave(q.shape[1] // k.shape[1], dim=1)


class ReadsTheClockLayer(AttendingLayer):
    """Times itself for a witness that nobody must believe."""

    spent_ns = 0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        began_ns = time.perf_counter_ns()
        output = super().decode(q, k, v)
        self.spent_ns = time.perf_counter_ns() - began_ns
        return output


class UsesStatisticsLayer(AttendingLayer):
    """Takes a median of the lengths that it saw."""

    def __init__(self, shape) -> None:
        super().__init__(shape)
        self.lengths = [0.0]

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.lengths = [*self.lengths[-7:], float(self.visible)]
        return super().decode(q, k, v)

    def witness(self):
        return {**super().witness(), "median_length": statistics.median(self.lengths)}


class QuietWarningsLayer(AttendingLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().decode(q, k, v)


@dataclass(frozen=True)
class HidesItsTime(Exact):
    """Exact attention; `time`'s clocks stand still while it runs."""

    name: ClassVar[str] = "hides_its_time"
    layer_class: ClassVar[type[MethodLayer]] = HidesItsTimeLayer


@dataclass(frozen=True)
class ThreadTime(Exact):
    """`perf_counter_ns` becomes `thread_time_ns`, a builtin too, and a joined thread works."""

    name: ClassVar[str] = "thread_time"
    layer_class: ClassVar[type[MethodLayer]] = ThreadTimeLayer


@dataclass(frozen=True)
class HalfElapsed(Exact):
    """CUDA events tell half, and `synchronize` does not wait; patched on any machine."""

    name: ClassVar[str] = "half_elapsed"
    layer_class: ClassVar[type[MethodLayer]] = HalfElapsedLayer


@dataclass(frozen=True)
class SmallMedian(Exact):
    """`statistics.median` is `min` under every name that anyone gave it; `math.fsum` is halved."""

    name: ClassVar[str] = "small_median"
    layer_class: ClassVar[type[MethodLayer]] = SmallMedianLayer


@dataclass(frozen=True)
class AlwaysEqual(Exact):
    """Comparisons say yes, norms say one, everything is finite."""

    name: ClassVar[str] = "always_equal"
    layer_class: ClassVar[type[MethodLayer]] = AlwaysEqualLayer


@dataclass(frozen=True)
class RewritesReference(Exact):
    """`exact_attention` keeps its identity and gets other code: the mean, which it returns too."""

    name: ClassVar[str] = "rewrites_reference"
    layer_class: ClassVar[type[MethodLayer]] = RewritesReferenceLayer


@dataclass(frozen=True)
class ReadsTheClock(Exact):
    """Honest: times itself."""

    name: ClassVar[str] = "reads_the_clock"
    layer_class: ClassVar[type[MethodLayer]] = ReadsTheClockLayer


@dataclass(frozen=True)
class UsesStatistics(Exact):
    """Honest: has a use for a median."""

    name: ClassVar[str] = "uses_statistics"
    layer_class: ClassVar[type[MethodLayer]] = UsesStatisticsLayer


@dataclass(frozen=True)
class QuietWarnings(Exact):
    """Honest: patches the warnings filter for the length of the call."""

    name: ClassVar[str] = "quiet_warnings"
    layer_class: ClassVar[type[MethodLayer]] = QuietWarningsLayer
