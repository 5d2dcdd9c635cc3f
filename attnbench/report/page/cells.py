"""Results by cell: the newest run that stands, and the runs before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET

from attnbench.ledger.entry import model_key
from attnbench.protocol.cell import Cell, Role, Scope
from attnbench.protocol.result import ArmResult
from attnbench.report.page.reading import Arm, Reading, day
from attnbench.report.words import CEILING


@dataclass(frozen=True)
class Run:
    """The arms of one run in one cell, as they were recorded."""

    name: str
    cell: Cell
    arms: Sequence[Arm]

    @property
    def place(self) -> Cell:
        """The cell, equal for the same model's file wherever it lay."""
        content = str(self.arms[0].result.environment.get("model_identity", ""))
        return msgspec.structs.replace(self.cell, model=model_key(self.cell.model, content))

    @property
    def day(self) -> str:
        return day(self.arms[-1].record)

    @property
    def stands(self) -> bool:
        """Whether any of it still counts."""
        return any(arm.counts for arm in self.arms)

    @property
    def on_gpu(self) -> bool:
        return all(arm.on_gpu for arm in self.arms)

    @property
    def baseline(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.result.role is Role.BASELINE), None)

    @property
    def sessions(self) -> int:
        """Sessions behind the intervals; those that were asked for where there is no interval."""
        found = [a.result.statistics for a in self.arms if a.result.statistics is not UNSET]
        asked = self.arms[0].result.protocol.get("sessions")
        return max((s.sessions for s in found), default=asked if isinstance(asked, int) else 0)

    @property
    def protocol(self) -> str:
        return str(self.arms[0].result.protocol.get("name") or "unnamed")

    @property
    def measured_as(self) -> str:
        """What has to stand beside an absolute time."""
        counted = f"{self.sessions} session{'' if self.sessions == 1 else 's'}"
        return f"{counted}, {self.protocol} protocol, {self.cell.device}"

    def rows(self) -> list[Arm]:
        """The baseline pair, then from fastest to slowest; last what no longer counts."""
        pair = [arm for arm in self.arms if not arm.is_under_test]
        rest = [arm for arm in self.arms if arm.is_under_test]
        return pair + sorted(rest, key=_slowness)


@dataclass(frozen=True)
class CellRuns:
    """A cell and its runs, newest first; `shown` is the newest that stands."""

    cell: Cell
    shown: Run
    others: Sequence[Run] = field(default=())


@dataclass(frozen=True)
class Ladder:
    """One model measured at several contexts, all else equal; the runs by growing context."""

    runs: Sequence[Run]

    @property
    def cell(self) -> Cell:
        return self.runs[0].cell

    @property
    def on_gpu(self) -> bool:
        return all(run.on_gpu for run in self.runs)


def cells(reading: Reading) -> tuple[CellRuns, ...]:
    """The cells: by model, then whole steps before attention alone, then context."""
    by_cell: dict[Cell, list[Run]] = {}
    for run in _runs(reading.arms):
        by_cell.setdefault(run.place, []).append(run)
    found = (_cell_runs(runs[::-1]) for runs in by_cell.values())
    return tuple(sorted(found, key=lambda each: _place(each.cell)))


def ladders(found: Sequence[CellRuns]) -> tuple[Ladder, ...]:
    """The models of which there is something to see against context."""
    by_rest: dict[tuple[object, ...], list[Run]] = {}
    for each in found:
        if each.shown.stands:
            by_rest.setdefault(_all_but_context(each.shown.place), []).append(each.shown)
    return tuple(
        Ladder(tuple(sorted(runs, key=lambda run: run.cell.context)))
        for runs in by_rest.values()
        if len(runs) > 1
    )


def is_ceiling(result: ArmResult) -> bool:
    return result.method == CEILING


def _runs(arms: Sequence[Arm]) -> Iterator[Run]:
    """In the order in which they ended."""
    by_run: dict[tuple[str, Cell], list[Arm]] = {}
    for arm in arms:
        by_run.setdefault((arm.result.run, arm.result.cell), []).append(arm)
    for (name, cell), of_run in by_run.items():
        yield Run(name, cell, tuple(of_run))


def _cell_runs(newest_first: Sequence[Run]) -> CellRuns:
    shown = next((run for run in newest_first if run.stands), newest_first[0])
    return CellRuns(shown.cell, shown, tuple(run for run in newest_first if run is not shown))


def _place(cell: Cell) -> tuple[object, ...]:
    return (
        cell.model,
        cell.scope is not Scope.STEP,
        cell.mode.value,
        cell.device,
        cell.dtype,
        cell.batch,
        cell.context,
    )


def _all_but_context(cell: Cell) -> tuple[object, ...]:
    return cell.model, cell.batch, cell.dtype, cell.scope, cell.mode, cell.device


def _slowness(arm: Arm) -> tuple[bool, float]:
    ratio = arm.result.ratio
    return not arm.counts, float("inf") if ratio is UNSET else -ratio.estimate
