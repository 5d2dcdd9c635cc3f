"""`attnbench methods tune-products`: which products of a step to compute by own kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli.tabular import Grid, show

if TYPE_CHECKING:
    from attnbench.kernels.product_launch import ChosenProduct
    from attnbench.measure.answers import ProductResult
    from attnbench.measure.products_tuned import ProductSummary, ProductTuning


def tune_products(
    model: Annotated[
        str, typer.Option(help="hub id, folder, .gguf file or preset:NAME.")
    ] = "preset:llama-3.2-1b",
    batch: Annotated[int, typer.Option(min=1, help="Sequences: rows of every product.")] = 1,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    within: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Time for trying: what does not fit is left untried, and said.",
            show_default="no limit",
        ),
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write what was faster to this table, beside what it holds."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and inputs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Find the products of a model's compiled step that own kernels compute faster.

    The step is compiled and captured with attention that costs nothing. Every
    launch is compared with float64 first, and the step's logits with those of
    the library's. `attnbench decode --products FILE` uses what was found, the
    same for every arm.

    Exit codes: 0 done (also where the library stays), 1 not measured, 2 wrong usage.

    Examples:

    attnbench methods tune-products --model preset:llama-3.2-1b --batch 4 --within 240

    attnbench methods tune-products --model preset:qwen3-0.6b --out mine.json --json
    """
    import msgspec
    from rich.console import Console

    from attnbench.measure.products_tuned import (
        entry_of,
        plan_products,
        run_products,
        summary_of,
    )
    from attnbench.models.product_table import read_products, write_products
    from attnbench.report.progress import reporter

    if out is not None and out.exists():
        read_products(out)  # before minutes of measuring
    tuning = plan_products(model, batch=batch, dtype=dtype, within_s=within, seed=seed)
    with (
        reporter(Console(stderr=True), json=as_json) as report,
        report.stage(f"products of {model} at batch {batch} on {tuning.plan.facts.name}") as stage,
    ):
        result = run_products(tuning, stage.update)
    entry, found = entry_of(tuning, result), summary_of(result)
    if out is not None and entry is not None:
        write_products(out, [entry])
    if as_json:
        said = {"device": result.device, "summary": found, "entry": entry, "raw": result}
        typer.echo(msgspec.json.encode(said).decode())
        return
    show_products(tuning, result, found)
    if entry is None:
        typer.echo("The library's products stay: own kernels were not faster in every round.")


def show_products(tuning: ProductTuning, result: ProductResult, found: ProductSummary) -> None:
    """One line a product, then the step's figures and what failed."""
    counts = dict(result.sites)
    show(
        Grid(
            columns=("product", "rows", "columns", "depth", "a step", "kernel", "launch"),
            rows=[line(each, counts.get(each.shape, 0)) for each in found.products],
            right=frozenset(("rows", "columns", "depth", "a step")),
        )
    )
    typer.echo(
        f"{tuning.plan.info.spec}, {tuning.plan.dtype}, compiled, attention that costs nothing: "
        f"{found.library_us:.1f} µs a step by the library ({found.library_gb_s:.0f} GB/s of "
        f"weights), {found.tried} tried, {found.untried} left untried."
    )
    if found.own_us is not None and found.saved_percent_range is not None:
        low, high = found.saved_percent_range
        typer.echo(
            f"With these products {found.own_us:.1f} µs ({found.own_gb_s:.0f} GB/s): "
            f"{found.saved_percent:.2f} % less ({low:.2f} to {high:.2f} % by round)."
        )
    for why in found.failures:
        typer.echo(f"failed: {why}")


def line(product: ChosenProduct, count: int) -> tuple[str, ...]:
    """A product as text."""
    shape, launch = product.shape, product.launch
    names = ("block_n", "num_warps", "on_an_sm", "tiles", "let_go", "block_k", "ahead")
    parts = ((name, getattr(launch, name)) for name in names)
    return (
        shape.form,
        *(str(each) for each in (shape.rows, shape.columns, shape.depth, count)),
        launch.kernel,
        ",".join(f"{name}={value}" for name, value in parts if value),
    )
