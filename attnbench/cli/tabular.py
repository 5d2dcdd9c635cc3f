"""Rows for people: a coloured table on a terminal, aligned text of full width when piped."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import typer


@dataclass(frozen=True)
class Grid:
    """A table as text; `right` names the columns of figures.

    `styles` colours a cell by the first of its words that occurs in it. The column `legend` holds
    long text that many rows share: a terminal numbers it and prints each text once, below.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[str] = frozenset()
    styles: Mapping[str, str] = field(default_factory=dict)
    legend: str = ""


def show(grid: Grid) -> None:
    """Print a grid to standard output."""
    if sys.stdout.isatty():
        _show_rich(grid)
    else:
        typer.echo("\n".join(plain_lines(grid)))


def plain_lines(grid: Grid) -> list[str]:
    """Return the header and one line a row, columns two spaces apart, nothing cut off."""
    table = [grid.columns, *grid.rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [_aligned(row, widths, grid) for row in table]


def with_legend(grid: Grid) -> tuple[Grid, list[str]]:
    """Replace the long texts of the legend's column by numbers; returns the texts in order."""
    if not grid.legend:
        return grid, []
    at = grid.columns.index(grid.legend)
    texts = list(dict.fromkeys(row[at] for row in grid.rows if row[at]))
    numbers = {"": "", **{text: str(i) for i, text in enumerate(texts, start=1)}}
    rows = [(*row[:at], numbers[row[at]], *row[at + 1 :]) for row in grid.rows]
    return replace(grid, rows=rows), texts


def _aligned(row: tuple[str, ...], widths: Sequence[int], grid: Grid) -> str:
    cells = zip(row, widths, grid.columns, strict=True)
    return "  ".join(
        cell.rjust(width) if column in grid.right else cell.ljust(width)
        for cell, width, column in cells
    ).rstrip()


def _show_rich(grid: Grid) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    short, texts = with_legend(grid)
    table = Table(pad_edge=False, box=None, header_style="bold")
    for column in short.columns:
        is_figure = column in short.right
        table.add_column(column, justify="right" if is_figure else "left", overflow="fold")
    for row in short.rows:
        table.add_row(*(Text(cell, style=_style(cell, short.styles)) for cell in row))
    console = Console()
    console.print(table)
    for number, text in enumerate(texts, start=1):
        console.print(Text(f"{grid.legend} {number}: {text}", style="dim"))


def _style(cell: str, styles: Mapping[str, str]) -> str:
    words = cell.replace(",", " ").split()
    return next((style for word, style in styles.items() if word in words), "")
