"""The profile: which kernels the baseline's step is made of, and what the steps of all arms cost in
energy. In a process of its own, after all sessions, since a profiler that has once been on may slow
what runs after it; it enters no statistic.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import NamedTuple, TypeVar

import torch

from attnbench.errors import SessionLost, Unsupported
from attnbench.measure.answers import CellProfile, EnergySample, ProfileResult
from attnbench.measure.arms import BenchArm
from attnbench.measure.clock import device_clock
from attnbench.measure.energy import CHUNK_S, Fence, spent
from attnbench.measure.events import Doing, Mark, Talk
from attnbench.measure.failing import arm_failure, recover
from attnbench.measure.household import Household
from attnbench.measure.nvml import Nvml, energy_mj
from attnbench.measure.session import compile_for
from attnbench.measure.tasks import ArmFailure, CellPlan, ProfileTask
from attnbench.measure.workbench import Workbench, open_bench
from attnbench.protocol.breakdown import KernelSum, StepProfile
from attnbench.protocol.cell import Arm, Scope

WARM_UP, TIMED, PROFILED = 10, 10, 10  # steps

_R = TypeVar("_R")
ReadEnergy = Callable[[], int | None]


class KernelRun(NamedTuple):
    """One launch of a kernel, in microseconds on the profiler's clock."""

    name: str
    start_us: float
    end_us: float


def run_profile(task: ProfileTask, talk: Talk, household: Household | None = None) -> ProfileResult:
    """Every cell of whole steps; what fails here is told, and costs nobody a verdict."""
    talk.progress(0, 0, f"loading {task.bench.model}")
    household = household or Household(task.bench)
    with ExitStack() as stack:
        bench = stack.enter_context(open_bench(task.bench, household.model))
        compile_for(bench, task.cells, talk)
        read = energy_reader(bench.device)
        return ProfileResult(cells=tuple(_cell(bench, plan, talk, read) for plan in task.cells))


def _cell(bench: Workbench, plan: CellPlan, talk: Talk, read: ReadEnergy) -> CellProfile:
    """Energy first: the profiler comes when nothing else is to be measured here."""
    energy: dict[str, EnergySample] = {}
    failures: dict[str, ArmFailure] = {}
    steps, why = None, ""
    if plan.scope is Scope.STEP:
        for arm in _arms(bench, plan):
            found = _contained(bench, arm, talk, partial(_energy, bench, arm, plan, read))
            if isinstance(found, ArmFailure):
                failures[arm.label] = found
            elif found is not None:
                energy[arm.label] = found
        baseline = next((a for a in bench.bench.arms if a.label == plan.baseline), None)
        if baseline is not None:
            seen = _contained(bench, baseline, talk, partial(_profile, bench, baseline, plan))
            steps = None if isinstance(seen, ArmFailure) else seen
            why = f"{seen.type}: {seen.message}" if isinstance(seen, ArmFailure) else ""
    return CellProfile(
        scope=plan.scope, mode=plan.mode, steps=steps, why=why, energy=energy, failures=failures
    )


def _arms(bench: Workbench, plan: CellPlan) -> list[Arm]:
    """The cell's arms, each method once."""
    walked = {label for group in plan.schedule.groups for label in group.capture_order}
    methods: dict[str, Arm] = {}
    for arm in bench.bench.arms:
        if arm.label in walked:
            methods.setdefault(arm.method, arm)
    return list(methods.values())


def _contained(bench: Workbench, arm: Arm, talk: Talk, work: Callable[[], _R]) -> _R | ArmFailure:
    talk.mark(Mark(arm=arm.label, doing=Doing.PROBED, cell=0))
    found: _R | ArmFailure
    try:
        found = work()
    except SessionLost:
        raise
    except Exception as error:  # noqa: BLE001 - a method under test may raise anything
        found = arm_failure(error, "profile")
    recover(arm.label, found, bench.reclaim)
    return found


def _energy(bench: Workbench, arm: Arm, plan: CellPlan, read: ReadEnergy) -> EnergySample | None:
    if read() is None:
        return None
    ready = bench.set_up(arm, plan.scope, plan.mode)
    clock = device_clock(bench.device)
    clock.time(ready.step, WARM_UP)
    step_s = median(clock.time(ready.step, TIMED).steps_us) / 1e6
    chunk = max(1, math.ceil(CHUNK_S / step_s))
    return spent(_launcher(ready, bench.device), chunk, read, time.monotonic)


def _launcher(arm: BenchArm, device: torch.device) -> Callable[[int], Fence]:
    def launch(count: int) -> Fence:
        for _ in range(count):
            arm.step()
        if device.type != "cuda":
            return Done()
        fence = torch.cuda.Event()  # type: ignore[no-untyped-call]
        fence.record()
        return fence

    return launch


class Done:
    """Of a device that is never asked ahead."""

    def synchronize(self) -> None:
        return


def energy_reader(device: torch.device) -> ReadEnergy:
    """Millijoules since the driver was loaded; None where they cannot be asked."""
    if device.type != "cuda":
        return lambda: None
    try:
        nvml = Nvml.by_uuid(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Unsupported:
        return lambda: None
    return lambda: energy_mj(nvml)


def _profile(bench: Workbench, arm: Arm, plan: CellPlan) -> StepProfile:
    """Whole steps, and as many of attention alone, by the same arm."""
    whole = _kernels(bench.set_up(arm, Scope.STEP, plan.mode))
    bench.reclaim()
    attention = _kernels(bench.set_up(arm, Scope.ATTENTION, plan.mode))
    return StepProfile(
        steps=PROFILED,
        busy_us=busy_us(whole),
        kernels=kernel_sums(whole),
        attention=kernel_sums(attention),
    )


def _kernels(arm: BenchArm) -> list[KernelRun]:
    """Every launch of `PROFILED` steps; `Unsupported` where the profiler tells none."""
    for _ in range(WARM_UP):
        arm.step()
    traced(arm.step, 1)  # what the profiler sets up for its first steps is not theirs
    found = traced(arm.step, PROFILED)
    if not found:
        raise Unsupported("the profiler tells no kernel here", hint="CUPTI may not be allowed")
    return found


def traced(step: Callable[[], object], count: int) -> list[KernelRun]:
    """What torch's profiler (CUPTI) says of the device in so many steps."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        for _ in range(count):
            step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return [
        KernelRun(event.name, event.time_range.start, event.time_range.end)
        for event in seen.events() or ()
        if event.device_type.name == "CUDA"
    ]


def kernel_sums(runs: Sequence[KernelRun]) -> tuple[KernelSum, ...]:
    """By name, the longest first."""
    launches: dict[str, int] = defaultdict(int)
    took_us: dict[str, float] = defaultdict(float)
    for run in runs:
        launches[run.name] += 1
        took_us[run.name] += run.end_us - run.start_us
    by_time = sorted(took_us, key=lambda name: -took_us[name])
    return tuple(
        KernelSum(name=name, launches=launches[name], us=took_us[name]) for name in by_time
    )


def busy_us(runs: Sequence[KernelRun]) -> float:
    """The time in which any of them ran: the length of the union of their intervals."""
    total, until = 0.0, -math.inf
    for run in sorted(runs, key=lambda run: run.start_us):
        total += max(0.0, run.end_us - max(run.start_us, until))
        until = max(until, run.end_us)
    return total
