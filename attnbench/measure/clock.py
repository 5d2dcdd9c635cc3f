"""Clocks: how long each of a run of steps took, and all of them by the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Microseconds of each step, and of all together on the host's clock."""

    steps_us: tuple[float, ...]
    wall_us: float


class Clock(Protocol):
    """Times steps that follow one another without a gap."""

    def time(self, step: Step, count: int) -> Timing:
        """Run `step` `count` times; when this returns, the device has finished them all."""


class HostClock:
    """The monotonic clock, read once between consecutive steps: for work done on the CPU."""

    def time(self, step: Step, count: int) -> Timing:
        marks_ns = [time.perf_counter_ns()]
        for _ in range(count):
            step()
            marks_ns.append(time.perf_counter_ns())
        return Timing(
            tuple((after - before) / 1e3 for before, after in pairwise(marks_ns)),
            (marks_ns[-1] - marks_ns[0]) / 1e3,
        )


class CudaEventClock:
    """One event between consecutive steps, on the current stream; one wait at the end.

    The host's clock starts on an idle device and stops when the whole device is idle again, so work
    that a step left on another stream shows as a difference between the two.
    """

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []

    def time(self, step: Step, count: int) -> Timing:
        events = self._take(count + 1)
        torch.cuda.synchronize()
        began_ns = time.perf_counter_ns()
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize()
        wall_us = (time.perf_counter_ns() - began_ns) / 1e3
        return Timing(_elapsed_us(events), wall_us)

    def _take(self, count: int) -> list[torch.cuda.Event]:
        # Kept from visit to visit: making thousands of events costs the host milliseconds.
        missing = count - len(self._events)
        self._events += [_event() for _ in range(missing)]
        return self._events[:count]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _elapsed_us(events: Sequence[torch.cuda.Event]) -> tuple[float, ...]:
    return tuple(before.elapsed_time(after) * 1e3 for before, after in pairwise(events))


def device_clock(device: torch.device) -> Clock:
    """The clock for work on `device`."""
    return CudaEventClock() if device.type == "cuda" else HostClock()
