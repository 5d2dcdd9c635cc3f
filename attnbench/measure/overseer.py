"""The parent's side of a worker's events: shows them, reads its own clock, picks what is checked.

Which timed steps are checked is drawn here, after they were timed, in a process in which the
methods under test do not run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import accumulate, cycle, islice

import msgspec

from attnbench.errors import WorkerFailed
from attnbench.measure.answers import (
    CellSamples,
    PartFailure,
    PartResult,
    PilotResult,
    ProductResult,
    SessionResult,
    SweepResult,
    TaskResult,
    TuneResult,
)
from attnbench.measure.events import Doing, Kept, Mark, Pick, Progress, Wanted
from attnbench.measure.tasks import PilotTask, SessionTask, Task, TaskPart, parts_of

Heard = Progress | Mark | Kept
Show = Callable[[int, int, str], None]
ALWAYS_PROBED, PROBED_SHARE = 3, 0.25  # sessions of a run, and the share of the ones after them
# Of visits, in one layer, beside every rehearsal and one of every arm that is checked in all.
MORE_PICKS = 2
REHEARSED_LAYERS = 3  # that are checked of every rehearsal, at most


class Overseer:
    """Hears one worker. `now` is the parent's clock in seconds, `rng` the source of secrets.

    `task` is what the worker does: of a run's sessions the first few are probed, of the later ones
    a share, drawn and told when the last cell has been timed.
    """

    def __init__(
        self,
        show: Show,
        task: Task | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.at = ""  # what the worker said last that it is at
        self.busy = ""  # the arm that is running now, empty when none is
        self._show = show
        self._now = now
        self._rng = rng or random.SystemRandom()
        parts = () if task is None else parts_of(task)
        self._cells = [part_cells(part) for part in parts] or [1]
        self._may_be_spared = any(
            isinstance(part, SessionTask) and part.session >= ALWAYS_PROBED for part in parts
        )
        self._probe: dict[int, bool] = {}  # by the last cell of a part
        self._began = 0.0
        self._took_us: dict[tuple[int, int, str], float] = {}  # by cell, block and arm

    def __call__(self, event: Heard) -> Wanted | None:
        """Hear an event; the answer, where it is a question."""
        if isinstance(event, Mark):
            self._mark(event)
        elif isinstance(event, Kept):
            self.at, self.busy = "checks of timed steps", ""
            picks = tuple(self._picks(event))
            return Wanted(picks=picks, probe=self._probes_after(event.cell))
        else:
            self.at, self.busy = event.detail, ""
            self._show(event.done, event.total, event.detail)
        return None

    def timed(self, result: TaskResult) -> TaskResult:
        """The result, each visit with what the parent's clock said of it."""
        if isinstance(result, TuneResult | ProductResult):  # which have no visits
            return result
        if not isinstance(result, SweepResult):
            return self._part(result, 0)
        before = accumulate(self._cells, initial=0)
        parts = tuple(
            part if isinstance(part, PartFailure) else self._part(part, first)
            for part, first in zip(result.parts, before, strict=False)
        )
        return msgspec.structs.replace(result, parts=parts)

    def _part(self, result: PartResult, first: int) -> PartResult:
        """The same of one part, whose first cell has this number."""
        if isinstance(result, SessionResult):
            return self._session(result, first)
        if isinstance(result, PilotResult):
            session = self._session(result.session, first)
            return msgspec.structs.replace(result, session=session)
        return result

    def _probes_after(self, cell: int) -> bool:
        """Whether arms are probed after this cell; drawn when the last one of a part is over."""
        if not self._may_be_spared or cell + 1 not in accumulate(self._cells):
            return True
        self._probe[cell] = self._rng.random() < PROBED_SHARE
        return self._probe[cell]

    def _mark(self, mark: Mark) -> None:
        now = self._now()
        self.busy = mark.arm
        self.at = f"{mark.doing.value} of {mark.arm}"
        if mark.doing is Doing.TIMED:
            self._began = now
        elif mark.doing is Doing.VISITED:
            self._took_us[mark.cell, mark.block, mark.arm] = (now - self._began) * 1e6

    def _picks(self, kept: Kept) -> Iterator[Pick]:
        for arm, visits in kept.visits.items():
            whole, *others = self._rng.sample(range(visits), visits)
            yield from (Pick(arm=arm, visit=whole, layer=layer) for layer in range(kept.layers))
            rehearsed = [visit for visit in kept.rehearsed.get(arm, ()) if visit < visits]
            for visit in rehearsed:
                layers = self._rng.sample(range(kept.layers), min(REHEARSED_LAYERS, kept.layers))
                yield from (Pick(arm=arm, visit=visit, layer=layer) for layer in layers)
            for visit in islice(cycle((*others, whole)), MORE_PICKS):
                yield Pick(arm=arm, visit=visit, layer=self._rng.randrange(kept.layers))

    def _session(self, result: SessionResult, first: int) -> SessionResult:
        last = first + len(result.cells) - 1
        if self._probe.get(last, True) and not result.probed:
            raise WorkerFailed("the worker left out the probes that it was asked for")
        cells = tuple(self._cell(number, cell) for number, cell in enumerate(result.cells, first))
        return msgspec.structs.replace(result, cells=cells)

    def _cell(self, number: int, cell: CellSamples) -> CellSamples:
        visits = tuple(
            msgspec.structs.replace(
                visit, parent_us=self._took_us.get((number, visit.block, visit.arm), 0.0)
            )
            for visit in cell.samples.visits
        )
        samples = msgspec.structs.replace(cell.samples, visits=visits)
        return msgspec.structs.replace(cell, samples=samples)


def part_cells(part: TaskPart) -> int:
    """How many cells a task walks."""
    return len(part.cells) if isinstance(part, PilotTask | SessionTask) else 0
