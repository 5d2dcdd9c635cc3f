"""`attnbench memory`: KV memory of several methods, and the largest context that fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli.common import console, numbers, require_appendable
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath
from attnbench.errors import Exit, UsageError

if TYPE_CHECKING:
    from attnbench.measure.memory_plan import MemoryPlan
    from attnbench.protocol.footprint import FootprintResult


def memory(
    model: Annotated[
        str,
        typer.Option(help="A hub id, a folder, a .gguf file, preset:NAME, or embedded."),
    ] = "embedded",
    ctx: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,…",
            help="Cached tokens; several with commas.",
            show_default="1024, or what the model has",
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,…", help="Sequences decoded together; several with commas.")
    ] = "1",
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="As in `attnbench decode`; repeat for more. sdpa is measured beside them.",
            show_default="every exact arm, int8_kv and sink_window",
        ),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Find the largest context that fits, for every method."),
    ] = False,
    limit: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="With --fit: bytes for weights and caches, as in 8GiB.",
            show_default="all that is free on a GPU, 70 % of it on a CPU",
        ),
    ] = "",
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, float16 or bfloat16.",
            show_default="bfloat16 on CUDA, float32 on a CPU",
        ),
    ] = "",
    device: Annotated[
        str, typer.Option(help="cuda or cpu.", show_default="cuda if there is one")
    ] = "",
    ledger: LedgerPath = DEFAULT,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show arms, bytes and the limit; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the KV memory of several methods, or find the largest context that fits.

    At a cell, four figures an arm, each in a process that holds this arm and its cache alone:
    bytes reachable from its tensors, allocated, reserved, and the process's own. With --fit,
    contexts are tried until the largest is known to one per cent; running out of memory ends a
    trial, never the run. No weights are loaded: --fit holds as many bytes in their place.

    Exit codes: 0 measured, 1 an error, 2 wrong usage, 12 a method that was asked for has no
    figures, 13 the ledger is broken, 130 interrupted.

    Examples:

    attnbench memory

    attnbench memory --model preset:llama-3.1-8b --ctx 32768,131072 --method int8_kv

    attnbench memory --fit --model preset:llama-3.2-1b --batch 1,4

    attnbench memory --fit --limit 2GiB --method int8_kv --json
    """
    from attnbench.ledger import Ledger
    from attnbench.measure.memory_plan import MemoryRequest, bytes_of, plan_memory

    book = Ledger(ledger)
    require_appendable(book)
    if limit and not fit:
        raise UsageError("--limit goes with --fit", hint="add --fit, or leave --limit out")
    if ctx is not None and fit:
        raise UsageError("--fit finds the context", hint="leave --ctx out")
    request = MemoryRequest(
        model=model,
        contexts=numbers("--ctx", ctx) if ctx is not None else (None,),
        batches=numbers("--batch", batch),
        methods=tuple(method or []),
        dtype=dtype,
        device=device,
        fit=fit,
        limit_bytes=bytes_of(limit) if limit else None,
    )
    planned = plan_memory(request)
    if plan:
        _show_plan(planned, as_json=as_json)
        return
    _show(_measured(planned, ledger, as_json=as_json), ledger, as_json=as_json, asked=planned)


def _measured(plan: MemoryPlan, path: Path, *, as_json: bool) -> FootprintResult:
    from rich.console import Console

    from attnbench.ledger import Ledger
    from attnbench.measure.memory_run import measure_memory
    from attnbench.report.progress import reporter

    with reporter(Console(stderr=True), json=as_json) as report:
        return measure_memory(plan, Ledger(path), report)


def _show_plan(plan: MemoryPlan, *, as_json: bool) -> None:
    from attnbench.report.memory_table import memory_plan_json, memory_plan_table

    if as_json:
        typer.echo(memory_plan_json(plan))
    else:
        console().print(memory_plan_table(plan))


def _show(result: FootprintResult, path: Path, *, as_json: bool, asked: MemoryPlan) -> None:
    """Print what was found, and leave with 12 where a method that was asked for has nothing."""
    import msgspec

    from attnbench.report.memory_table import memory_table

    if as_json:
        typer.echo(msgspec.json.encode(result).decode())
    else:
        console().print(memory_table(result))
        typer.echo(f"run {result.run} is in {path}")
    wanted = {arm.label for arm in asked.arms if arm.asked_for}
    if any(wanted & place.failures.keys() for place in result.places):
        raise typer.Exit(Exit.VOID)
