"""The pilot: which arms run here, which kernel configurations are fastest, which exact arm is.

Its times name the baseline and the configurations; they enter no statistic.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from statistics import median

import msgspec
import torch

from attnbench.errors import SessionLost
from attnbench.measure.answers import ArmPilot, PilotResult, RefusedLaunch, TimedLaunch
from attnbench.measure.arms import BenchArm, BrokenArm
from attnbench.measure.clock import device_clock
from attnbench.measure.device import last_level_cache_bytes
from attnbench.measure.events import Doing, Mark, Talk
from attnbench.measure.exactness import require_exact
from attnbench.measure.failing import arm_failure, failure_of, recover
from attnbench.measure.household import Household
from attnbench.measure.known import tried_mode, tuned_scope
from attnbench.measure.launched import Launched, launched
from attnbench.measure.session import compile_for, walk_cells, with_probes
from attnbench.measure.tasks import ArmFailure, KnownLaunch, Launch, PilotTask
from attnbench.measure.workbench import Workbench, layer_facts, open_bench
from attnbench.measure.world import World
from attnbench.methods.registry import parse
from attnbench.protocol.cell import Arm, Mode, Scope
from attnbench.protocol.family import Family

TRIAL_WARMUP, TRIAL_STEPS = 3, 10


def run_pilot(task: PilotTask, talk: Talk, household: Household | None = None) -> PilotResult:
    """Examine every arm, then time those in the schedules with the configurations just found.

    An arm found broken is not set up again: it may be fast, and is no baseline. A worker that does
    more tasks keeps `household` for the next.
    """
    talk.progress(0, 0, f"loading {task.bench.model}")
    household = household or Household(task.bench)
    world = household.world
    with open_bench(task.bench, household.model) as bench:
        compile_for(bench, task.cells, talk)
        world.settle(bench.loaded.module)
        cells = [(cell.scope, cell.mode) for cell in task.cells]
        trial = Trial(
            bench,
            tried_mode(cells),
            talk,
            world,
            scope=tuned_scope(cells),
            most=task.configurations,
            known=task.known,
        )
        room_bytes = free_bytes(bench.device)
        arms = {arm.label: trial.examine(arm) for arm in task.bench.arms}
        bench.kernels.update(fastest_launches(arms))
        bench.broken.update(found_broken(arms))
        walked = walk_cells(bench, task.cells, task.steps, talk, world)
        return PilotResult(
            layers=layer_facts(bench.surveyed),
            arms=arms,
            session=with_probes(bench, walked, task.cells[0].mode, talk, world),
            device=device_properties(bench.device),
            room_bytes=room_bytes,
        )


class Trial:
    """Tries arms: whether they run, and how fast in `scope` with each configuration, with each of
    the first `most` (0: all), or with the one that is `known` of an arm, by its label."""

    def __init__(
        self,
        bench: Workbench,
        mode: Mode,
        talk: Talk,
        world: World,
        *,
        scope: Scope = Scope.ATTENTION,
        most: int = 0,
        known: Mapping[str, KnownLaunch] | None = None,
    ) -> None:
        self._bench = bench
        self._known = known or {}
        self._launched: dict[tuple[str, object], Launched] = {}
        self._own_bytes: dict[str, int] = {}  # the most of any configuration
        self._most = most
        self._mode = mode
        self._scope = scope
        self._talk = talk
        self._world = world
        self._clock = device_clock(bench.device)

    def examine(self, arm: Arm) -> ArmPilot:
        """What there is to know of an arm before the sessions; of an exact one, what it launches
        too."""
        found = self._examined(arm)
        if found.failure is not None:
            return found
        named = self._launched.get((arm.label, _key(found.fastest)), Launched())
        return msgspec.structs.replace(
            found,
            launched=named.counts,
            unnamed=named.unknown,
            own_bytes=self._own_bytes.get(arm.label, 0),
        )

    def _examined(self, arm: Arm) -> ArmPilot:
        """Whether it runs, and how fast with each configuration."""
        if arm.label in self._bench.broken:
            return ArmPilot(method=arm.label, failure=self._bench.broken[arm.label])
        try:
            method = parse(arm.method).resolved(self._bench.device)
            offered = method.configurations(self._bench.tables.shapes[0])
            launches = [asdict(config) for config in offered[: self._most or None]]
        except Exception as error:  # noqa: BLE001 - a method under test may raise anything
            return ArmPilot(method=arm.label, failure=arm_failure(error, "pilot"))
        if launches:
            found = self._tuned(arm, method.label, launches)
        else:
            tried = self._timed(arm, None, "1 of 1")
            failure = tried if isinstance(tried, ArmFailure) else None
            found = ArmPilot(method=method.label, failure=failure)
        try:
            self._world.require_unchanged()  # the arm is still the one that is marked
        except BrokenArm as error:
            return ArmPilot(method=method.label, failure=arm_failure(error, "pilot"))
        return found

    def _tuned(self, arm: Arm, method: str, launches: list[Launch]) -> ArmPilot:
        """An arm with configurations runs when at least one of them does."""
        timed: list[TimedLaunch] = []
        refused: list[RefusedLaunch] = []
        known = self._known.get(arm.label)
        if known is not None:
            tried = self._timed(arm, known.launch, "of the table")
            if not isinstance(tried, ArmFailure):
                found = TimedLaunch(launch=known.launch, median_us=tried)
                return ArmPilot(method=method, launches=(found,), source=known.source)
            refused.append(RefusedLaunch(launch=known.launch, failure=tried))
        for number, launch in enumerate(launches, 1):
            tried = self._timed(arm, launch, f"{number} of {len(launches)}")
            if isinstance(tried, ArmFailure):
                refused.append(RefusedLaunch(launch=launch, failure=tried))
            else:
                timed.append(TimedLaunch(launch=launch, median_us=tried))
        return ArmPilot(
            method=method,
            launches=tuple(timed),
            refused=tuple(refused),
            failure=None if timed else refused[-1].failure,
        )

    def _timed(self, arm: Arm, launch: Launch | None, which: str) -> float | ArmFailure:
        """Median microseconds of a step of the scope, or why it does not run."""
        self._talk.progress(0, 0, f"{arm.label}: configuration {which}")
        self._talk.mark(Mark(arm=arm.label, doing=Doing.SET_UP, cell=0))
        try:
            result: float | ArmFailure = self._median_us(arm, launch)
            self._world.require_unchanged(thoroughly=False)
        except SessionLost:
            raise
        except Exception as error:  # noqa: BLE001 - a method under test may raise anything
            result = failure_of(error, "pilot", self._world)
        recover(arm.label, result, self._bench.reclaim)
        return result

    def _median_us(self, arm: Arm, launch: Launch | None) -> float:
        self._bench.vary(secrets.randbits(31))
        if parse(arm.method).family is Family.EXACT:
            self._require_exact(arm, launch)
        scope = Scope.ATTENTION if launch is None else self._scope
        before = held_bytes(self._bench.device)
        ready = BenchArm(self._bench, arm.method, launch, scope, self._mode)
        self._clock.time(ready.step, TRIAL_WARMUP)
        steps_us = self._clock.time(ready.step, TRIAL_STEPS).steps_us
        own_bytes = held_bytes(self._bench.device) - before
        self._own_bytes[arm.label] = max(own_bytes, self._own_bytes.get(arm.label, 0))
        ready.inspect(thoroughly=True)
        return median(steps_us)

    def _require_exact(self, arm: Arm, launch: Launch | None) -> None:
        ready = BenchArm(self._bench, arm.method, launch, Scope.ATTENTION, self._mode)
        outputs = ready.attend()
        # Back to the first row, so that a wrong arm leaves a whole cache.
        ready.inspect(thoroughly=True)
        require_exact(self._bench, outputs)
        named = launched(self._bench, ready, arm.method, launch)
        self._launched[arm.label, _key(launch)] = named


def _key(launch: Launch | None) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((launch or {}).items()))


def fastest_launches(arms: dict[str, ArmPilot]) -> dict[str, Launch]:
    """The configuration to use, for every arm that has one to choose."""
    fastest = {label: arm.fastest for label, arm in arms.items()}
    return {label: launch for label, launch in fastest.items() if launch is not None}


def found_broken(arms: dict[str, ArmPilot]) -> dict[str, ArmFailure]:
    """Why, for every arm whose output or treatment of what it shares is wrong."""
    failures = {label: arm.failure for label, arm in arms.items()}
    return {
        label: failure
        for label, failure in failures.items()
        if failure is not None and failure.reason
    }


def held_bytes(device: torch.device) -> int:
    """What this process holds of a GPU, graphs' memory too, but for what the allocator only keeps;
    0 on a CPU."""
    if device.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def free_bytes(device: torch.device) -> int:
    """What is left of a GPU's memory; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def device_properties(device: torch.device) -> dict[str, str | int | float]:
    """What torch knows of the device and NVML does not."""
    if device.type != "cuda":
        return {"kind": "cpu", "cache_bytes": last_level_cache_bytes()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "kind": "cuda",
        "name": properties.name,
        "processors": properties.multi_processor_count,
        "cache_bytes": properties.L2_cache_size,
        "compute_capability": f"{properties.major}.{properties.minor}",
    }
