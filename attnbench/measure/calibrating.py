"""Carries a calibration out: one pilot, then sessions, each a fresh process and a closed record.

A run can end at any time and go on later: what is closed in the ledger is not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.ledger import Kind, Ledger
from attnbench.measure.answers import PilotResult, SessionResult, TaskResult
from attnbench.measure.calibration_past import ABOUT
from attnbench.measure.calibration_plan import (
    CalibrationArms,
    CalibrationPlan,
    calibration_arms,
)
from attnbench.measure.device import environment
from attnbench.measure.layout import bench_of, cell_of, steps_of
from attnbench.measure.past import Past
from attnbench.measure.place import PILOT_BLOCKS, PILOT_STEPS
from attnbench.measure.reporter import Reporter
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import Bench, CellPlan, PilotTask, SessionTask, StepCounts, Task
from attnbench.measure.workers import RunTask, Workers
from attnbench.protocol.calibration import Calibrated, findings
from attnbench.protocol.calibration_result import (
    INSTRUMENT,
    ORDER_EFFECT,
    Bias,
    CalibrationResult,
    Findings,
)
from attnbench.protocol.cell import Arm, Role
from attnbench.protocol.order_effect import (
    ARMS,
    BLOCKS,
    SEQUENTIAL,
    SEQUENTIAL_TIMED_STEPS,
    SEQUENTIAL_WARMUP_STEPS,
    bias,
    sequential_schedule,
)
from attnbench.protocol.schedule import SessionSchedule, schedule

_R = TypeVar("_R", bound=TaskResult)
PILOT = "pilot"
SEQUENTIAL_STEPS = StepCounts(
    warmup_steps=SEQUENTIAL_WARMUP_STEPS,
    untimed_steps=0,
    timed_steps=SEQUENTIAL_TIMED_STEPS,
    min_visit_ms=0.0,
    bare=True,
)
KERNEL_CACHE = "TRITON_CACHE_DIR"


class Calibrator:
    """One calibration, from its beginning or from where it stopped."""

    def __init__(
        self,
        plan: CalibrationPlan,
        ledger: Ledger,
        reporter: Reporter,
        *,
        past: Past | None = None,
        run: RunTask = run_task,
        name: str = "",
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._reporter = reporter
        self._environment = environment(plan.cell.facts)
        self._workers = self._hired(run, name)
        if past is not None:
            self._workers.go_on(past)

    @property
    def run(self) -> str:
        """The id by which the run goes on."""
        return self._workers.run

    @property
    def cites(self) -> tuple[str, ...]:
        """The records of the closed sessions."""
        return tuple(self._workers.cites)

    def calibrate(self) -> CalibrationResult:
        """Measure what is missing, say what all of it means, and record that."""
        about = self.measured()
        self._ledger.append(Kind.RESULT, msgspec.to_builtins(about), cites=self.cites)
        return about

    def measured(self) -> CalibrationResult:
        """Measure what is missing, and say what all of it means."""
        return self._order_effect() if self._plan.request.order_effect else self._instrument()

    def _hired(self, run: RunTask, name: str) -> Workers:
        return Workers(
            self._ledger,
            self._reporter,
            about={
                ABOUT: msgspec.to_builtins(self._plan.request),
                "environment": dict(self._environment),
                "protocol": self._plan.protocol.name,
                "sources": dict(self._plan.sources),
            },
            run=run,
            promise=self._plan.cell.request.promise,
            cell=cell_of(self._plan.cell, 0) if self._plan.cell.request.promise else None,
            name=name,
        )

    def _instrument(self) -> CalibrationResult:
        chosen = calibration_arms(self._pilot())
        self._tell(chosen)
        bench = bench_of(self._plan.cell, chosen.arms, chosen.kernels)
        steps = steps_of(self._plan.protocol)
        sessions = [
            self._session(str(order.session), order, bench, steps, "session")
            for order in self._orders([arm.label for arm in chosen.arms])
        ]
        seen = Calibrated(
            samples=[session.cells[0].samples for session in sessions],
            phases_s=[session.phases_s for session in sessions],
            layers=chosen.layers,
            injected=chosen.injected,
            protocol=self._plan.protocol,
        )
        return self._result(INSTRUMENT, bench, sessions, findings=findings(seen))

    def _order_effect(self) -> CalibrationResult:
        """The same exact method twice, with its default configuration, naively and in blocks."""
        (method,) = self._plan.contenders
        roles = zip(ARMS, (Role.BASELINE, Role.CANDIDATE), strict=True)
        arms = [Arm(label=label, method=method.method, role=role) for label, role in roles]
        bench = bench_of(self._plan.cell, arms)
        in_blocks = self._orders(ARMS)
        in_sequence = [sequential_schedule(order.session) for order in in_blocks]
        found, sessions = [], []
        for how, orders, steps in (
            (SEQUENTIAL, in_sequence, SEQUENTIAL_STEPS),
            (BLOCKS, in_blocks, steps_of(self._plan.protocol)),
        ):
            sessions = [
                self._session(f"{how} {order.session}", order, bench, steps, f"{how}: process")
                for order in orders
            ]
            samples = [session.cells[0].samples for session in sessions]
            found.append(bias(how, samples, self._plan.protocol.level))
        return self._result(ORDER_EFFECT, bench, sessions, order_effect=tuple(found))

    def _tell(self, chosen: CalibrationArms) -> None:
        waits = ", ".join(f"{each.wait_us:.1f}" for each in chosen.injected)
        self._reporter.note(f"A is {chosen.arms[0].method}")
        self._reporter.note(f"X is {chosen.arms[-1].method}; injected: {waits} µs a step")

    def _pilot(self) -> PilotResult:
        """Which configuration of which exact arm is fastest here: asked once a run."""
        labels = [arm.label for arm in self._plan.contenders]
        order = schedule(
            labels, sessions=1, blocks=PILOT_BLOCKS, groups=1, seed=self._plan.request.seed
        )
        task = PilotTask(
            bench=bench_of(self._plan.cell, self._plan.contenders),
            cells=(self._cell_plan(order.sessions[0]),),
            steps=PILOT_STEPS,
            configurations=self._plan.request.configurations,
        )
        return self._done(PILOT, task, PilotResult, "pilot: kernel choices, which arms are A and X")

    def _session(
        self, name: str, order: SessionSchedule, bench: Bench, steps: StepCounts, what: str
    ) -> SessionResult:
        task = SessionTask(
            bench=bench, session=order.session, cells=(self._cell_plan(order),), steps=steps
        )
        title = f"{what} {order.session + 1} of {self._plan.protocol.sessions}"
        if not steps.bare:
            return self._done(name, task, SessionResult, title)
        with no_compiled_kernels():
            return self._done(name, task, SessionResult, title)

    def _done(self, name: str, task: Task, kind: type[_R], title: str) -> _R:
        """What the ledger already holds, or what a worker sends now."""
        if self._workers.holds(name):
            return self._workers.held(name, kind)
        with self._reporter.stage(title) as stage:
            return self._workers.work(name, task, kind, stage.update)

    def _orders(self, labels: Sequence[str]) -> tuple[SessionSchedule, ...]:
        """The first ones stay the same when a run goes on to more sessions."""
        protocol = self._plan.protocol
        return schedule(
            labels,
            sessions=protocol.sessions,
            blocks=protocol.blocks,
            groups=protocol.groups,
            seed=self._plan.request.seed,
        ).sessions

    def _cell_plan(self, order: SessionSchedule) -> CellPlan:
        scope, mode = self._plan.cell.cells[0]
        return CellPlan(scope=scope, mode=mode, schedule=order)

    def _result(
        self,
        calibration: str,
        bench: Bench,
        sessions: Sequence[SessionResult],
        *,
        findings: Findings | UnsetType = UNSET,
        order_effect: tuple[Bias, ...] | UnsetType = UNSET,
    ) -> CalibrationResult:
        first = sessions[0]
        return CalibrationResult(
            calibration=calibration,
            run=self.run,
            cell=cell_of(self._plan.cell, 0),
            arms={arm.label: arm.method for arm in bench.arms},
            protocol=msgspec.to_builtins(self._plan.protocol),
            environment={
                **self._environment,
                **first.cells[0].samples.environment,
                "model_identity": first.model_identity,
                "cache_sha256": first.cache_sha256,
                "devices": len({_device(session) for session in sessions}),
            },
            sources=dict(self._plan.sources),
            kernels=bench.kernels,
            findings=findings,
            order_effect=order_effect,
            promise=self._plan.cell.request.promise or UNSET,
        )


def _device(session: SessionResult) -> str:
    """Which card it ran on, empty where there is none."""
    return str(session.cells[0].samples.environment.get("device_uuid", ""))


@contextmanager
def no_compiled_kernels() -> Iterator[None]:
    """A worker started in this context finds no Triton kernel that an earlier process compiled."""
    before = os.environ.get(KERNEL_CACHE)
    with TemporaryDirectory() as empty:
        os.environ[KERNEL_CACHE] = empty
        try:
            yield
        finally:
            if before is None:
                del os.environ[KERNEL_CACHE]
            else:
                os.environ[KERNEL_CACHE] = before
