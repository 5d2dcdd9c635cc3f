"""`attnbench methods tune`: the fastest kernel configurations, and how far they are behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli.options import AsJson
from attnbench.cli.tabular import Grid, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attnbench.measure.tuned import CellSummary, Tuning

CONTEXTS = [4096, 32768, 131072]
BATCHES = [1, 4, 16]
HEAD_DIMS = [64, 128]


def tune(
    method: Annotated[
        str, typer.Argument(help="A method with kernel configurations.")
    ] = "flash_decode",
    ctx: Annotated[
        list[int] | None,
        typer.Option(help="Cached tokens; repeat for more.", show_default="4096, 32768, 131072"),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(help="Sequences; repeat for more.", show_default="1, 4, 16"),
    ] = None,
    head_dim: Annotated[
        list[int] | None,
        typer.Option(help="Head dimension; repeat for more.", show_default="64, 128"),
    ] = None,
    kv_heads: Annotated[int, typer.Option(help="KV heads.")] = 8,
    group: Annotated[int, typer.Option(help="Query heads of a KV head.")] = 4,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="Time this method beside it; exact: every exact arm. Repeat for more.",
            show_default="none",
        ),
    ] = None,
    within: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Time for all cells together: what does not fit is left untried, and said.",
            show_default="no limit",
        ),
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the winners to this table, beside what it holds."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of caches, inputs and order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find the fastest kernel configuration in a grid of shapes, on this GPU.

    Attention of a few layers alone, over noise, in a CUDA graph, the caches
    together larger than the GPU's own. Each output is compared with float64
    before it is timed; arms near the fastest are then timed in rounds.
    `attnbench decode --table FILE` uses the winners.

    Exit codes: 0 done, 1 no cell has figures, 2 wrong usage.

    Examples:

    attnbench methods tune flash_decode --against exact --within 330 --json

    attnbench methods tune int8_kv --ctx 32768 --batch 4 --head-dim 128 --out mine.json
    """
    import msgspec
    from rich.console import Console

    from attnbench.measure.tuned import TuneRequest, entries_of, plan_tuning, run, summary
    from attnbench.methods.kernel_table import read_table, write_entries
    from attnbench.report.progress import reporter

    if out is not None and out.exists():
        read_table(out)  # before minutes of measuring
    request = TuneRequest(
        method=method,
        contexts=tuple(ctx or CONTEXTS),
        batches=tuple(batch or BATCHES),
        head_dims=tuple(head_dim or HEAD_DIMS),
        kv_heads=kv_heads,
        group=group,
        dtype=dtype,
        against=tuple(against or ()),
        within_s=within,
        seed=seed,
    )
    tuning = plan_tuning(request)
    with reporter(Console(stderr=True), json=as_json) as report:
        for label, why in tuning.left_out.items():
            report.note(f"left out: {label}: {why}")
        with report.stage(f"{len(tuning.task.cells)} cells on {tuning.facts.name}") as stage:
            result = run(tuning, stage.update)
    entries = entries_of(tuning, result)
    if out is not None:
        write_entries(out, entries)
    cells = [summary(tuning, result.label, found) for found in result.cells]
    if as_json:
        printed = {
            "device": result.device,
            "left_out": tuning.left_out,
            "cells": cells,
            "entries": entries,
        }
        typer.echo(msgspec.json.encode(printed).decode())
    else:
        show_cells(tuning, cells)
    raise typer.Exit(0 if entries else 1)


def show_cells(tuning: Tuning, cells: Sequence[CellSummary]) -> None:
    """One line a cell, then what failed and why."""
    show(
        Grid(
            columns=(
                *("tokens", "batch", "D", "layers", "µs/layer", "GB/s", "fastest other"),
                *("µs/layer of it", "behind %", "µs behind", "tried", "configuration"),
            ),
            rows=[line(cell) for cell in cells],
            right=frozenset(
                (
                    *("tokens", "batch", "D", "layers", "µs/layer", "GB/s", "µs/layer of it"),
                    *("behind %", "µs behind", "tried"),
                )
            ),
        )
    )
    typer.echo(
        f"{tuning.method.label} on {tuning.facts.name}, {tuning.task.dtype}, "
        f"{tuning.task.cells[0].kv_heads} KV heads, group {tuning.task.cells[0].group}: attention "
        "alone, medians of rounds (of first timings for arms that were not near the fastest)."
    )
    for why in dict.fromkeys(text for cell in cells for text in failures(cell)):
        typer.echo(why)


def line(cell: CellSummary) -> tuple[str, ...]:
    """A cell as text; "-" for what was not measured."""

    def figure(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    config = cell.launch or {}
    return (
        *(str(each) for each in (cell.cell.context, cell.cell.batch, cell.cell.head_dim)),
        str(cell.layers),
        figure(cell.method_us, 2),
        figure(cell.gb_s, 0),
        cell.fastest or "-",
        figure(cell.fastest_us, 2),
        figure(cell.behind_percent, 2),
        figure(cell.behind_us, 2),
        f"{cell.tried} of {cell.tried + cell.refused + cell.untried}",
        ",".join(f"{name}={value}" for name, value in config.items()) or "-",
    )


def failures(cell: CellSummary) -> list[str]:
    """Why arms, or the whole cell, have no figures."""
    return [f"no figures: {label}: {why}" for label, why in cell.failures.items()]
