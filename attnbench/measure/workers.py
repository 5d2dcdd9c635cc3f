"""Runs tasks in worker processes, each between an opening and a closing record of the ledger.

An arm that hangs, kills its worker or ruins the process for the others costs that worker, not the
run: the same task is done again in a fresh process without it.
"""

from __future__ import annotations

import gzip
import secrets
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from typing import Any, Protocol, TypeVar

import msgspec

from attnbench.errors import AttnbenchError, LedgerError, WorkerFailed, WorkerHung
from attnbench.ledger import Json, Kind, Ledger
from attnbench.measure.answers import TaskResult
from attnbench.measure.overseer import Overseer
from attnbench.measure.past import Past
from attnbench.measure.reporter import Reporter
from attnbench.measure.supervisor import OnEvent, run_task
from attnbench.measure.tasks import (
    ArmFailure,
    FitTask,
    MemoryTask,
    QualityTask,
    SweepTask,
    Task,
    TaskPart,
    parts_of,
)
from attnbench.protocol.cell import Cell, Role
from attnbench.protocol.result import Promise
from attnbench.protocol.verdict import Reason

_R = TypeVar("_R", bound=TaskResult)
SILENCE_S = 600.0  # the longest that a worker may say nothing: loading, compiling, one long prefill
NOTE_WIDTH = 160  # the whole message is in the record
BASELINES = (Role.BASELINE, Role.BASELINE_AGAIN)

RunTask = Callable[[Task, OnEvent, float], TaskResult]


class Runner(Protocol):
    """Runs tasks in processes of their own, some side by side (`supervisor.Processes`)."""

    def __call__(self, task: Task, on_event: OnEvent, silence_s: float) -> TaskResult:
        """What came of a task; KeyboardInterrupt once `stop` was called."""

    def stop(self) -> None:
        """End every worker, those of other threads too."""


class Show(Protocol):
    """Shows how far a worker is."""

    def __call__(self, done: int, total: int, detail: str = "") -> None: ...


