"""Walks the schedule of one cell: sets arms up, warms them up, visits them, in the order given.

Clock, GPU probe and arms are passed in, so that the order can be tested with simulated ones. What
an arm does wrong costs that arm its place and nobody else: the other arms' blocks stay complete.
How many steps a visit has, and on which inputs, is drawn when it begins; no two visits share one.
Some visits are rehearsals: they end anywhere and are not timed, but looked at. So no arm can know
which of its steps are timed, and every one of them may be the one that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any, Protocol

from attnbench.errors import SessionLost
from attnbench.measure.clock import Clock, Timing
from attnbench.measure.events import Doing, Mark, Talk
from attnbench.measure.failing import Guard, failure_of, recover
from attnbench.measure.nvml import GpuProbe, State
from attnbench.measure.phases import Phases
from attnbench.measure.tasks import ArmFailure, StepCounts
from attnbench.protocol.cell import Visit
from attnbench.protocol.schedule import GroupSchedule, SessionSchedule
from attnbench.stats.warmup import warmed_up

EXTRA_UNTIMED = 1  # at most, drawn on top of a visit's untimed steps
EXTRA_SHARE = 0.25  # of a visit's timed steps, at most, that are drawn on top
GRAINS = 1 << 20  # of a probability
REHEARSAL = -1  # in place of a block's number
VISIT_PATIENCE = 50.0  # times as long as its warm-up says that a visit lasts
LEAST_PATIENCE_S = 60.0


class RunningArm(Protocol):
    """An arm that is set up: its step can be run, and what it left behind be looked at."""

    @property
    def period(self) -> int:
        """Steps from one that does recurring work to the next."""

    def step(self) -> object:
        """One decode step."""

    def inspect(self, *, thoroughly: bool = False, given: bool = True) -> None:
        """Raise when the last step left behind what it should not; `given`: on the inputs that lie
        there now."""

    def kept(self) -> Any:
        """What the last step was given and returned, copied."""

    def witness(self) -> dict[str, float]:
        """The method's proof that it engaged, averaged over layers."""

    def read_bytes(self) -> int:
        """The least bytes that the last step had to read."""

    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels that one step launches; empty where none can be told."""

    def unnamed(self) -> str:
        """Why they should be told and cannot; empty otherwise."""


class Inputs(Protocol):
    """What the steps of all arms are given."""

    def freshen(self, seed: int) -> None:
        """New inputs for every step."""

    def vary(self, seed: int) -> None:
        """Other ones, at less cost."""


Setup = Callable[[], RunningArm]
Draw = Callable[[int], int]  # n -> a number below n that nobody can foresee


@dataclass
class Walk:
    """What came of a walk; arms that failed are in `failures` only."""

    warmup_us: dict[str, tuple[float, ...]] = field(default_factory=dict)
    set_up_us: dict[str, tuple[float, ...]] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)
    kept: dict[str, list[Any]] = field(default_factory=dict)  # by visit, rehearsals among them
    rehearsed: dict[str, list[int]] = field(default_factory=dict)  # which of those they are
    timed_steps: dict[str, int] = field(default_factory=dict)
    witness: dict[str, dict[str, float]] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unnamed: dict[str, str] = field(default_factory=dict)  # why there are no kernels
    failures: dict[str, ArmFailure] = field(default_factory=dict)

    def drop(self, label: str, failure: ArmFailure) -> None:
        """The arm failed: nothing that it measured can be compared with the others."""
        self.failures[label] = failure
        by_arm: tuple[dict[str, Any], ...] = (
            self.warmup_us,
            self.set_up_us,
            self.kept,
            self.rehearsed,
            self.timed_steps,
            self.witness,
            self.read_bytes,
            self.kernels,
            self.unnamed,
        )
        for figures in by_arm:
            figures.pop(label, None)
        self.visits = [visit for visit in self.visits if visit.arm != label]


@dataclass(frozen=True)
class Walker:
    """What a walk needs besides its schedule.

    `reclaim` takes memory back from arms that are gone; `cell` numbers the cell for the parent.
    """

    arms: Mapping[str, Setup]
    inputs: Inputs
    clock: Clock
    probe: GpuProbe
    guard: Guard
    steps: StepCounts
    reclaim: Callable[[], None]
    talk: Talk
    draw: Draw
    phases: Phases
    cell: int = 0
    title: str = ""

    def walk(self, schedule: SessionSchedule) -> Walk:
        """Every group of the schedule; raises `SessionLost` only when the device is lost."""
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
            rehearsed = self._rehearsals(plan)
            for block, rehearsing in zip(plan.blocks, rehearsed, strict=True):
                self._block(group, block.arms, rehearsing)
            self._take_down()
        return self._walk

    def _set_up(self, order: Sequence[str]) -> None:
        for label in order:
            if label not in self._walk.failures:
                self._vary()
                with self._contained(label, Doing.SET_UP), self._with.phases("set-up") as took:
                    self._running[label] = self._with.arms[label]()
                if label in self._running:
                    so_far = self._walk.set_up_us.get(label, ())
                    self._walk.set_up_us[label] = (*so_far, took.seconds * 1e6)
        for label in order:
            if label in self._running:
                with self._contained(label, Doing.WARM_UP):
                    self._warm_up(label)
            self._tell(label)

    def _warm_up(self, label: str) -> None:
        """The full warm-up in the first group; later, after a new capture, the untimed steps."""
        arm, steps = self._running[label], self._with.steps
        again = label in self._walk.warmup_us
        self._vary()
        if again:
            with self._with.phases("untimed"):
                self._with.clock.time(arm.step, steps.untimed_steps)
        else:
            with self._with.phases("warm-up"):
                self._first_warm_up(label)
        if not steps.bare:
            with self._with.phases("checks"):
                arm.inspect(thoroughly=not again)

    def _first_warm_up(self, label: str) -> None:
        arm, steps, clock = self._running[label], self._with.steps, self._with.clock
        warmup_us = clock.time(arm.step, steps.warmup_steps).steps_us
        if not steps.bare and not warmed_up(warmup_us):
            warmup_us += clock.time(arm.step, steps.warmup_steps).steps_us
        self._walk.warmup_us[label] = warmup_us
        self._walk.timed_steps[label] = visit_length(warmup_us, steps, arm.period)

    def _rehearsals(self, plan: GroupSchedule) -> list[list[str]]:
        """The arms that rehearse in each block of the group, drawn; the longer an arm's visits are
        beside the others', the less often it does, so that none costs more than most."""
        draw, groups = self._with.draw, len(self._schedule.groups)
        whole, part = divmod(self._with.steps.rehearsals, groups)
        rehearsing: list[list[str]] = [[] for _ in plan.blocks]
        visit_us = {label: self._visit_us(label) for label in self._running}
        for label, own_us in visit_us.items():
            for _ in range(whole + (draw(groups) < part)):
                if draw(GRAINS) * own_us < GRAINS * median(visit_us.values()):
                    rehearsing[draw(len(rehearsing))].append(label)
        return rehearsing

    def _visit_us(self, label: str) -> float:
        """About how long a visit of an arm lasts, from its warm-up."""
        return self._walk.timed_steps[label] * median(self._walk.warmup_us[label])

    def _block(self, group: int, arms: Sequence[str], rehearsing: Sequence[str]) -> None:
        """Every arm's visit in the given order; the rehearsals come at any moment between them."""
        self._with.inputs.freshen(self._with.draw(1 << 31))
        turns: list[tuple[str, int | None]] = [(label, n) for n, label in enumerate(arms)]
        for label in rehearsing:
            turns.insert(self._with.draw(len(turns) + 1), (label, None))
        for label, position in turns:
            if label in self._running:
                with self._contained(label, Doing.TIMED):
                    if position is None:
                        self._rehearse(label)
                    else:
                        self._visit(label, group, position)
            if position is not None:
                self._tell(label)
        self._blocks += 1

    def _rehearse(self, label: str) -> None:
        """A visit like any other to the arm, but one that ends at any of its steps."""
        least = self._walk.timed_steps[label]
        longest = least + ceil(least * EXTRA_SHARE)
        self._steps(label, 1 + self._with.draw(longest), REHEARSAL)
        self._walk.rehearsed.setdefault(label, []).append(len(self._walk.kept[label]) - 1)

    def _visit(self, label: str, group: int, position: int) -> None:
        least = self._walk.timed_steps[label]
        period = self._running[label].period
        count = least + period * self._with.draw(ceil(least * EXTRA_SHARE / period) + 1)
        timing, untimed, before, after = self._steps(label, count, self._blocks)
        self._walk.visits.append(
            Visit(
                arm=label,
                group=group,
                block=self._blocks,
                position=position,
                steps_us=timing.steps_us,
                wall_us=timing.wall_us,
                gpu={**after, **{f"before_{name}": value for name, value in before.items()}},
                untimed_steps=untimed,
            )
        )

    def _steps(self, label: str, count: int, block: int) -> tuple[Timing, int, State, State]:
        """Untimed steps and `count` timed ones, of which the last is kept: the times, how many
        steps were untimed, and the GPU's state before and after."""
        arm, clock, phases = self._running[label], self._with.clock, self._with.phases
        untimed = self._with.steps.untimed_steps + self._with.draw(EXTRA_UNTIMED + 1)
        rehearses = block == REHEARSAL
        with phases("checks"):
            self._vary()
            before = self._with.probe.read()
        with phases("checks" if rehearses else "untimed"):
            clock.time(arm.step, untimed)
        self._mark(label, Doing.TIMED, block)
        with phases("checks" if rehearses else "timed"):
            timing = clock.time(arm.step, count)
        self._mark(label, Doing.VISITED, block)
        with phases("checks"):
            self._walk.kept.setdefault(label, []).append(arm.kept())
            after = self._with.probe.read()
            arm.inspect()
        return timing, untimed, before, after

    def _vary(self) -> None:
        """So that no arm meets an input which another one has met, and could have answered."""
        self._with.inputs.vary(self._with.draw(1 << 31))

    def _take_down(self) -> None:
        with self._with.phases("checks"):
            for label in list(self._running):
                with self._contained(label, Doing.PROBED):
                    self._walk.witness[label] = self._running[label].witness()
                    self._walk.read_bytes[label] = self._running[label].read_bytes()
                    self._running[label].inspect(thoroughly=True, given=False)
                    if label not in self._walk.kernels:
                        self._walk.kernels[label] = self._running[label].kernels()
                        self._walk.unnamed[label] = self._running[label].unnamed()
            self._running.clear()
            self._with.reclaim()
            # What no visit's quick look saw is nobody's that could be named: no arm is marked.
            self._with.talk.progress(self._done, self._total, self._with.title)
            self._with.guard.require_unchanged()

    @contextmanager
    def _contained(self, label: str, doing: Doing) -> Iterator[None]:
        during = f"block {self._blocks}" if doing is Doing.TIMED else doing.value
        self._mark(label, doing)
        try:
            yield
            with self._with.phases("checks"):
                self._with.guard.require_unchanged(thoroughly=False)
        except SessionLost:
            raise
        except Exception as error:  # noqa: BLE001 - a method under test may raise anything
            self._walk.drop(label, failure_of(error, during, self._with.guard))
            self._running.pop(label, None)
        # Not in the except clause, whose traceback keeps the arm's memory alive.
        if label in self._walk.failures:
            recover(label, self._walk.failures[label], self._with.reclaim)

    def _mark(self, label: str, doing: Doing, block: int | None = None) -> None:
        patience_s = self._visit_patience_s(label) if doing in (Doing.TIMED, Doing.VISITED) else 0.0
        self._with.talk.mark(
            Mark(
                arm=label,
                doing=doing,
                cell=self._with.cell,
                block=self._blocks if block is None else block,
                patience_s=patience_s,
            )
        )

    def _visit_patience_s(self, label: str) -> float:
        if not self._walk.warmup_us.get(label):
            return 0.0
        return max(LEAST_PATIENCE_S, VISIT_PATIENCE * self._visit_us(label) / 1e6)

    def _tell(self, label: str) -> None:
        self._done += 1
        self._with.talk.progress(self._done, self._total, f"{label} ({self._with.title})")

    @property
    def _total(self) -> int:
        return sum(
            len(group.capture_order) + sum(len(block.arms) for block in group.blocks)
            for group in self._schedule.groups
        )


def visit_length(warmup_us: Sequence[float], steps: StepCounts, period: int = 1) -> int:
    """The least timed steps of each visit of an arm, from the median of the last half of its
    warm-up: whole periods, and two at the least of an arm that has one."""
    step_us = median(warmup_us[len(warmup_us) // 2 :])
    wanted = max(steps.timed_steps, ceil(steps.min_visit_ms * 1e3 / step_us))
    return wanted if period == 1 else period * max(2, ceil(wanted / period))
