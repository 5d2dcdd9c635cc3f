"""`attnbench decode`: the main job, from a plan to verdicts in the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from attnbench.cli.common import console, numbers, require_appendable
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath, ShowPlan
from attnbench.errors import UsageError
from attnbench.protocol.cell import Mode, Scope
from attnbench.quality.levels import Level

if TYPE_CHECKING:
    from collections.abc import Callable

    from attnbench.errors import AttnbenchError
    from attnbench.ledger import Ledger
    from attnbench.measure.chosen import PilotArm
    from attnbench.measure.plan import DecodeRequest
    from attnbench.measure.sweep_plan import SweepPlan
    from attnbench.measure.workers import Runner
    from attnbench.protocol.cell import Cell
    from attnbench.protocol.result import ArmResult


def decode(
    model: Annotated[
        str,
        typer.Option(
            help="A hub id, a folder, a .gguf file, preset:NAME (random weights), or embedded."
        ),
    ] = "embedded",
    ctx: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS,…",
            help="Cached tokens; several, separated by commas, are measured in one run.",
            show_default="1024, or what the model has",
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(metavar="N,…", help="Sequences decoded together; several with commas."),
    ] = "1",
    primary: Annotated[
        str,
        typer.Option(
            metavar="CTXxBATCH",
            help="Of several cells the one whose verdicts stand alone; those of all others share "
            "one error rate.",
            show_default="the largest that fits",
        ),
    ] = "",
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="A method with its parameters, as in sink_window,window=512; or module:Class, or "
            "file.py:Class. Repeat for more. Exact arms and zero_cost run beside them.",
            show_default="int8_kv and sink_window",
        ),
    ] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            metavar="SCOPE",
            help="step: the whole decode step; attention: attention of all layers alone. Repeat "
            "for both.",
            show_default="step",
        ),
    ] = None,
    mode: Annotated[
        list[Mode] | None,
        typer.Option(
            metavar="MODE",
            help="compiled: the model's layers compiled, the step captured in a CUDA graph; graph: "
            "captured alone; eager: as called from Python. Repeat for several.",
            show_default="compiled on CUDA, graph in scope attention, eager on a CPU",
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="canonical, rigorous, sequential (rigorous, may stop early), or "
            "quick (which can earn no verdict)."
        ),
    ] = "canonical",
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
    text: Annotated[
        Path | None,
        typer.Option(help="Text for prompts and quality.", show_default="numpy's documentation"),
    ] = None,
    quality: Annotated[
        Level,
        typer.Option(
            metavar="LEVEL",
            help="Judge outputs against SDPA on real text. brief: outputs and logits; quick: every "
            "gate; full: every gate on more text.",
        ),
    ] = Level.BRIEF,
    no_quality: Annotated[bool, typer.Option("--no-quality", help="Judge no quality.")] = False,
    slower_allowed: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Exit with 10 when a method is more than this many percent slower."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of a session on a CPU.")] = 1,
    table: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Kernel configurations to use where they were measured, as `attnbench methods "
            "tune` writes them; none: try all.",
            show_default="the project's own",
        ),
    ] = "",
    products: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="In mode compiled, products to compute by own kernels where they were measured as "
            "the faster ones, as `attnbench methods tune-products` writes them; none: the "
            "library's alone.",
            show_default="the project's own",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of schedule, tokens and noise.")] = 0,
    ledger: LedgerPath = DEFAULT,
    breakdown: Annotated[
        bool,
        typer.Option("--breakdown", help="Show where the baseline's step goes, as a bar."),
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw latency against context, with floors and ceilings, into a PNG, PDF or SVG.",
        ),
    ] = None,
    plan: ShowPlan = False,
    as_json: AsJson = False,
) -> None:
    """Measure decode latency and KV memory of several methods, judge quality, decide, record.

    The fastest exact arm of a pilot becomes the baseline. Every session measures
    it twice, as A and A′, in randomised blocks with all other arms. Every
    process, sample and verdict goes into the ledger.

    Exit codes: 0 decided, 1 an error, 2 wrong usage, 10 a quality gate killed a
    method (or it is slower than allowed), 11 a verdict is inconclusive, 12 a
    verdict is void, 13 the ledger is broken, 130 interrupted.

    Examples:

    attnbench decode

    attnbench decode --plan --model preset:llama-3.2-1b --ctx 32768 --batch 4

    attnbench decode --ctx 512,1024,2048 --batch 1,4 --primary 2048x4 --figure sweep.png

    attnbench decode --breakdown

    attnbench decode --scope step --scope attention --method int8_kv

    attnbench decode --method sink_window,window=512 --method mine.py:MyMethod
    """
    from attnbench.ledger import Ledger
    from attnbench.measure.imports import import_models, uncollected
    from attnbench.measure.supervisor import Processes
    from attnbench.protocol.presets import preset
    from attnbench.quality.sources import text_file

    if no_quality and quality is not Level.BRIEF:
        raise UsageError(
            f"--quality {quality.value} judges and --no-quality does not",
            hint="leave one of them out",
        )
    book = Ledger(ledger)
    require_appendable(book)
    if figure is not None:
        from attnbench.report.sweep_figure import refuse_figure

        refuse_figure(figure)
    asked = Asked(
        contexts=numbers("--ctx", ctx) if ctx is not None else (None,),
        batches=numbers("--batch", batch),
        primary=_place(primary) if primary else None,
    )
    with Processes() as run:
        if not plan:
            run.ahead()  # it imports while this process does
        with uncollected():
            from attnbench.measure.plan import DecodeRequest

            import_models()
        request = DecodeRequest(
            model=model,
            protocol=preset(protocol),
            dtype=dtype,
            device=device,
            scopes=tuple(dict.fromkeys(scope or [Scope.STEP])),
            modes=tuple(dict.fromkeys(mode or [])),
            methods=tuple(method or []),
            quality=None if no_quality else quality,
            text=text_file(str(text or "")),
            seed=seed,
            threads=threads,
            table=table,
            products=products,
        )
        if plan:
            show_plan(request, asked, as_json=as_json)
            return
        measured = measure(request, asked, book, run, as_json=as_json)
    show_results(measured, ledger, as_json=as_json, breakdown=breakdown)
    if figure is not None:
        from attnbench.report.sweep_figure import draw

        draw(measured.results, figure)
        typer.echo(f"drawn: {figure}", err=True)
    raise typer.Exit(_exit_code(measured, slower_allowed))


class Asked(NamedTuple):
    """The places that were asked for: every context with every batch, and which is primary."""

    contexts: tuple[int | None, ...]
    batches: tuple[int, ...]
    primary: tuple[int, int] | None

    @property
    def places(self) -> list[tuple[int | None, int]]:
        """By batch, contexts ascending as they were named."""
        return [(context, batch) for batch in self.batches for context in self.contexts]


def _place(text: str) -> tuple[int, int]:
    context, _, batch = text.lower().partition("x")
    if not (context.strip().isdecimal() and batch.strip().isdecimal()):
        raise UsageError(
            f"--primary {text} is no context and batch", hint="--primary 32768x4, for example"
        )
    return int(context), int(batch)


class Measured(NamedTuple):
    """What a run recorded, what of it failed after the latencies were there, and the arms of each
    cell that were in the pilot alone."""

    results: tuple[ArmResult, ...]
    failed: tuple[AttnbenchError, ...]
    alone: dict[Cell, tuple[PilotArm, ...]]


def _exit_code(measured: Measured, slower_allowed: float | None) -> int:
    from attnbench.protocol.exit import run_exit

    for error in measured.failed:
        typer.echo(f"error: {error.message}", err=True)
    if measured.failed:
        return int(measured.failed[0].exit_code)
    allowed = None if slower_allowed is None else slower_allowed / 100
    return int(run_exit(measured.results, slower_allowed=allowed))


def measure(
    request: DecodeRequest, asked: Asked, book: Ledger, run: Runner, *, as_json: bool
) -> Measured:
    """Plan, run and record."""
    import msgspec
    from rich.console import Console

    from attnbench.ledger import Kind
    from attnbench.measure.again import require_same
    from attnbench.measure.conductor import Sweeper
    from attnbench.measure.judge import Judge
    from attnbench.measure.lost import arms_of_pilots, sweep_results
    from attnbench.measure.sweep_plan import plan_sweep
    from attnbench.report.progress import reporter

    with reporter(Console(stderr=True), json=as_json) as report:
        with report.stage("plan"):
            judge = Judge()
            left_out = judge.tried(request.methods)
            sweep = plan_sweep(request, asked.places, asked.primary)
            judge.require_unchanged()
        _tell_plan(sweep, report.note)
        swept = Sweeper(sweep.plans, book, report, run=run, left_out=left_out).conduct()
        with report.stage("verdicts"):
            judge.require_unchanged()
            results = sweep_results(sweep, swept)
            for result in results:
                book.append(Kind.RESULT, msgspec.to_builtins(result), cites=swept.cites)
        if not all(arm.built_in for plan in sweep.plans for arm in plan.arms):
            with report.stage("the same once more, where no method was imported"):
                require_same(book.path, swept.run)
    return Measured(results, swept.failed, arms_of_pilots(swept))


def _tell_plan(sweep: SweepPlan, note: Callable[[str], None]) -> None:
    from attnbench.measure.estimate import in_words
    from attnbench.measure.layout import place_title

    first = sweep.plans[0]
    said = dict.fromkeys(skipped for plan in sweep.plans for skipped in plan.skipped)
    for label, why in said:
        note(f"left out: {label}: {why}")
    for remark in dict.fromkeys(remark for plan in sweep.plans for remark in plan.remarks):
        note(f"note: {remark}")
    for _, unfit in sweep.unfit:
        note(f"left out: {unfit.message}")
    arms, time = len(first.arms), in_words(sweep.minutes)
    if sweep.is_sweep:
        note(f"{len(sweep.plans)} places; the primary one is {place_title(sweep.primary)}")
    note(f"{arms} arms, {time} on {first.facts.name}")


def show_plan(request: DecodeRequest, asked: Asked, *, as_json: bool) -> None:
    """Print what a run would do."""
    from attnbench.measure.sweep_plan import plan_sweep
    from attnbench.report.sweep_plan_table import sweep_plan_json, sweep_plan_table

    sweep = plan_sweep(request, asked.places, asked.primary)
    if as_json:
        typer.echo(sweep_plan_json(sweep))
    else:
        console().print(sweep_plan_table(sweep))


def show_results(measured: Measured, path: Path, *, as_json: bool, breakdown: bool = False) -> None:
    """Print the table, or the results as JSON."""
    import msgspec

    from attnbench.report.bars import breakdowns, places
    from attnbench.report.decode_table import decode_table

    if as_json:
        typer.echo(msgspec.json.encode(measured.results).decode())
        return
    shown, run = console(), measured.results[0].run
    shown.print(decode_table(measured.results, measured.alone))
    if len({result.cell for result in measured.results}) > 1:
        shown.print(places(measured.results))
    if breakdown:
        shown.print(breakdowns(measured.results))
    shown.print(
        f"run {run} is in {path}; `attnbench ledger log --run {run}` lists it, `attnbench ledger "
        "diff` compares it with the run before.",
        highlight=False,
        soft_wrap=True,
    )
