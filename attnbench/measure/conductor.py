"""Carries a planned decode run out: pilot, sessions, memory, quality, verdicts, records.

Every worker process is a session of the ledger: an opening record before it starts, and one that
closes, fails or aborts it afterwards, with its raw samples as a blob. Results cite those.
"""

from __future__ import annotations

import gzip
import secrets
from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import Protocol, TypeVar

import msgspec

from attnbench.errors import AttnbenchError, WorkerFailed
from attnbench.ledger import Json, Kind, Ledger
from attnbench.measure.chosen import fastest_exact, kernel_choices, takes_part
from attnbench.measure.device import environment
from attnbench.measure.events import Progress
from attnbench.measure.evidence import AGAIN, CellArms, Evidence
from attnbench.measure.plan import Plan, PlannedArm
from attnbench.measure.reporter import Reporter
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import (
    Bench,
    CellPlan,
    Launch,
    MemoryResult,
    MemoryTask,
    PilotResult,
    PilotTask,
    QualityResult,
    QualityTask,
    SessionResult,
    SessionTask,
    StepCounts,
    Task,
    TaskResult,
)
from attnbench.methods.base import Family
from attnbench.protocol.cell import Arm, Cell, Role
from attnbench.protocol.schedule import SessionSchedule, schedule

_R = TypeVar("_R", bound=TaskResult)
SILENCE_S = 600.0  # the longest that a worker may say nothing: loading, compiling, one long prefill
PILOT_STEPS = StepCounts(warmup_steps=15, untimed_steps=2, timed_steps=10, min_visit_ms=5.0)
PILOT_BLOCKS = 4
NOTE_WIDTH = 160  # the whole message is in the record
QUALITY_STEPS = 16
QUALITY_WINDOWS = 2


RunTask = Callable[[Task, Callable[[Progress], None], float], TaskResult]


class _Show(Protocol):
    def __call__(self, done: int, total: int, detail: str = "") -> None: ...


