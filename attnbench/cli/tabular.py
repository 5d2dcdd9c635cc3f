"""Rows for people: a coloured table on a terminal, aligned text of full width when piped."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import typer


@dataclass(frozen=True)
class Grid:
    """A table as text; `right` names the columns of figures, `styles` colours cells by content."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[str] = frozenset()
    styles: Mapping[str, str] = field(default_factory=dict)


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

    table = Table(pad_edge=False)
    for column in grid.columns:
        is_figure = column in grid.right
        table.add_column(column, justify="right" if is_figure else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell, style=_style(cell, grid.styles)) for cell in row))
    Console().print(table)


def _style(cell: str, styles: Mapping[str, str]) -> str:
    return next((style for word, style in styles.items() if word in cell.split()), "")
