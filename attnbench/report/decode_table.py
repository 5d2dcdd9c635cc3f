"""The table of a decode run: latency, interval, verdicts, quality, memory and floor side by side.

A speed never stands without the quality verdict beside it. Where the terminal is too narrow for a
column each, columns that belong together share one, one above the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

from msgspec import UNSET
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from attnbench.measure.chosen import PilotArm
from attnbench.protocol.cell import Cell, Role
from attnbench.protocol.result import ArmResult
from attnbench.protocol.verdict import Verdict
from attnbench.report import words
from attnbench.report.decode_notes import notes
from attnbench.report.words import ABSENT, arm_name, cell_title

NOBODY: Mapping[Cell, Sequence[PilotArm]] = MappingProxyType({})
STYLES = {
    "FASTER": "green",
    "SMALLER": "green",
    "PASS": "green",
    "SLOWER": "red",
    "LARGER": "red",
    "KILL": "red",
    "VOID": "magenta",
    "MARGINAL": "yellow",
    "INCONCLUSIVE": "yellow",
}
# Columns that belong together; a narrow terminal gets one column for each group.
COLUMNS = (
    ("arm", ""),
    ("ms/step", "× floor"),
    ("speed-up", "95 % interval"),
    ("latency", "because"),
    ("quality", "cos mean / p1"),
    ("KV MiB", "captured"),
)
LEFT = ("arm", "latency", "quality")


def decode_table(
    results: Sequence[ArmResult], alone: Mapping[Cell, Sequence[PilotArm]] = NOBODY
) -> RenderableType:
    """One table a cell, in the order of the results, with the notes that go with it; `alone` are
    the arms of each cell that were in the pilot alone."""
    cells = list(dict.fromkeys(result.cell for result in results))
    return Group(
        *(
            _cell_block(cell, [r for r in results if r.cell == cell], alone.get(cell, ()))
            for cell in cells
        )
    )


def _cell_block(
    cell: Cell, results: Sequence[ArmResult], alone: Sequence[PilotArm]
) -> RenderableType:
    title = Text(cell_title(cell), style="bold")
    lines = [Text(line) for line in notes(results, alone)]
    return Group(title, _CellTable(results), *lines, Text())


@dataclass(frozen=True)
class _CellTable:
    """The rows of one cell, as wide as the terminal allows."""

    results: Sequence[ArmResult]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self._wide()
        fits = Measurement.get(console, options.update(width=10_000), wide).maximum
        yield wide if fits <= options.max_width else self._narrow()

    def _wide(self) -> Table:
        columns = [header for header in chain(*COLUMNS) if header]
        return self._table(columns, [_wide_row(result) for result in self.results])

    def _narrow(self) -> Table:
        columns = ["\n".join(filter(None, group)) for group in COLUMNS]
        return self._table(columns, [_narrow_row(result) for result in self.results])

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[Text]]) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in columns:
            left = column.startswith((*LEFT, "because"))
            table.add_column(column, justify="left" if left else "right", overflow="fold")
        for result, row in zip(self.results, rows, strict=True):
            table.add_row(*row, style="dim" if result.role is Role.CONTROL else "")
        return table


def _wide_row(result: ArmResult) -> list[Text]:
    return [Text(arm_name(result)), *chain(*_figures(result))]


def _narrow_row(result: ArmResult) -> list[Text]:
    """The arm's parameters below its name, and each pair of figures one above the other."""
    name, _, parameters = arm_name(result).partition(",")
    arm = Text("\n".join(filter(None, (name, parameters))))
    return [arm, *(Text("\n").join(pair) for pair in _figures(result))]


def _figures(result: ArmResult) -> tuple[tuple[Text, Text], ...]:
    """In the order of COLUMNS, without the arm."""
    verdict = result.verdict
    return (
        (Text(words.latency(result)), Text(words.floor_multiple(result))),
        _speed_up(result),
        (_verdict(verdict.latency), Text(words.because(result))),
        (_verdict(verdict.quality), Text(words.cosines(result))),
        (
            Text(words.kv_mib(result), style=STYLES.get(verdict.memory, "")),
            Text(words.captured(result)),
        ),
    )


def _speed_up(result: ArmResult) -> tuple[Text, Text]:
    """A void ratio is shown, and does not stand out."""
    style = "dim" if result.verdict.latency == Verdict.VOID else ""
    interval = ABSENT if result.ratio is UNSET else words.limits(result.ratio)
    return Text(words.speed_up(result), style), Text(interval, style)


def _verdict(verdict: str) -> Text:
    return Text(verdict or ABSENT, style=STYLES.get(verdict, ""))
