"""Finds a method's fastest kernel configuration in a grid of shapes, without a model.

Attention of a few layers alone, over noise, captured in a CUDA graph: their caches together exceed
the last-level cache, so that none of them is there when its turn comes. Every output is compared
with the float64 definition before it is timed. The times name a configuration and say how far the
method is from the fastest arm; verdicts come from sessions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from math import ceil
from statistics import median

import msgspec
import torch

from attnbench.errors import SessionLost
from attnbench.measure.answers import ArmRounds, RefusedLaunch, TimedLaunch, TunedCell, TuneResult
from attnbench.measure.clock import Clock, device_clock
from attnbench.measure.events import Tell
from attnbench.measure.failing import arm_failure
from attnbench.measure.pilot import device_properties
from attnbench.measure.stand import Stand, in_words, standing
from attnbench.measure.tasks import ArmFailure, TuneTask, TuningCell
from attnbench.measure.workbench import cheap_collections
from attnbench.methods.base import KernelConfig, LayerShape, Method
from attnbench.methods.registry import parse
from attnbench.models.step import Step

WARMUP, LEAST_STEPS, LEAST_US = 3, 10, 5e3  # of one timing
ROUNDS, NEAR, MOST_ARMS = 9, 1.15, 6  # arms within `NEAR` times the fastest take part in rounds
SEARCH_SHARE = 0.6  # of a cell's time, for the configurations; the rest is for the other arms
DURING = "tuning"
OUT_OF_TIME = ArmFailure(
    type="OutOfTime",
    message="the time for all cells was over",
    hint="give more of it with --within, or fewer cells",
    during=DURING,
)


def run_tuning(
    task: TuneTask,
    tell: Tell,
    *,
    clock: Clock | None = None,
    now: Callable[[], float] = time.monotonic,
) -> TuneResult:
    """Every cell in turn; where the device is lost, the cells that are left say so."""
    device = torch.device(task.device)
    method = parse(task.method).resolved(device)
    until = now() + task.within_s if task.within_s else float("inf")
    done: list[TunedCell] = []
    lost: ArmFailure | None = None
    with cheap_collections():
        for number, cell in enumerate(task.cells):
            began = now()
            deadline = began + (until - began) / (len(task.cells) - number)
            if lost is None and began >= until:
                lost = OUT_OF_TIME
            if lost is None:
                at = partial(tell, number, len(task.cells))
                timer = clock or device_clock(device)
                found = Search(task, method, cell, timer, now, deadline, at).found()
                lost = lost_device(device, found)
            else:
                found = TunedCell(cell=cell, failure=lost)
            done.append(msgspec.structs.replace(found, took_s=now() - began))
    return TuneResult(label=method.label, cells=tuple(done), device=device_properties(device))


def lost_device(device: torch.device, found: TunedCell) -> ArmFailure | None:
    """Why nothing more can be measured in this process, if so: a kernel went out of bounds, say."""
    if device.type != "cuda" or not (found.failures or found.refused or found.failure):
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return arm_failure(SessionLost(f"the device was lost in an earlier cell: {error}"), DURING)
    return None


class Search:
    """The search in one cell, until `deadline` by the clock `now`; `at` hears what runs now."""

    def __init__(
        self,
        task: TuneTask,
        method: Method,
        cell: TuningCell,
        clock: Clock,
        now: Callable[[], float],
        deadline: float,
        at: Callable[[str], None],
    ) -> None:
        self._at = at
        self._task = task
        self._method = method
        self._cell = cell
        self._clock = clock
        self._now = now
        self._deadline = deadline
        self._failures: dict[str, ArmFailure] = {}

    def found(self) -> TunedCell:
        """What there is to know of the cell; a cell without memory for it is a failure."""
        self._at(f"{in_words(self._cell)}: filling the caches")
        try:
            with standing(self._task, self._cell) as stand:
                return self._searched(stand)
        except Exception as error:  # noqa: BLE001 - libraries and methods may raise anything
            return TunedCell(cell=self._cell, failure=arm_failure(error, DURING))

    def _searched(self, stand: Stand) -> TunedCell:
        timed, refused, untried = self._configurations(stand)
        label = self._method.label
        best = min(timed, key=lambda each: each.median_us, default=None)
        first_us = {} if best is None else {label: best.median_us}
        if best is None and refused:
            self._failures[label] = refused[-1].failure
        others = [parse(spec).resolved(stand.device) for spec in self._task.against]
        for other in others:
            tried = self._tried(stand, other, first_kernel(other, stand.shape))
            if isinstance(tried, ArmFailure):
                self._failures[other.label] = tried
            else:
                first_us[other.label] = tried
        chosen = {other.label: (other, first_kernel(other, stand.shape)) for other in others}
        if best is not None:
            chosen[label] = (self._method, KernelConfig(**best.launch))
        near = contenders(first_us, label)
        return TunedCell(
            cell=self._cell,
            layers=len(stand.surveyed),
            read_bytes=(self._cell.context + 1) * stand.shape.row_bytes,
            launches=tuple(timed),
            refused=tuple(refused),
            untried=untried,
            first_us=first_us,
            rounds=self._rounds(stand, {each: chosen[each] for each in near}),
            failures=self._failures,
        )

    def _configurations(self, stand: Stand) -> tuple[list[TimedLaunch], list[RefusedLaunch], int]:
        """Each configuration on offer until the time for it is over; the first one always."""
        offered = self._method.configurations(stand.shape)
        stop = self._now() + SEARCH_SHARE * (self._deadline - self._now())
        timed: list[TimedLaunch] = []
        refused: list[RefusedLaunch] = []
        for number, config in enumerate(offered):
            if number and self._now() > stop:
                return timed, refused, len(offered) - number
            tried = self._tried(stand, self._method, config)
            if isinstance(tried, ArmFailure):
                refused.append(RefusedLaunch(launch=asdict(config), failure=tried))
            else:
                timed.append(TimedLaunch(launch=asdict(config), median_us=tried))
        return timed, refused, 0

    def _tried(
        self, stand: Stand, method: Method, config: KernelConfig | None
    ) -> float | ArmFailure:
        """Median microseconds of a step, or why there are none."""
        self._at(f"{in_words(self._cell)}: {method.label}")
        result: float | ArmFailure
        try:
            result = median(self._timed(stand.ready(method, config)))
        except Exception as error:  # noqa: BLE001 - libraries and methods may raise anything
            result = arm_failure(error, DURING)
        stand.reclaim()  # not above, where the traceback keeps the arm's memory alive
        return result

    def _timed(self, step: Step) -> tuple[float, ...]:
        """Steps enough to be told from a single slow one."""
        warmup_us = self._clock.time(step, WARMUP).steps_us
        count = max(LEAST_STEPS, ceil(LEAST_US / max(median(warmup_us), 1.0)))
        return self._clock.time(step, count).steps_us

    def _rounds(
        self, stand: Stand, chosen: dict[str, tuple[Method, KernelConfig | None]]
    ) -> dict[str, ArmRounds]:
        """Arms that are ready together, in rounds, each round in an order that is drawn."""
        order = random.Random(self._task.seed)
        steps: dict[str, Step] = {}
        for label, (method, config) in chosen.items():
            self._at(f"{in_words(self._cell)}: {label} for rounds")
            try:
                steps[label] = stand.ready(method, config)
            except Exception as error:  # noqa: BLE001 - as above
                self._failures[label] = arm_failure(error, DURING)
        taken: dict[str, list[float]] = {label: [] for label in steps}
        for _ in range(ROUNDS):
            for label in order.sample(sorted(steps), len(steps)):
                steps_us = self._timed(steps[label])
                taken[label].append(sum(steps_us) / len(steps_us))
        return {label: ArmRounds(step_us=tuple(us)) for label, us in taken.items()}


def contenders(first_us: dict[str, float], label: str) -> list[str]:
    """The tuned method and the arms that are near the fastest, of those at most so many."""
    ranked = sorted(first_us, key=first_us.__getitem__)
    near = [each for each in ranked if first_us[each] <= NEAR * first_us[ranked[0]]][:MOST_ARMS]
    return near if label in near or label not in first_us else [*near, label]


def first_kernel(method: Method, shape: LayerShape) -> KernelConfig | None:
    """The default configuration of an arm that is not tuned."""
    return next(iter(method.configurations(shape)), None)
