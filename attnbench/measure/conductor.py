"""Carries a planned decode run out: pilot, sessions, memory, quality, verdicts, records.

Every worker process is a session of the ledger (`workers`); results cite those records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import TypeVar

import msgspec

from attnbench.errors import AttnbenchError
from attnbench.ledger import Ledger
from attnbench.measure.chosen import baseline_of, kernel_choices, takes_part, without_cheats
from attnbench.measure.device import environment
from attnbench.measure.evidence import AGAIN, CellArms, Evidence
from attnbench.measure.layout import bench_of, cell_of, steps_of
from attnbench.measure.past import Past
from attnbench.measure.plan import Plan, PlannedArm
from attnbench.measure.prompts import QUALITY_WINDOWS
from attnbench.measure.reporter import Reporter
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import (
    Bench,
    CellPlan,
    MemoryResult,
    MemoryTask,
    PilotResult,
    PilotTask,
    QualityResult,
    QualityTask,
    SessionResult,
    SessionTask,
    StepCounts,
    TaskResult,
)
from attnbench.measure.verdicts import arm_results
from attnbench.measure.workers import NOTE_WIDTH, RunTask, Workers
from attnbench.protocol.cell import Arm, Role
from attnbench.protocol.family import Family
from attnbench.protocol.looks import decided, looks_of
from attnbench.protocol.schedule import SessionSchedule, schedule

_R = TypeVar("_R", bound=TaskResult)
PILOT_STEPS = StepCounts(
    warmup_steps=15, untimed_steps=2, timed_steps=10, min_visit_ms=5.0, rehearsals=2
)
PILOT_BLOCKS = 4
QUALITY_STEPS = 16


class Conductor:
    """One run of one plan. Whatever was recorded stays recorded when it fails or is interrupted.

    `run` does a task in a process of its own, as `supervisor.run_task` does. A run under the
    promise of a protocol file has one cell, shares its `name` with those of the file's other cells,
    and goes on from its `past` where it stopped.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        reporter: Reporter,
        *,
        run: RunTask = run_task,
        past: Past | None = None,
        name: str = "",
    ) -> None:
        self._plan = plan
        self._reporter = reporter
        self._environment = environment(plan.facts)
        self._workers = Workers(
            ledger,
            reporter,
            about={
                "environment": dict(self._environment),
                "protocol": plan.request.protocol.name,
                "sources": {arm.label: arm.source_sha256 for arm in plan.arms},
            },
            run=run,
            promise=plan.request.promise,
            cell=cell_of(plan, 0) if plan.request.promise else None,
            name=name,
        )
        if past is not None:
            self._workers.go_on(past)
        self._failed: list[AttnbenchError] = []

    def conduct(self) -> Evidence:
        """Run every worker of the plan; raises what the pilot or a session raises.

        Hours of sessions are not thrown away because memory or quality failed afterwards.
        """
        pilot = self._pilot()
        cells = tuple(self._cell_arms(i, pilot) for i in range(len(self._plan.cells)))
        sessions = self._sessions(cells, pilot)
        memory = self._or_failed(self._memory, pilot)
        quality = self._or_failed(self._quality, pilot) if self._judges_quality else None
        return msgspec.structs.replace(
            self._latencies(pilot, cells, sessions),
            memory=memory,
            quality=quality,
            failed=tuple(self._failed),
            cites=tuple(self._workers.cites),
        )

    def _latencies(
        self,
        pilot: PilotResult,
        cells: tuple[CellArms, ...],
        sessions: tuple[SessionResult, ...],
    ) -> Evidence:
        return Evidence(
            run=self._workers.run,
            plan=self._plan,
            pilot=pilot,
            cells=cells,
            sessions=sessions,
            environment=self._environment,
        )

    @property
    def _judges_quality(self) -> bool:
        return self._plan.request.quality and self._plan.info.weights == "trained"

    def _pilot(self) -> PilotResult:
        arms = tuple(_arm(planned) for planned in self._plan.arms)
        exact = [arm for arm in self._plan.arms if arm.family is Family.EXACT]
        first_of_each = [arm.label for arm in exact if not arm.twin]
        order = _pilot_schedule(first_of_each, self._plan.request.seed)
        task = PilotTask(
            bench=bench_of(self._plan, arms),
            cells=tuple(
                CellPlan(scope=scope, mode=mode, schedule=order) for scope, mode in self._plan.cells
            ),
            steps=PILOT_STEPS,
            known=self._plan.known,
        )
        with self._reporter.stage("pilot: which arms run, kernel choices, the baseline") as stage:
            seen = self._workers.work("pilot", task, PilotResult, stage.update)
        pilot = without_cheats(seen, self._plan.arms, self._plan.dtype)
        for label, arm in pilot.arms.items():
            if arm.failure is not None:
                why = shorten(arm.failure.message, NOTE_WIDTH, placeholder=" …")
                self._reporter.note(f"left out: {label}: {why}")
            elif arm.source:
                self._reporter.note(f"kernel configuration of {label}: {arm.source}")
        return pilot

    def _cell_arms(self, index: int, pilot: PilotResult) -> CellArms:
        scope, mode = self._plan.cells[index]
        cell = cell_of(self._plan, index)
        baseline = baseline_of(pilot, index, self._plan.arms)
        runs = [arm for arm in self._plan.arms if takes_part(arm, pilot, index, baseline)]
        others = [_arm(arm) for arm in runs if arm.label != baseline]
        first = next(_arm(arm) for arm in runs if arm.label == baseline)
        pair = (
            msgspec.structs.replace(first, role=Role.BASELINE),
            msgspec.structs.replace(first, role=Role.BASELINE_AGAIN, label=first.label + AGAIN),
        )
        self._reporter.note(f"baseline of {scope.value} · {mode.value}: {baseline}")
        return CellArms(cell, (*pair, *others))

    def _sessions(self, cells: Sequence[CellArms], pilot: PilotResult) -> tuple[SessionResult, ...]:
        protocol = self._plan.request.protocol
        plans = [
            schedule(
                [arm.label for arm in cell.arms],
                sessions=protocol.sessions,
                blocks=protocol.blocks,
                groups=protocol.groups,
                seed=self._plan.request.seed + index,
            )
            for index, cell in enumerate(cells)
        ]
        everyone = {arm.label: arm for cell in cells for arm in cell.arms}
        bench = bench_of(
            self._plan, tuple(everyone.values()), kernel_choices(everyone.values(), pilot)
        )
        done: tuple[SessionResult, ...] = ()
        for i in range(protocol.sessions):
            done += (self._session(i, bench, cells, [plan.sessions[i] for plan in plans]),)
            if self._may_stop(pilot, tuple(cells), done):
                break
        return done

    def _may_stop(
        self, pilot: PilotResult, cells: tuple[CellArms, ...], done: tuple[SessionResult, ...]
    ) -> bool:
        """Whether this many sessions are a planned look, and settle every candidate."""
        protocol = self._plan.request.protocol
        if len(done) not in looks_of(protocol) or len(done) == protocol.sessions:
            return False
        settled = decided(arm_results(self._latencies(pilot, cells, done)))
        said = "every candidate is settled" if settled else "not settled yet"
        self._reporter.note(f"planned look after {len(done)} sessions: {said}")
        return settled

    def _session(
        self,
        number: int,
        bench: Bench,
        cells: Sequence[CellArms],
        orders: Sequence[SessionSchedule],
    ) -> SessionResult:
        protocol = self._plan.request.protocol
        task = SessionTask(
            bench=bench,
            session=number,
            cells=tuple(
                CellPlan(scope=cell.cell.scope, mode=cell.cell.mode, schedule=order)
                for cell, order in zip(cells, orders, strict=True)
            ),
            steps=steps_of(protocol),
        )
        with self._reporter.stage(f"session {number + 1} of {protocol.sessions}") as stage:
            return self._workers.work(number, task, SessionResult, stage.update)

    def _memory(self, pilot: PilotResult) -> MemoryResult:
        bench = bench_of(
            self._plan, self._one_of_each(pilot), kernel_choices(map(_arm, self._plan.arms), pilot)
        )
        task = MemoryTask(bench=bench, layers=pilot.layers)
        with self._reporter.stage("memory: each arm in a process of its own") as stage:
            return self._workers.work("memory", task, MemoryResult, stage.update)

    def _quality(self, pilot: PilotResult) -> QualityResult:
        arms = self._one_of_each(pilot)
        bench = bench_of(self._plan, arms, kernel_choices(arms, pilot))
        task = QualityTask(
            bench=msgspec.structs.replace(bench, batch=1),
            windows=QUALITY_WINDOWS,
            steps=QUALITY_STEPS,
        )
        with self._reporter.stage("quality: outputs against SDPA on real text") as stage:
            return self._workers.work("quality", task, QualityResult, stage.update)

    def _or_failed(self, part: Callable[[PilotResult], _R], pilot: PilotResult) -> _R | None:
        try:
            return part(pilot)
        except AttnbenchError as error:
            self._failed.append(error)
            return None

    def _one_of_each(self, pilot: PilotResult) -> tuple[Arm, ...]:
        """Every arm that is in a session of some cell."""
        arms = self._plan.arms
        cells = [(i, baseline_of(pilot, i, arms)) for i in range(len(self._plan.cells))]
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