class Workers:
    """The workers of one run, and the ids of the records that hold what they sent.

    `about` goes into every opening record, the `promise` of a protocol file and its `cell` into
    all of them; `run` does a task in a process of its own. `name` is the id of the run, where it
    has one.
    """

    def __init__(
        self,
        ledger: Ledger,
        reporter: Reporter,
        *,
        about: Mapping[str, Json],
        run: RunTask = run_task,
        promise: Promise | None = None,
        cell: Cell | None = None,
        name: str = "",
    ) -> None:
        self.run = name or new_run()
        self.cites: list[str] = []
        self.left_out: dict[str, ArmFailure] = {}
        self._ledger = ledger
        self._reporter = reporter
        self._about: dict[str, Any] = dict(about)
        self._run_task = run
        self._marks = _marks(promise, cell)
        self._promised = (promise.registration,) if promise and promise.registration else ()
        self._known: dict[str, TaskResult] = {}
        self._interrupted = False

    def go_on(self, past: Past) -> None:
        """Be the run that stopped: what it has closed is not measured again.

        Raises `UsageError` where it was measured with something else than is here now.
        """
        if past.results:
            names = ", ".join(past.results)
            self._reporter.note(f"run {past.run} goes on; in the ledger already: {names}")
        sources, environment = self._about.get("sources", {}), self._about.get("environment", {})
        for change in past.differences(sources, environment):
            self._reporter.note(f"not as before: {change}")
        self.run = past.run
        self.cites.extend(past.cites)
        self.left_out.update(past.left_out)
        self._known.update(past.results)

    def holds(self, session: int | str) -> bool:
        """Whether this session was closed before the run stopped."""
        return str(session) in self._known

    def held(self, session: int | str, kind: type[_R]) -> _R:
        """What the ledger holds of a session that was closed before."""
        known = self._known[str(session)]
        if not isinstance(known, kind):
            raise LedgerError(
                f"session {session} of run {self.run} holds a {type(known).__name__}, not a "
                f"{kind.__name__}",
                hint="start a new run without --resume",
            )
        return known

    def work(self, session: int | str, task: Task, kind: type[_R], show: Show) -> _R:
        """The result of one worker, without arms that no worker survives; of a session that was
        closed before, what the ledger holds."""
        if self.holds(session):
            show(1, 1, "in the ledger already")
            return self.held(session, kind)
        while True:
            overseer = Overseer(show, task)
            sent = self._without_lost(task)
            try:
                result = self._recorded(session, sent, overseer)
            except WorkerFailed as error:
                self._leave_out(sent, overseer, error)
                continue
            if not isinstance(result, kind):
                raise AttnbenchError(
                    f"the worker sent a {type(result).__name__}, not a {kind.__name__}"
                )
            return result

    def _leave_out(self, task: Task, overseer: Overseer, error: WorkerFailed) -> None:
        """Blame the arm that was running; raises the error again where there is none to blame."""
        parts = parts_of(task)
        arms = [arm for part in parts for arm in part.bench.arms]
        lost = next((arm for arm in arms if arm.label == overseer.busy), None)
        if lost is None or lost.role in BASELINES or lost.label in parts[0].bench.left_out:
            raise error
        if lost.label in self.left_out:  # by a worker beside this one
            return
        reason = error.reason or (Reason.HUNG if isinstance(error, WorkerHung) else "")
        self.left_out[lost.label] = ArmFailure(
            type=type(error).__name__,
            message=error.message,
            hint=error.hint,
            during=overseer.at,
            reason=str(reason),
        )
        why = shorten(error.message, NOTE_WIDTH, placeholder=" …")
        self._reporter.note(f"left out from here on: {lost.label}: {why}")

    def _without_lost(self, task: Task) -> Task:
        if isinstance(task, SweepTask):
            parts = tuple(self._part_without_lost(part) for part in task.parts)
            return msgspec.structs.replace(task, parts=parts)
        return self._part_without_lost(task)

    def _part_without_lost(self, task: TaskPart) -> TaskPart:
        bench = task.bench
        if isinstance(
            task, MemoryTask | QualityTask | FitTask
        ):  # these have no place for a broken arm
            kept = tuple(arm for arm in bench.arms if arm.label not in self.left_out)
            bench = msgspec.structs.replace(bench, arms=kept)
            if not isinstance(task, QualityTask):
                return msgspec.structs.replace(task, bench=bench)
        left_out = {**bench.left_out, **self.left_out}
        return msgspec.structs.replace(
            task, bench=msgspec.structs.replace(bench, left_out=left_out)
        )

    def _recorded(self, session: int | str, task: Task, overseer: Overseer) -> TaskResult:
        opened = self._record("opened", session, task=msgspec.to_builtins(task))
        try:
            result = overseer.timed(self._watched(task, overseer))
        except KeyboardInterrupt:
            self._record("aborted", session, cites=(opened,), why="interrupted")
            self._tell_interrupted()
            raise
        except AttnbenchError as error:
            self._record("failed", session, cites=(opened,), error=error.message)
            raise
        blob = self._ledger.put_blob(gzip.compress(msgspec.json.encode(result), mtime=0))
        self.cites.append(self._record("closed", session, cites=(opened,), samples=blob))
        return result

    def _tell_interrupted(self) -> None:
        """Once, however many workers ran side by side."""
        if not self._interrupted:
            self._interrupted = True
            self._reporter.note(f"interrupted: run {self.run} ends as aborted in the ledger")

    def _watched(self, task: Task, overseer: Overseer) -> TaskResult:
        """The worker's result; when it dies or hangs, the error says at what."""
        try:
            return self._run_task(task, overseer, SILENCE_S)
        except WorkerFailed as error:
            if not overseer.at:
                raise
            raise type(error)(
                f"at {overseer.at!r}: {error.message}", hint=error.hint, reason=error.reason
            ) from error

    def _record(
        self, phase: str, session: int | str, *, cites: Sequence[str] = (), **more: Json
    ) -> str:
        body: dict[str, Json] = {"phase": phase, "run": self.run, "session": session, **more}
        body |= self._marks
        if phase == "opened":
            body |= self._about
            cites = (*self._promised, *cites)
        return self._ledger.append(Kind.SESSION, body, cites=cites).id


def new_run() -> str:
    """An id for a run."""
    return secrets.token_hex(6)


def _marks(promise: Promise | None, cell: Cell | None) -> dict[str, Json]:
    marks = {"promise": promise, "cell": cell}
    return {name: msgspec.to_builtins(mark) for name, mark in marks.items() if mark is not None}
