"""Tries methods as a run does, in this process: sessions, the parent's checks, and what follows.

The worker's part is `run_session`, the parent's `Workers` and `Overseer`; only the pipe between
them is missing, and the model is loaded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

from attnbench.ledger import Ledger
from attnbench.measure.conduct import conduct_of
from attnbench.measure.events import Kept, Mark, Progress, Wanted
from attnbench.measure.session import run_session
from attnbench.measure.supervisor import OnEvent
from attnbench.measure.tasks import (
    Bench,
    CellPlan,
    Fill,
    SessionResult,
    SessionTask,
    StepCounts,
    Task,
)
from attnbench.measure.workers import RunTask, Workers
from attnbench.methods.base import Family
from attnbench.methods.registry import parse
from attnbench.models import sources
from attnbench.protocol.cell import Arm, Mode, Role, Scope
from attnbench.protocol.integrity import misconduct
from attnbench.protocol.schedule import schedule
from attnbench.protocol.timers import timers_disagree
from attnbench.protocol.verdict import Reason
from tests.evil import undo
from tests.measure.fake_workers import NoteTaker

BASELINE = "sdpa"
STEPS = StepCounts(warmup_steps=16, untimed_steps=1, timed_steps=6, min_visit_ms=0.0)
CPU = Bench(
    model="embedded",
    dtype="float32",
    device="cpu",
    context=768,
    batch=2,
    arms=(),
    fill=Fill.SYNTHETIC,
    seed=11,
    threads=1,
)
load = cache(sources.load)


class Spoken:
    """What a worker says, said to its parent without a pipe."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    def progress(self, done: int, total: int, detail: str) -> None:
        self._on_event(Progress(done=done, total=total, detail=detail))

    def mark(self, mark: Mark) -> None:
        self._on_event(mark)

    def ask(self, kept: Kept) -> Wanted:
        wanted = self._on_event(kept)
        assert wanted is not None
        return wanted


def in_this_process(task: Task, on_event: OnEvent, silence_s: float) -> SessionResult:
    """A session, after which what methods changed is taken back."""
    assert isinstance(task, SessionTask)
    try:
        with patch.object(sources, "load", load):
            return run_session(task, Spoken(on_event))
    finally:
        undo.everything()


@dataclass(frozen=True)
class Tried:
    """Methods by their specs, and the session that they had together."""

    session: SessionResult
    dtype: str

    def reason(self, spec: str) -> str:
        """Why the arm is VOID; empty where it is not, "raised" where it failed by itself."""
        cell = self.session.cells[0]
        failure = cell.failures.get(spec) or self.session.failures.get(spec)
        if failure is not None:
            return failure.reason or f"raised {failure.type}: {failure.message}"
        exact = parse(spec).family is Family.EXACT
        sessions = [self.session]
        found = misconduct(conduct_of(spec, BASELINE, sessions, 0, dtype=self.dtype, exact=exact))
        if found is not None:
            return found.reason.value
        apart = timers_disagree(cell.samples, [spec], BASELINE)
        return Reason.TIMERS_DISAGREE.value if apart else ""


def try_together(
    specs: Sequence[str],
    ledger: Path,
    *,
    scope: Scope = Scope.ATTENTION,
    mode: Mode = Mode.EAGER,
    bench: Bench = CPU,
    run: RunTask = in_this_process,
) -> Tried:
    """One session of SDPA and these methods."""
    labels = (BASELINE, *specs)
    arms = tuple(Arm(label=label, method=label, role=Role.CANDIDATE) for label in labels)
    order = schedule(labels, sessions=1, blocks=4, groups=2, seed=bench.seed).sessions[0]
    task = SessionTask(
        bench=Bench(**{**{f: getattr(bench, f) for f in bench.__struct_fields__}, "arms": arms}),
        session=0,
        cells=(CellPlan(scope=scope, mode=mode, schedule=order),),
        steps=STEPS,
    )
    told = NoteTaker()
    workers = Workers(Ledger(ledger), told, about={}, run=run)
    return Tried(workers.work(0, task, SessionResult, told.update), bench.dtype)