class Conductor:
    """One run of one plan. Whatever was recorded stays recorded when it fails or is interrupted.

    `run` does a task in a process of its own, as `supervisor.run_task` does.
    """

    def __init__(
        self, plan: Plan, ledger: Ledger, reporter: Reporter, *, run: RunTask = run_task
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._reporter = reporter
        self._run_task = run
        self._run = secrets.token_hex(6)
        self._environment = environment(plan.facts)
        self._cites: list[str] = []
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
        return Evidence(
            run=self._run,
            plan=self._plan,
            pilot=pilot,
            cells=cells,
            sessions=sessions,
            memory=memory,
            quality=quality,
            failed=tuple(self._failed),
            environment=self._environment,
            cites=tuple(self._cites),
        )

    @property
    def _judges_quality(self) -> bool:
        return self._plan.request.quality and self._plan.info.weights == "trained"

    def _pilot(self) -> PilotResult:
        arms = tuple(_arm(planned) for planned in self._plan.arms)
        exact = [arm.label for arm in self._plan.arms if arm.family is Family.EXACT]
        order = _pilot_schedule(exact, self._plan.request.seed)
        task = PilotTask(
            bench=self._bench(arms),
            cells=tuple(
                CellPlan(scope=scope, mode=mode, schedule=order) for scope, mode in self._plan.cells
            ),
            steps=PILOT_STEPS,
        )
        with self._reporter.stage("pilot: which arms run, kernel choices, the baseline") as stage:
            pilot = _expect(self._work("pilot", task, stage.update), PilotResult)
        for label, arm in pilot.arms.items():
            if arm.failure is not None:
                why = shorten(arm.failure.message, NOTE_WIDTH, placeholder=" …")
                self._reporter.note(f"left out: {label}: {why}")
        return pilot

    def _cell_arms(self, index: int, pilot: PilotResult) -> CellArms:
        scope, mode = self._plan.cells[index]
        request = self._plan.request
        cell = Cell(
            model=request.model,
            context=self._plan.context,
            batch=request.batch,
            dtype=self._plan.dtype,
            scope=scope,
            mode=mode,
            device=self._plan.facts.name,
        )
        baseline = fastest_exact(pilot, index)
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
        bench = self._bench(tuple(everyone.values()), kernel_choices(everyone.values(), pilot))
        return tuple(
            self._session(i, bench, cells, [plan.sessions[i] for plan in plans])
            for i in range(protocol.sessions)
        )

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
            steps=StepCounts(
                warmup_steps=protocol.warmup_steps,
                untimed_steps=protocol.untimed_steps,
                timed_steps=protocol.timed_steps,
                min_visit_ms=protocol.min_visit_ms,
            ),
        )
        with self._reporter.stage(f"session {number + 1} of {protocol.sessions}") as stage:
            result = self._work(number, task, stage.update)
        return _expect(result, SessionResult)

    def _memory(self, pilot: PilotResult) -> MemoryResult:
        bench = self._bench(
            self._one_of_each(pilot), kernel_choices(map(_arm, self._plan.arms), pilot)
        )
        task = MemoryTask(bench=bench, layers=pilot.layers)
        with self._reporter.stage("memory: each arm in a process of its own") as stage:
            return _expect(self._work("memory", task, stage.update), MemoryResult)

    def _quality(self, pilot: PilotResult) -> QualityResult:
        arms = self._one_of_each(pilot)
        bench = self._bench(arms, kernel_choices(arms, pilot))
        task = QualityTask(
            bench=msgspec.structs.replace(bench, batch=1),
            windows=QUALITY_WINDOWS,
            steps=QUALITY_STEPS,
        )
        with self._reporter.stage("quality: outputs against SDPA on real text") as stage:
            return _expect(self._work("quality", task, stage.update), QualityResult)

    def _or_failed(self, part: Callable[[PilotResult], _R], pilot: PilotResult) -> _R | None:
        try:
            return part(pilot)
        except AttnbenchError as error:
            self._failed.append(error)
            return None

    def _one_of_each(self, pilot: PilotResult) -> tuple[Arm, ...]:
        """Every arm that is in a session of some cell."""
        cells = [(i, fastest_exact(pilot, i)) for i in range(len(self._plan.cells))]
        return tuple(
            _arm(arm)
            for arm in self._plan.arms
            if any(takes_part(arm, pilot, index, baseline) for index, baseline in cells)
        )

    def _bench(self, arms: Sequence[Arm], kernels: dict[str, Launch] | None = None) -> Bench:
        request = self._plan.request
        return Bench(
            model=request.model,
            dtype=self._plan.dtype,
            device=self._plan.device,
            context=self._plan.context,
            batch=request.batch,
            arms=tuple(arms),
            fill=self._plan.fill,
            seed=request.seed,
            threads=request.threads,
            kernels=kernels or {},
            text=str(request.text) if request.text else None,
        )

    def _work(self, session: int | str, task: Task, show: _Show) -> TaskResult:
        """Run one worker between its opening and its closing record."""
        opened = self._record("opened", session, task=msgspec.to_builtins(task))
        try:
            result = self._watched(task, show)
        except KeyboardInterrupt:
            self._record("aborted", session, cites=(opened,))
            self._reporter.note(f"interrupted: run {self._run} ends as aborted in the ledger")
            raise
        except AttnbenchError as error:
            self._record("failed", session, cites=(opened,), error=error.message)
            raise
        blob = self._ledger.put_blob(gzip.compress(msgspec.json.encode(result), mtime=0))
        self._cites.append(self._record("closed", session, cites=(opened,), samples=blob))
        return result

    def _watched(self, task: Task, show: _Show) -> TaskResult:
        """The worker's result; when it dies or hangs, the error says at what."""
        detail = ""

        def tell(event: Progress) -> None:
            nonlocal detail
            detail = event.detail
            show(event.done, event.total, event.detail)

        try:
            return self._run_task(task, tell, SILENCE_S)
        except WorkerFailed as error:
            if not detail:
                raise
            raise WorkerFailed(f"at {detail!r}: {error.message}", hint=error.hint) from error

    def _record(
        self, phase: str, session: int | str, *, cites: Sequence[str] = (), **more: Json
    ) -> str:
        body: dict[str, Json] = {"phase": phase, "run": self._run, "session": session, **more}
        if phase == "opened":
            body["environment"] = dict(self._environment)
            body["protocol"] = self._plan.request.protocol.name
            body["sources"] = {arm.label: arm.source_sha256 for arm in self._plan.arms}
        return self._ledger.append(Kind.SESSION, body, cites=cites).id


def _expect(result: TaskResult, kind: type[_R]) -> _R:
    if not isinstance(result, kind):
        raise AttnbenchError(f"the worker sent a {type(result).__name__}, not a {kind.__name__}")
    return result


def _arm(planned: PlannedArm) -> Arm:
    control = planned.family is Family.CONTROL
    role = Role.CONTROL if control else Role.CANDIDATE
    return Arm(label=planned.label, method=planned.spec, role=role)


def _pilot_schedule(labels: Sequence[str], seed: int) -> SessionSchedule:
    return schedule(labels, sessions=1, blocks=PILOT_BLOCKS, groups=1, seed=seed).sessions[0]
