"""Several tasks of one kind in one process, which loads the model once.

A part that does not fit, or cannot run, costs itself alone; its memory is given back before the
next one begins.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch

from attnbench.errors import AttnbenchError, WorkerFailed
from attnbench.measure.answers import PartFailure, PartResult, SweepResult
from attnbench.measure.events import Kept, Mark, Talk, Wanted
from attnbench.measure.failing import arm_failure
from attnbench.measure.overseer import part_cells
from attnbench.measure.tasks import (
    FitTask,
    MemoryTask,
    PilotTask,
    ProfileTask,
    QualityTask,
    SessionTask,
    SweepTask,
    TaskPart,
)

if TYPE_CHECKING:
    from attnbench.measure.household import Household

Perform = Callable[[TaskPart, Talk], PartResult]


@dataclass(frozen=True)
class PartTalk:
    """The words of one part: its cells numbered among all, and its place in what is shown."""

    talk: Talk
    first_cell: int
    title: str

    def progress(self, done: int, total: int, detail: str) -> None:
        """As the worker says it, with the place."""
        self.talk.progress(done, total, f"{self.title}: {detail}")

    def mark(self, mark: Mark) -> None:
        """With the number of the cell among all."""
        self.talk.mark(msgspec.structs.replace(mark, cell=mark.cell + self.first_cell))

    def ask(self, kept: Kept) -> Wanted:
        """Likewise."""
        return self.talk.ask(msgspec.structs.replace(kept, cell=kept.cell + self.first_cell))


def run_sweep(task: SweepTask, talk: Talk) -> SweepResult:
    """What each part came to, in their order."""
    return swept(task, talk, performer(task))


def swept(task: SweepTask, talk: Talk, perform: Perform) -> SweepResult:
    """The same with each part done by `perform`."""
    results: list[PartResult | PartFailure] = []
    cells = 0
    for part in task.parts:
        title = f"{part.bench.context} × {part.bench.batch}"
        results.append(_contained(part, PartTalk(talk, cells, title), perform))
        cells += part_cells(part)
        give_back(part.bench.device)
    return SweepResult(parts=tuple(results))


def _contained(part: TaskPart, talk: Talk, perform: Perform) -> PartResult | PartFailure:
    try:
        return perform(part, talk)
    except WorkerFailed:  # what one arm did to the process leaves nothing for the other parts
        raise
    except AttnbenchError as error:
        return PartFailure(why=arm_failure(error, "set-up"))


def give_back(device: str) -> None:
    """Return the memory of what is gone to the device."""
    gc.collect()
    if device == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def performer(task: SweepTask) -> Perform:
    """What does a part; only what this kind of task needs is imported."""
    first = task.parts[0]
    if isinstance(first, MemoryTask | FitTask):
        return _without_model
    from attnbench.measure.household import Household

    household = Household(first.bench)
    return lambda part, talk: _with_model(part, talk, household)


def _without_model(part: TaskPart, talk: Talk) -> PartResult:
    """Memory is measured in forked children: nothing may hold the device before them."""
    if isinstance(part, FitTask):
        from attnbench.measure.fit import run_fit

        return run_fit(part, talk.progress)
    if not isinstance(part, MemoryTask):
        raise WorkerFailed("the parts of a sweep are of one kind")
    from attnbench.measure.memory import run_memory

    return run_memory(part, talk.progress)


def _with_model(part: TaskPart, talk: Talk, household: Household) -> PartResult:
    if isinstance(part, SessionTask):
        from attnbench.measure.session import run_session

        return run_session(part, talk, household)
    if isinstance(part, PilotTask):
        from attnbench.measure.pilot import run_pilot

        return run_pilot(part, talk, household)
    if isinstance(part, ProfileTask):
        from attnbench.measure.profiling import run_profile

        return run_profile(part, talk, household)
    if not isinstance(part, QualityTask):
        raise WorkerFailed("the parts of a sweep are of one kind")
    from attnbench.measure.judging import run_judging

    return run_judging(part, talk, household)
