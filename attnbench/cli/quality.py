"""`attnbench quality`: the gates alone, every one of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli.common import console, require_appendable
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath
from attnbench.cli.quality_train import refuse_gates, require_training, train_from_scratch

if TYPE_CHECKING:
    from attnbench.ledger import Ledger
    from attnbench.measure.appraising import Appraisal, QualityRequest

EMBEDDED = "embedded"


def quality(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="METHOD",
            help="name,key=value or file.py:Class or package.module:Class; bare: int8_kv and "
            "sink_window.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A hub id, a folder, a .gguf file, or embedded: trained weights.")
    ] = EMBEDDED,
    ctx: Annotated[
        int | None,
        typer.Option(help="Tokens of each prompt.", show_default="1024, or what the model has"),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            help="A UTF-8 text file, or wikitext (needs the package datasets).",
            show_default="numpy's documentation",
        ),
    ] = "",
    full: Annotated[
        bool,
        typer.Option("--full/--quick", help="More text and facts, or as few as make every gate."),
    ] = False,
    why_random: Annotated[
        bool,
        typer.Option(
            "--why-random",
            help="Show the same methods on made-up data and on random weights beside the trained "
            "model.",
        ),
    ] = False,
    selection: Annotated[
        bool,
        typer.Option(
            "--selection",
            help="Judge nothing: show what methods select, how it drifts, and whether overlap with "
            "exact top-k tells of the output. Bare: selections at three coverages.",
        ),
    ] = False,
    band: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GATE.LIMIT=NUMBER",
            help="Another band, as in perplexity.pass_to=0.005 (pass_from, pass_to, kill_below, "
            "kill_above). Repeat for more; the record says so.",
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Show cosine and kept mass of every head, and which of the text it keeps; write "
            "them here. Excerpts of the text go into the record.",
        ),
    ] = None,
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
    threads: Annotated[int, typer.Option(help="Threads on a CPU.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of text offsets, facts and random draws.")] = 0,
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Train models from scratch with methods that replace the trained function, and "
            "baselines beside them. Bare: cy_bias.",
        ),
    ] = False,
    preset: Annotated[
        str, typer.Option(help="With --train: smoke, l4 (CY-Sieve's own) or long.")
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(help="With --train: models of each arm.", show_default="2")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="With --train: what candidates are compared with. Repeat for more; bare: "
            "learned_absolute, alibi, sliding_window and rope.",
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --train: held-out text; bare: the last bytes of --text."
        ),
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --train: where to keep what a run has so far.",
            show_default="the project's cache",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --train: go on with the run that was stopped.")
    ] = False,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="With --train: compile the model.",
            show_default="on CUDA",
        ),
    ] = None,
    ledger: LedgerPath = DEFAULT,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show arms, text and minutes; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge what methods do to a trained model, by every quality gate, against SDPA.

    Outputs per layer, head and step; logits and perplexity with the method
    inside the model; facts planted in text and asked for. The verdict is the
    worst gate, and a gate that was not run caps it at MARGINAL. Beside each
    method stand null models at its own budget, and exact attention computed in
    another way: the floor that no method can be better than.

    A method that replaces the trained function (positions, linear attention)
    is judged with --train alone: one small model an arm and seed, the same
    bytes in the same order, perplexity at the training context and beyond. The
    best candidate against the best baseline: to 1 % above passes, more than 5 %
    above is killed. Several processes (torchrun --no-python attnbench quality
    --train ...) share every batch.

    Exit codes: 0 passed or marginal, 1 an error, 2 wrong usage, 10 a gate killed
    a method, 11 a method could not be judged, 13 the ledger is broken, 130
    interrupted.

    Examples:

    attnbench quality int8_kv

    attnbench quality sink_window,window=512 mine.py:MyMethod --maps heads.png

    attnbench quality mine.py:MySelection --why-random

    attnbench quality --selection --ctx 1024

    attnbench quality int8_kv --model model.gguf --ctx 8192 --text wiki.txt --full

    attnbench quality cy_bias cy_bias,mode=nested --train --preset smoke --text wiki.txt
    """
    from attnbench.quality.sources import text_file

    training = {
        "preset": preset,
        "seeds": seeds is not None,
        "baseline": baseline,
        "held_out": held_out,
        "checkpoints": checkpoints,
        "resume": resume,
        "compile": compiled is not None,
    }
    if train:
        refuse_gates(
            model=model != EMBEDDED,
            ctx=ctx is not None,
            full=full,
            why_random=why_random,
            selection=selection,
            band=band,
            maps=maps,
        )
        from attnbench.measure.scratch_plan import TrainRequest

        asked = TrainRequest(
            methods=tuple(methods or ()),
            baselines=tuple(baseline or ()),
            preset=preset or "smoke",
            seeds=2 if seeds is None else seeds,
            seed=seed,
            text=text_file(text),
            held_out=held_out,
            device=device,
            dtype=dtype,
            compiled=compiled,
            checkpoints=checkpoints,
            resume=resume,
            threads=threads,
        )
        train_from_scratch(asked, ledger, plan=plan, as_json=as_json)
        return
    require_training(**training)
    from attnbench.ledger import Ledger
    from attnbench.measure.appraising import QualityRequest
    from attnbench.protocol.appraisal import appraisal_exit
    from attnbench.quality.levels import Level
    from attnbench.report.head_maps import require_drawable

    if maps is not None:
        require_drawable(maps)
    request = QualityRequest(
        model=model,
        methods=tuple(methods or ()),
        level=Level.FULL if full else Level.QUICK,
        context=ctx,
        dtype=dtype,
        device=device,
        text=text_file(text),
        seed=seed,
        threads=threads,
        bands=tuple(band or ()),
        contrast=why_random,
        kept_map=maps is not None,
    )
    if selection:
        _require_alone(plan=plan, maps=maps is not None, why_random=why_random, band=bool(band))
        _show_selections(request, as_json=as_json)
        return
    book = Ledger(ledger)
    require_appendable(book)
    if plan:
        _show_plan(request, as_json=as_json)
        return
    found = _appraised(request, book, as_json=as_json)
    _show(found, ledger, maps, as_json=as_json)
    raise typer.Exit(int(appraisal_exit(found.results)))


