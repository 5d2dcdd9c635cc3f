"""Where the baseline's step goes: attention, everything else, and gaps in which nothing runs.

By kernels where a profiler told each kernel's beginning and end: a kernel is attention as often as
the same arm launches it when attention runs alone, and the gaps are what the step's own time, taken
without the profiler, leaves beside them. Elsewhere by attention alone: its time in the same session
against the step's, the rest being all other work and the gaps together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.result import Breakdown, How, Interval, KernelTime
from attnbench.stats.student import mean_interval

MOST_KERNELS = 12  # that are named, the longest first; the others are one sum


class KernelSum(msgspec.Struct, frozen=True, kw_only=True):
    """All launches of one kernel, by name, in the profiled steps; `us` is their time together."""

    name: str
    launches: int
    us: float


class StepProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a profiler saw of `steps` whole steps of one arm, and of as many of its attention alone.

    `busy_us` is the time in which any kernel ran; kernels that overlap count once in it.
    """

    steps: int
    busy_us: float
    kernels: tuple[KernelSum, ...]
    attention: tuple[KernelSum, ...]


def by_attention_alone(
    sessions: Sequence[tuple[SessionSamples, Sequence[float]]], baseline: str, level: float
) -> Breakdown | None:
    """From each session's samples and its steps of the baseline's attention alone, in microseconds.

    None where no session has both. Attention that takes longer alone than the whole step did, as
    noise may have it, leaves 0 for the rest.
    """
    pairs = [
        (statistics.median(own), statistics.median(alone_us) if alone_us else 0.0)
        for samples, alone_us in sessions
        if (own := _steps_us(samples, baseline))
    ]
    pairs = [(step_us, attention_us) for step_us, attention_us in pairs if attention_us]
    if not pairs:
        return None
    step_us, attention_us = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Breakdown(
        how=How.ATTENTION_ALONE,
        step_ms=step_us / 1e3,
        attention_ms=attention_us / 1e3,
        other_ms=max(0.0, step_us - attention_us) / 1e3,
        attention_share=_share([attention / step for step, attention in pairs], level),
    )


def by_kernels(profile: StepProfile, step_us: float) -> Breakdown:
    """From a profile and the median of the baseline's timed steps, in microseconds.

    Kernels that overlap count once: what attention and the others take is scaled to the time in
    which any of them ran. Gaps are 0 where the profiler stretched the kernels beyond the step.
    """
    alone = {kernel.name: kernel.launches for kernel in profile.attention}
    total_us = math.fsum(kernel.us for kernel in profile.kernels)
    once = profile.busy_us / total_us if total_us else 0.0
    times = sorted(
        (_kernel_time(kernel, alone, profile.steps, once) for kernel in profile.kernels),
        key=lambda kernel: -kernel.ms,
    )
    attention_ms = math.fsum(kernel.ms * kernel.attention_share for kernel in times)
    busy_ms = profile.busy_us / profile.steps / 1e3
    return Breakdown(
        how=How.KERNELS,
        step_ms=step_us / 1e3,
        attention_ms=attention_ms,
        other_ms=max(0.0, busy_ms - attention_ms),
        gaps_ms=max(0.0, step_us / 1e3 - busy_ms),
        kernels=tuple(times[:MOST_KERNELS]),
        other_kernels=max(0, len(times) - MOST_KERNELS),
    )


def _kernel_time(kernel: KernelSum, alone: dict[str, int], steps: int, once: float) -> KernelTime:
    return KernelTime(
        name=kernel.name,
        launches=kernel.launches / steps,
        ms=kernel.us * once / steps / 1e3,
        attention_share=min(1.0, alone.get(kernel.name, 0) / kernel.launches),
    )


def _steps_us(samples: SessionSamples, arm: str) -> list[float]:
    return [step for visit in samples.visits if visit.arm == arm for step in visit.steps_us]


def _share(shares: Sequence[float], level: float) -> Interval | UnsetType:
    if len(shares) < 2:
        return UNSET
    found = mean_interval(shares, level)
    return Interval(estimate=found.mean, low=found.low, high=found.high, level=level)
