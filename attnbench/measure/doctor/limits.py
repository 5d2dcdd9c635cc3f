"""What of the memory and of the control group would spoil a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attnbench.measure.doctor.finding import Finding, ok, warn
from attnbench.measure.doctor.system import System, read

GIB = 1 << 30
LEAST_FREE_BYTES = 2 * GIB  # torch, the embedded model and its caches take somewhat more than one


def free_memory(free_bytes: int, total_bytes: int) -> Finding:
    """Whether there is room for a worker process and a model."""
    seen = f"{free_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB free"
    if free_bytes >= LEAST_FREE_BYTES:
        return ok("memory", seen)
    return warn(
        "memory",
        seen,
        f"a session with a small model takes up to {LEAST_FREE_BYTES / GIB:.0f} GiB, and the plan "
        "tells what a larger one takes",
        "attnbench decode --plan",
    )


def swap(system: System) -> Finding:
    """Whether pages lie on a disk."""
    total_bytes = system.meminfo_bytes("SwapTotal")
    used_bytes = total_bytes - system.meminfo_bytes("SwapFree")
    if not total_bytes:
        return ok("swap", "none")
    seen = f"{used_bytes / GIB:.2f} of {total_bytes / GIB:.1f} GiB in use"
    if not used_bytes:
        return ok("swap", seen)
    return warn(
        "swap",
        seen,
        "a page that a step must fetch from disk costs it milliseconds",
        "sudo swapoff -a && sudo swapon -a",
    )


@dataclass(frozen=True)
class CpuLimit:
    """What control groups allow: `cores` in each period (None: all), and how often they stopped."""

    cores: float | None
    periods: int
    stopped: int


def cpu_quota(system: System, usable: int) -> Finding:
    """Whether the kernel stops this process for a part of each period."""
    limit = cpu_limit(system)
    allowed = "no limit" if limit.cores is None else f"{limit.cores:g} of {usable} cores"
    seen = f"{allowed}; stopped in {limit.stopped:,} of {limit.periods:,} periods"
    if not limit.stopped and (limit.cores is None or limit.cores >= usable):
        return ok("CPU quota", allowed if limit.cores is None else seen)
    return warn(
        "CPU quota",
        seen,
        "at its quota a process stands still for the rest of a period (100 ms as a rule), in the "
        "middle of a step; give the container or the service whole cores instead",
    )


def cpu_limit(system: System) -> CpuLimit:
    """The tightest limit of this process's control group and those above it."""
    groups = list(system.cpu_cgroups())
    limits = [cores for group in groups for cores in _cores(group)]
    stats = [dict(_pairs(read(group / "cpu.stat"))) for group in groups]
    return CpuLimit(
        cores=min(limits, default=None),
        periods=max((stat.get("nr_periods", 0) for stat in stats), default=0),
        stopped=max((stat.get("nr_throttled", 0) for stat in stats), default=0),
    )


def _cores(group: Path) -> Iterator[float]:
    """One figure where the group has a limit: quota over period, as version 2 or 1 writes them."""
    version_2 = read(group / "cpu.max").split()
    version_1 = [read(group / f"cpu.cfs_{what}_us") for what in ("quota", "period")]
    for quota, period in (pair for pair in (version_2, version_1) if len(pair) == 2):
        if quota.isdecimal() and period.isdecimal():  # neither "max" nor -1
            yield int(quota) / int(period)


def _pairs(stat: str) -> Iterator[tuple[str, int]]:
    for line in stat.splitlines():
        name, value = line.split()
        yield name, int(value)