def _appraised(request: QualityRequest, book: Ledger, *, as_json: bool) -> Appraisal:
    """Plan, run, judge and record."""
    from rich.console import Console

    from attnbench.measure.appraising import Appraiser, plan_quality
    from attnbench.measure.estimate import in_words
    from attnbench.measure.judge import Judge
    from attnbench.report.progress import reporter

    with reporter(Console(stderr=True), json=as_json) as report:
        with report.stage("plan"):
            judge = Judge()
            plan = plan_quality(request)
        for remark in plan.cell.remarks:
            report.note(f"note: {remark}")
        report.note(f"{len(plan.arms)} arms, {in_words(plan.minutes)} on {plan.cell.facts.name}")
        return Appraiser(plan, book, report, unchanged=judge.require_unchanged).appraise()


def _require_alone(**others: bool) -> None:
    """Options that mean nothing beside --selection are refused."""
    from attnbench.errors import UsageError

    given = [f"--{name.replace('_', '-')}" for name, is_given in others.items() if is_given]
    if given:
        raise UsageError(
            f"--selection is a report of its own, without {', '.join(given)}",
            hint="run the command twice",
        )


def _show_selections(request: QualityRequest, *, as_json: bool) -> None:
    """Follow selections in this process, and print what was found."""
    import msgspec
    from rich.console import Console

    from attnbench.measure.following import follow_selections
    from attnbench.report.following_table import following_table
    from attnbench.report.progress import reporter

    shown = reporter(Console(stderr=True), json=as_json)
    with shown as report, report.stage("selections, step by step") as stage:
        found = follow_selections(request, stage.update)
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        console().print(following_table(found))


def _show_plan(request: QualityRequest, *, as_json: bool) -> None:
    from attnbench.measure.appraising import plan_quality
    from attnbench.report.appraisal_plan import plan_json, plan_table

    plan = plan_quality(request)
    if as_json:
        typer.echo(plan_json(plan))
    else:
        console().print(plan_table(plan))


def _show(found: Appraisal, path: Path, maps: Path | None, *, as_json: bool) -> None:
    """Print the table and the maps, or the results as JSON."""
    import msgspec

    from attnbench.report.appraisal_table import appraisal_table
    from attnbench.report.contrast_table import contrast_table
    from attnbench.report.head_maps import draw_maps, head_maps, map_tables
    from attnbench.report.text_maps import text_map_lines, text_maps

    floor = {result.arm for result in found.results if result.floor}
    mapped = {arm: samples for arm, samples in found.samples.items() if arm not in floor}
    drawn = head_maps(mapped) if maps else ()
    over_text = text_maps(mapped) if maps else ()
    if maps:
        draw_maps((*drawn, *over_text), maps)
    if as_json:
        typer.echo(msgspec.json.encode(found.results).decode())
        return
    shown, run = console(), found.results[0].run
    contrasted = any(result.contrast is not msgspec.UNSET for result in found.results)
    table = contrast_table if contrasted else appraisal_table
    shown.print(table(found.results))
    if maps:
        shown.print(map_tables(drawn))
        shown.print(text_map_lines(over_text))
        shown.print(f"maps are in {maps}", highlight=False, soft_wrap=True)
    shown.print(
        f"run {run} is in {path}; `attnbench ledger log --run {run}` lists it.",
        highlight=False,
        soft_wrap=True,
    )
