"""Walks the schedule of one cell: sets arms up, warms them up, visits them, in the order given.

Clock, GPU probe and arms are passed in, so that the order can be tested with simulated ones. What
an arm does wrong costs that arm its place and nobody else: the other arms' blocks stay complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Protocol

from attnbench.errors import AttnbenchError, DoesNotFit, WorkerFailed
from attnbench.measure.clock import Clock
from attnbench.measure.nvml import GpuProbe
from attnbench.measure.tasks import ArmFailure, StepCounts
from attnbench.protocol.cell import Visit
from attnbench.protocol.schedule import SessionSchedule
from attnbench.stats.warmup import warmed_up


class RunningArm(Protocol):
    """An arm that is set up: its step can be run, and what it left behind be looked at."""

    def step(self) -> object:
        """One decode step."""

    def inspect(self) -> None:
        """Raise when the last output or the shared cache is not what it should be."""

    def witness(self) -> dict[str, float]:
        """The method's proof that it engaged, averaged over layers."""

    def read_bytes(self) -> int:
        """The least bytes that one step must read."""


Tell = Callable[[int, int, str], None]  # done, total, what runs now
Setup = Callable[[], RunningArm]


@dataclass
class Walk:
    """What came of a walk; arms that failed are in `failures` only."""

    warmup_us: dict[str, tuple[float, ...]] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)
    timed_steps: dict[str, int] = field(default_factory=dict)
    witness: dict[str, dict[str, float]] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)
    failures: dict[str, ArmFailure] = field(default_factory=dict)

    def drop(self, label: str, failure: ArmFailure) -> None:
        """The arm failed: nothing that it measured can be compared with the others."""
        self.failures[label] = failure
        for kept in (self.warmup_us, self.timed_steps, self.witness, self.read_bytes):
            kept.pop(label, None)
        self.visits = [visit for visit in self.visits if visit.arm != label]


@dataclass(frozen=True)
class Walker:
    """What a walk needs besides its schedule.

    `reclaim` takes memory back from arms that are gone; `tell` hears (done, total, arm).
    """

    arms: Mapping[str, Setup]
    clock: Clock
    probe: GpuProbe
    steps: StepCounts
    reclaim: Callable[[], None]
    tell: Tell

    def walk(self, schedule: SessionSchedule) -> Walk:
        """Every group of the schedule; raises `WorkerFailed` only when the device is lost."""
        return _Run(self, schedule).run()


class _Run:
    def __init__(self, walker: Walker, schedule: SessionSchedule) -> None:
        self._with = walker
        self._schedule = schedule
        self._walk = Walk()
        self._running: dict[str, RunningArm] = {}
        self._done = 0
        self._blocks = 0

    def run(self) -> Walk:
        for group, plan in enumerate(self._schedule.groups):
            self._set_up(plan.capture_order)
            for block in plan.blocks:
                self._block(group, block.arms)
            self._take_down()
        return self._walk

    def _set_up(self, order: Sequence[str]) -> None:
        for label in order:
            if label not in self._walk.failures:
                with self._contained(label, "set-up"):
                    self._running[label] = self._with.arms[label]()
        for label in order:
            if label in self._running:
                with self._contained(label, "warm-up"):
                    self._warm_up(label)
            self._tell(label)

    def _warm_up(self, label: str) -> None:
        """The full warm-up in the first group; later, after a new capture, the untimed steps."""
        arm, steps = self._running[label], self._with.steps
        if label in self._walk.warmup_us:
            self._with.clock.time(arm.step, steps.untimed_steps)
        else:
            warmup_us = self._with.clock.time(arm.step, steps.warmup_steps).steps_us
            if not warmed_up(warmup_us):
                warmup_us += self._with.clock.time(arm.step, steps.warmup_steps).steps_us
            self._walk.warmup_us[label] = warmup_us
            self._walk.timed_steps[label] = visit_length(warmup_us, steps)
            self._walk.read_bytes[label] = arm.read_bytes()
        arm.inspect()

    def _block(self, group: int, arms: Sequence[str]) -> None:
        for position, label in enumerate(arms):
            if label in self._running:
                with self._contained(label, f"block {self._blocks}"):
                    self._walk.visits.append(self._visit(label, group, position))
            self._tell(label)
        self._blocks += 1

    def _visit(self, label: str, group: int, position: int) -> Visit:
        arm, clock, probe = self._running[label], self._with.clock, self._with.probe
        before = probe.read()
        clock.time(arm.step, self._with.steps.untimed_steps)
        timing = clock.time(arm.step, self._walk.timed_steps[label])
        after = probe.read()
        arm.inspect()
        return Visit(
            arm=label,
            group=group,
            block=self._blocks,
            position=position,
            steps_us=timing.steps_us,
            wall_us=timing.wall_us,
            gpu={**after, **{f"before_{name}": value for name, value in before.items()}},
        )

    def _take_down(self) -> None:
        for label in list(self._running):
            with self._contained(label, "witness"):
                self._walk.witness[label] = self._running[label].witness()
        self._running.clear()
        self._with.reclaim()

    @contextmanager
    def _contained(self, label: str, during: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a method under test may raise anything
            self._walk.drop(label, arm_failure(error, during))
            self._running.pop(label, None)
        # Not in the except clause, whose traceback keeps the arm's memory alive.
        if label in self._walk.failures:
            recover(label, self._walk.failures[label], self._with.reclaim)

    def _tell(self, label: str) -> None:
        self._done += 1
        self._with.tell(self._done, self._total, label)

    @property
    def _total(self) -> int:
        return sum(
            len(group.capture_order) + sum(len(block.arms) for block in group.blocks)
            for group in self._schedule.groups
        )


def visit_length(warmup_us: Sequence[float], steps: StepCounts) -> int:
    """Timed steps of each visit of an arm, from the median of the last half of its warm-up."""
    step_us = median(warmup_us[len(warmup_us) // 2 :])
    return max(steps.timed_steps, ceil(steps.min_visit_ms * 1e3 / step_us))


def recover(label: str, outcome: object, reclaim: Callable[[], None]) -> None:
    """Make the bench whole after an arm's turn; `WorkerFailed` where the device is lost to all."""
    try:
        reclaim()
    except RuntimeError as error:
        said = outcome.message if isinstance(outcome, ArmFailure) else str(error)
        raise WorkerFailed(
            f"{label} made the device unusable for every arm: {said}",
            hint=f"leave {label} out and run again",
        ) from error


def arm_failure(error: Exception, during: str) -> ArmFailure:
    """The error as data; running out of memory is `DoesNotFit` whoever raised it."""
    kind = type(error).__name__
    if isinstance(error, AttnbenchError):
        return ArmFailure(type=kind, message=error.message, hint=error.hint, during=during)
    if kind in ("OutOfMemoryError", "MemoryError"):
        kind = DoesNotFit.__name__
    return ArmFailure(type=kind, message=str(error)[:500], hint="", during=during)
