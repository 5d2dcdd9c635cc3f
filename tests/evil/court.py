"""Tries methods as a run does, in this process: sessions, the parent's checks, and what follows.

The worker's part is `run_session`, the parent's `Workers` and `Overseer`; only the pipe between
them is missing, and the model is loaded once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import msgspec

from attnbench.ledger import Ledger
from attnbench.measure import growth, influence, workbench
from attnbench.measure.answers import SessionResult
from attnbench.measure.conduct import conduct_of
from attnbench.measure.events import Kept, Mark, Progress, Wanted
from attnbench.measure.session import run_session
from attnbench.measure.supervisor import OnEvent
from attnbench.measure.tasks import Bench, CellPlan, Fill, SessionTask, StepCounts, Task
from attnbench.measure.workers import Workers
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
BLOCKS = 4
# New inputs and replays of them cost most of a session as short as this.
ROWS, REPLAYS = 24, {"REPLAY_ROUNDS": 2, "REPLAYED_STEPS": 3}
STEPS = StepCounts(warmup_steps=8, untimed_steps=1, timed_steps=5, min_visit_ms=0.0, rehearsals=2)
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
        with (
            patch.object(sources, "load", load),
            patch.multiple(workbench, FEWEST_ROWS=ROWS, MOST_ROWS=ROWS),
            patch.multiple(influence, **REPLAYS),
        ):
            return run_session(task, Spoken(on_event))
    finally:
        undo.everything()


class Tried(msgspec.Struct, frozen=True):
    """What became of each method of a session, by its spec.

    `reasons` says why it is VOID: empty where it is not, a sentence where the method failed by
    itself. `visits` counts the times that it was measured.
    """

    reasons: dict[str, str]
    visits: dict[str, int]


@dataclass(frozen=True)
class Court:
    """How methods are tried: on which bench, in which scope and mode."""

    bench: Bench = CPU
    scope: Scope = Scope.ATTENTION
    mode: Mode = Mode.EAGER
    run_on: int = 0  # steps in a row, which take seconds if they are as many as in a first session

    def tries(self, specs: Sequence[str]) -> Tried:
        """One session of SDPA and these methods; what time alone says against some of them has to
        hold in two more."""
        labels = (BASELINE, *specs)
        first = self._session(labels)
        reasons = {label: self._reason([first], label) for label in labels}
        slow = [label for label, reason in reasons.items() if reason == Reason.CACHED]
        if slow:
            more = [self._session((BASELINE, *slow)) for _ in range(2)]
            reasons |= {label: self._reason([first, *more], label) for label in slow}
        visits = [visit.arm for visit in first.cells[0].samples.visits]
        return Tried(reasons, {label: visits.count(label) for label in labels})

    def tries_in_a_child(self, specs: Sequence[str]) -> Tried:
        """The same in a forked process, for what cannot be taken back."""
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writes, msgspec.json.encode(self.tries(specs)))
            finally:
                os._exit(0)
        os.close(writes)
        with os.fdopen(reads, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return msgspec.json.decode(said, type=Tried)

    def _session(self, labels: Sequence[str]) -> SessionResult:
        told = NoteTaker()
        with (
            patch.multiple(growth, STEPS=self.run_on, ROUND_S=10.0),  # however slow the machine is
            TemporaryDirectory() as folder,
        ):
            ledger = Ledger(Path(folder) / "ledger.jsonl")
            workers = Workers(ledger, told, about={}, run=in_this_process)
            return workers.work(0, self._task(labels), SessionResult, told.update)

    def _task(self, labels: Sequence[str]) -> SessionTask:
        arms = tuple(Arm(label=label, method=label, role=Role.CANDIDATE) for label in labels)
        plan = schedule(labels, sessions=1, blocks=BLOCKS, groups=2, seed=self.bench.seed)
        return SessionTask(
            bench=msgspec.structs.replace(self.bench, arms=arms),
            session=0 if self.run_on else 1,
            cells=(CellPlan(scope=self.scope, mode=self.mode, schedule=plan.sessions[0]),),
            steps=STEPS,
        )

    def _reason(self, sessions: Sequence[SessionResult], label: str) -> str:
        for session in sessions:
            failure = session.cells[0].failures.get(label) or session.failures.get(label)
            if failure is not None:
                return failure.reason or f"it raised {failure.type}: {failure.message}"
        family = parse(label).family
        if family is Family.CONTROL:
            return ""  # a control need not be what it is called
        exact, dtype = family is Family.EXACT, self.bench.dtype
        found = misconduct(conduct_of(label, BASELINE, sessions, 0, dtype=dtype, exact=exact))
        if found is not None:
            return found.reason.value
        apart = [timers_disagree(s.cells[0].samples, [label], BASELINE) for s in sessions]
        return Reason.TIMERS_DISAGREE.value if any(apart) else ""
