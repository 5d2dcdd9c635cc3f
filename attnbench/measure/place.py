"""One plan in a run: what to ask workers for, each task made from what earlier ones found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten

import msgspec

from attnbench.measure.answers import (
    MemoryResult,
    PilotResult,
    ProfileResult,
    QualityResult,
    SessionResult,
)
from attnbench.measure.chosen import (
    baseline_of,
    kernel_choices,
    takes_part,
    without_cheats,
    without_crowded,
)
from attnbench.measure.evidence import AGAIN, CellArms, Evidence
from attnbench.measure.layout import bench_of, cell_of, quality_counts, steps_of
from attnbench.measure.plan import Plan, PlannedArm
from attnbench.measure.reporter import Reporter
from attnbench.measure.tasks import (
    ArmFailure,
    CellPlan,
    MemoryTask,
    PilotTask,
    ProfileTask,
    QualityTask,
    SessionTask,
    StepCounts,
)
from attnbench.measure.workers import NOTE_WIDTH
from attnbench.methods.base import Family
from attnbench.protocol.cell import Arm, Role
from attnbench.protocol.schedule import Schedule, SessionSchedule, schedule

PILOT_STEPS = StepCounts(
    warmup_steps=15, untimed_steps=2, timed_steps=10, min_visit_ms=5.0, rehearsals=2
)
PILOT_BLOCKS = 4


@dataclass
class Place:
    """One context and batch of a run, in the cells of its plan.

    `first_cell` is the number of its first cell among all of the run: no two cells have one order.
    `lost` is why there is nothing to say of it.
    """

    plan: Plan
    first_cell: int = 0
    pilot: PilotResult | None = None
    cells: tuple[CellArms, ...] = ()
    sessions: tuple[SessionResult, ...] = ()
    memory: MemoryResult | None = None
    quality: QualityResult | None = None
    profile: ProfileResult | None = None
    lost: ArmFailure | None = None
    _orders: list[Schedule] = field(default_factory=list)

    @property
    def judges_quality(self) -> bool:
        """Whether there is a quality to judge, and it is wanted."""
        return self.plan.request.wants_quality and self.plan.info.weights == "trained"

    def pilot_task(self) -> PilotTask:
        """All arms tried, and the exact ones timed."""
        arms = tuple(_arm(planned) for planned in self.plan.arms)
        exact = [arm for arm in self.plan.arms if arm.family is Family.EXACT]
        first_of_each = [arm.label for arm in exact if not arm.twin]
        order = _pilot_schedule(first_of_each, self.plan.request.seed)
        return PilotTask(
            bench=bench_of(self.plan, arms),
            cells=tuple(
                CellPlan(scope=scope, mode=mode, schedule=order) for scope, mode in self.plan.cells
            ),
            steps=PILOT_STEPS,
            known=self.plan.known,
        )

    def settle(self, seen: PilotResult, reporter: Reporter) -> None:
        """Take from the pilot which arms run in which cell, and which of them is the baseline.

        Raises `Unsupported` where no exact arm runs.
        """
        honest = without_cheats(seen, self.plan.arms, self.plan.dtype)
        self.pilot = without_crowded(honest, self.plan.arms)
        for label, arm in self.pilot.arms.items():
            if arm.failure is not None:
                why = shorten(arm.failure.message, NOTE_WIDTH, placeholder=" …")
                reporter.note(f"left out: {label}: {why}")
            elif arm.source:
                reporter.note(f"kernel configuration of {label}: {arm.source}")
        self.cells = tuple(self._cell_arms(i, reporter) for i in range(len(self.plan.cells)))
        protocol = self.plan.request.protocol
        self._orders = [
            schedule(
                [arm.label for arm in cell.arms],
                sessions=protocol.sessions,
                blocks=protocol.blocks,
                groups=protocol.groups,
                seed=self.plan.request.seed + self.first_cell + index,
            )
            for index, cell in enumerate(self.cells)
        ]

    def session_task(self, number: int) -> SessionTask:
        """One session of all cells."""
        everyone = {arm.label: arm for cell in self.cells for arm in cell.arms}
        kernels = kernel_choices(everyone.values(), self._settled)
        return SessionTask(
            bench=bench_of(self.plan, tuple(everyone.values()), kernels),
            session=number,
            cells=tuple(
                CellPlan(
                    scope=cell.cell.scope,
                    mode=cell.cell.mode,
                    schedule=orders.sessions[number],
                    baseline=cell.baseline.label,
                )
                for cell, orders in zip(self.cells, self._orders, strict=True)
            ),
            steps=steps_of(self.plan.request.protocol),
        )

    def profile_task(self) -> ProfileTask:
        """The arms of the first session once more, for what enters no statistic."""
        first = self.session_task(0)
        return ProfileTask(bench=first.bench, cells=first.cells)

    def memory_task(self) -> MemoryTask:
        """Every arm of the sessions, once."""
        kernels = kernel_choices(map(_arm, self.plan.arms), self._settled)
        bench = bench_of(self.plan, self._one_of_each(), kernels)
        return MemoryTask(bench=bench, layers=self._settled.layers)

    def quality_task(self) -> QualityTask:
        """Every arm of the sessions, once, at batch 1."""
        arms = self._one_of_each()
        bench = bench_of(self.plan, arms, kernel_choices(arms, self._settled))
        return QualityTask(
            bench=msgspec.structs.replace(bench, batch=1),
            counts=quality_counts(self.plan),
        )

    def evidence(self, run: str, environment: Mapping[str, str | int | float]) -> Evidence:
        """What was found so far; whoever recorded it adds what it cites."""
        return Evidence(
            run=run,
            plan=self.plan,
            pilot=self._settled,
            cells=self.cells,
            sessions=self.sessions,
            environment=dict(environment),
            memory=self.memory,
            quality=self.quality,
            profile=self.profile,
        )

    @property
    def _settled(self) -> PilotResult:
        if self.pilot is None:
            raise RuntimeError("nothing can be asked for before the pilot is settled")
        return self.pilot

    def _cell_arms(self, index: int, reporter: Reporter) -> CellArms:
        cell, pilot = cell_of(self.plan, index), self._settled
        baseline = baseline_of(pilot, index, self.plan.arms)
        runs = [arm for arm in self.plan.arms if takes_part(arm, pilot, index, baseline)]
        others = [_arm(arm) for arm in runs if arm.label != baseline]
        first = next(_arm(arm) for arm in runs if arm.label == baseline)
        pair = (
            msgspec.structs.replace(first, role=Role.BASELINE),
            msgspec.structs.replace(first, role=Role.BASELINE_AGAIN, label=first.label + AGAIN),
        )
        reporter.note(f"baseline of {cell.scope.value} · {cell.mode.value}: {baseline}")
        return CellArms(cell, (*pair, *others))

    def _one_of_each(self) -> tuple[Arm, ...]:
        """Every arm that is in a session of some cell."""
        arms, pilot = self.plan.arms, self._settled
        cells = [(i, baseline_of(pilot, i, arms)) for i in range(len(self.plan.cells))]
        return tuple(
            _arm(arm)
            for arm in arms
            if any(takes_part(arm, pilot, index, baseline) for index, baseline in cells)
        )


def _arm(planned: PlannedArm) -> Arm:
    control = planned.family is Family.CONTROL
    role = Role.CONTROL if control else Role.CANDIDATE
    return Arm(label=planned.label, method=planned.spec, role=role)


def _pilot_schedule(labels: Sequence[str], seed: int) -> SessionSchedule:
    return schedule(labels, sessions=1, blocks=PILOT_BLOCKS, groups=1, seed=seed).sessions[0]
