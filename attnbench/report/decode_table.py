"""The table of a decode run: latency, interval, verdicts, quality, memory and floor side by side.

A speed never stands without the quality verdict beside it. Where the terminal is too narrow for a
column each, columns that belong together share one, one above the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
# Columns for where there is room, and something to show.
MORE = {"tok/s": words.tokens_per_s, "J/token": words.joules_per_token}
LEFT = ("arm", "latency", "quality")


def decode_table(
    results: Sequence[ArmResult], alone: Mapping[Cell, Sequence[PilotArm]] = NOBODY
) -> RenderableType:
    """One table a cell, in the order of the results, with the notes that go with it; `alone` are
    the arms of each cell that were in the pilot alone."""
    cells = list(dict.fromkeys(result.cell for result in results))
    several = len(cells) > 1
    return Group(
        *(
            _cell_block(
                cell, [r for r in results if r.cell == cell], alone.get(cell, ()), several=several
            )
            for cell in cells
        )
    )


def _cell_block(
    cell: Cell, results: Sequence[ArmResult], alone: Sequence[PilotArm], *, several: bool
) -> RenderableType:
    first = results[0]
    mark = " · primary cell" if several and first.primary else ""
    title = Text(f"{cell_title(cell)}{mark}", style="bold")
    if not first.baseline:  # nothing was measured here, for one reason
        said = Text.assemble(_verdict(first.verdict.latency), f" ({first.verdict.latency_reason})")
        return Group(title, said, *map(Text, notes(results, alone)), Text())
    lines = [Text(line) for line in notes(results, alone)]
    return Group(title, _CellTable(results), *lines, Text())


@dataclass(frozen=True)
class _CellTable:
    """The rows of one cell, as wide as the terminal allows."""

    results: Sequence[ArmResult]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        any_width = options.update(width=10_000)
        for table in self._wide():
            if Measurement.get(console, any_width, table).maximum <= options.max_width:
                yield table
                return
        yield self._narrow()

    def _wide(self) -> Iterator[Table]:
        """From the widest on, with every figure in a column of its own."""
        usual = [header for header in chain(*COLUMNS) if header]
        rows = [_wide_row(result) for result in self.results]
        more = {
            name: [Text(said(result)) for result in self.results] for name, said in MORE.items()
        }
        told = {
            name: cells for name, cells in more.items() if any(c.plain != ABSENT for c in cells)
        }
        if told:
            wider = [[*row, *extra] for row, *extra in zip(rows, *told.values(), strict=True)]
            yield self._table([*usual, *told], wider)
        yield self._table(usual, rows)

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
