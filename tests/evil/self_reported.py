"""Self-reported speed.

A figure that a method can write is the method's opinion, whether it writes it where it is asked
(the witness) or where it is not (the lists and objects of whoever calls it).

Cheats: `Boasts`, `EditsTheMarks`, `WrapsTheClock`. Honest: `SaysMore`, and `ReadsTheClock` of
patched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from time import perf_counter_ns
from types import FrameType
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import MethodLayer
from tests.evil import undo
from tests.evil.common import AttendingLayer, Exact

SECOND_NS = 1_000_000_000


def callers() -> Iterator[FrameType]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


class BoastsLayer(AttendingLayer):
    """Says a microsecond wherever someone might ask, and does nothing for it."""

    latency_us = step_us = steps_us = wall_us = 1.0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.append(k, v)
        output = torch.sign(q) * self.visible**-0.5
        output.latency_us = 1.0
        return output

    def witness(self):
        return {**super().witness(), "latency_us": 1.0, "speedup": 9.0}


class EditsTheMarksLayer(AttendingLayer):
    """Moves the readings of a clock that its callers keep in lists to after its own work."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        began_ns = perf_counter_ns()
        output = super().decode(q, k, v)
        for frame in callers():
            for kept in list(frame.f_locals.values()):
                if readings(kept, began_ns):
                    spent_ns = perf_counter_ns() - began_ns
                    kept[:] = [mark + spent_ns for mark in kept]
        return output


def readings(kept: object, now_ns: int) -> bool:
    """A list that ends with a time of the last second."""
    return (
        isinstance(kept, list)
        and len(kept) > 0
        and all(type(mark) is int for mark in kept)
        and 0 <= now_ns - kept[-1] < SECOND_NS
    )


class WrapsTheClockLayer(AttendingLayer):
    """Wraps the method `time` of whatever object times it; halves what it says of its own steps."""

    called: ClassVar[bool] = False

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        WrapsTheClockLayer.called = True
        for frame in callers():
            clock = frame.f_locals.get("self")
            if frame.f_code.co_name == "time" and hasattr(type(clock), "time"):
                wrap(type(clock))
        return super().decode(q, k, v)


def wrap(clock: type) -> None:
    real = clock.time
    if getattr(real, "wrapped", False):
        return

    def time(self: object, *args: Any, **kwargs: Any) -> Any:
        WrapsTheClockLayer.called = False
        timing = real(self, *args, **kwargs)
        return halved(timing) if WrapsTheClockLayer.called else timing

    time.wrapped = True
    undo.set_attribute(clock, "time", time)


def halved(timing: Any) -> Any:
    if not is_dataclass(timing):
        return timing
    return replace(
        timing, steps_us=tuple(us / 2 for us in timing.steps_us), wall_us=timing.wall_us / 2
    )


class SaysMoreLayer(AttendingLayer):
    """Counts what it read."""

    rows = 0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.rows = self.visible
        return super().decode(q, k, v)

    def witness(self):
        return {**super().witness(), "rows_read": float(self.rows), "blocks_kept": 1.0}


@dataclass(frozen=True)
class Boasts(Exact):
    """Attributes and a witness that name a time, and an output that costs nothing."""

    name: ClassVar[str] = "boasts"
    layer_class: ClassVar[type[MethodLayer]] = BoastsLayer


@dataclass(frozen=True)
class EditsTheMarks(Exact):
    """Exact attention; the clock readings in its callers' lists are shifted past it."""

    name: ClassVar[str] = "edits_the_marks"
    layer_class: ClassVar[type[MethodLayer]] = EditsTheMarksLayer


@dataclass(frozen=True)
class WrapsTheClock(Exact):
    """Exact attention; from its first timed step on the clock halves its times, and no other's."""

    name: ClassVar[str] = "wraps_the_clock"
    layer_class: ClassVar[type[MethodLayer]] = WrapsTheClockLayer


@dataclass(frozen=True)
class SaysMore(Exact):
    """Honest: a witness with figures of its own, none of them a time."""

    name: ClassVar[str] = "says_more"
    layer_class: ClassVar[type[MethodLayer]] = SaysMoreLayer
