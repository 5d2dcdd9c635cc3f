"""`attnbench calibrate`: what the instrument itself gets wrong here, and the least it can see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.cli.common import console, require_appendable, require_sound
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath, ShowPlan
from attnbench.errors import UsageError
from attnbench.protocol.cell import Mode, Scope

if TYPE_CHECKING:
    from attnbench.ledger import Ledger
    from attnbench.measure.calibration_past import CalibrationPast
    from attnbench.measure.calibration_plan import CalibrationPlan, CalibrationRequest
    from attnbench.protocol.calibration_result import CalibrationResult


def calibrate(
    model: Annotated[
        str | None,
        typer.Option(
            help="A hub id, a folder, a .gguf file, preset:NAME, or embedded.",
            show_default="embedded",
        ),
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(help="Cached tokens.", show_default="1024, or what the model has"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Sequences decoded together.", show_default="1")
    ] = None,
    scope: Annotated[
        Scope | None,
        typer.Option(
            metavar="SCOPE",
            help="attention: attention of all layers alone; step: the whole decode step.",
            show_default="attention",
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            metavar="MODE",
            help="graph, eager, or compiled in scope step.",
            show_default="as in decode",
        ),
    ] = None,
    sessions: Annotated[
        int | None,
        typer.Option(
            help="Sessions of the whole run, those that it already has among them; runs of three "
            "are judged. For the order effect: processes of each way.",
            show_default="12 on CUDA, 6 on a CPU",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="canonical, rigorous or quick: blocks, groups and steps of each session.",
            show_default="canonical",
        ),
    ] = None,
    order_effect: Annotated[
        bool,
        typer.Option(
            "--order-effect",
            help="Instead: one method timed twice, first after second with 5 warm-up steps as "
            "simple harnesses do, and in randomised blocks with 50.",
        ),
    ] = False,
    configurations: Annotated[
        int | None,
        typer.Option(
            help="Launch configurations that the pilot tries of each kernel, 0 for all.",
            show_default="3",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float16 or bfloat16.",
            show_default="bfloat16 on CUDA, float32 on a CPU",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda or cpu.", show_default="cuda if there is one")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a session on a CPU.", show_default="1")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of schedule, tokens and noise.", show_default="0")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="RUN",
            help="Go on with a run: what is closed in the ledger is not measured again.",
        ),
    ] = "",
    analyse: Annotated[
        str,
        typer.Option(
            metavar="RUN",
            help="Only say once more what the closed sessions of a run mean, and record that; "
            "needs no device.",
        ),
    ] = "",
    ledger: LedgerPath = DEFAULT,
    plan: ShowPlan = False,
    as_json: AsJson = False,
) -> None:
    """Learn what this machine can tell apart: A/A runs, and slow-downs of known size.

    Every session measures one exact method three times (A, A′ and the sham S),
    made slower by 0.2, 0.5, 1, 2 and 5 % (a kernel that waits, and says how
    long), and another exact method (X). Reported are the spread of ratios, how
    often S was called faster or slower, from which slow-down on the verdict is
    right, and the share of time that the harness itself takes.

    A run may be interrupted and go on with --resume, also to more sessions.
    Exit codes: 0 done, 1 an error, 2 wrong usage, 13 the ledger is broken, 130
    interrupted.

    Examples:

    attnbench calibrate

    attnbench calibrate --model preset:llama-3.2-1b --ctx 32768 --batch 4 --sessions 15

    attnbench calibrate --resume 3f9a81c2 --sessions 30

    attnbench calibrate --analyse 3f9a81c2

    attnbench calibrate --order-effect --sessions 6
    """
    if analyse:
        _show(_analysed(ledger, analyse), ledger, as_json=as_json)
        return
    given = {
        "model": model,
        "ctx": ctx,
        "batch": batch,
        "scope": scope,
        "mode": mode,
        "protocol": protocol,
        "order_effect": order_effect or None,
        "configurations": configurations,
        "dtype": dtype,
        "device": device,
        "threads": threads,
        "seed": seed,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    book, past = _before(ledger, resume)
    request = _request(asked, sessions, past)
    if plan:
        _show_plan(request, as_json=as_json)
    else:
        _show(_measured(request, book, past, as_json=as_json), ledger, as_json=as_json)


def _before(path: Path, resume: str) -> tuple[Ledger, CalibrationPast | None]:
    """The ledger, and what it holds of the run that is to go on."""
    from attnbench.ledger import Ledger
    from attnbench.measure.calibration_past import past_of

    book = Ledger(path)
    require_appendable(book)
    return book, past_of(book, resume) if resume else None


def _analysed(path: Path, run: str) -> CalibrationResult:
    """The findings of a run from its records."""
    from attnbench.ledger import Ledger
    from attnbench.measure.calibration_again import analysed
    from attnbench.measure.calibration_past import past_of

    book = Ledger(path)
    require_sound(book)
    return analysed(book, past_of(book, run))


def _request(
    asked: dict[str, Any], sessions: int | None, past: CalibrationPast | None
) -> CalibrationRequest:
    """What was asked for now, or at the beginning of the run; only `sessions` may differ."""
    import msgspec

    from attnbench.measure.calibration_plan import CalibrationRequest

    if past is None:
        return CalibrationRequest(**asked, sessions=sessions)
    for name, value in asked.items():
        before = getattr(past.request, name)
        if value != before:
            raise UsageError(
                f"run {past.held.run} has {name} {before}, not {value}",
                hint="--resume goes on with what the run began with; only --sessions may grow",
            )
    wanted = past.request.sessions if sessions is None else max(sessions, past.held.sessions)
    return msgspec.structs.replace(past.request, sessions=wanted)


def _measured(
    request: CalibrationRequest, book: Ledger, past: CalibrationPast | None, *, as_json: bool
) -> CalibrationResult:
    """Plan, run, analyse and record."""
    from rich.console import Console

    from attnbench.errors import AttnbenchError
    from attnbench.measure.calibrating import Calibrator
    from attnbench.measure.calibration_plan import plan_calibration
    from attnbench.measure.estimate import in_words
    from attnbench.measure.supervisor import Processes
    from attnbench.report.progress import reporter

    with reporter(Console(stderr=True), json=as_json) as report, Processes() as run:
        with report.stage("plan"):
            plan = plan_calibration(request)
        report.note(f"{plan.protocol.sessions} sessions, {in_words(plan.minutes)} in all")
        held = past.held if past else None
        calibrator = Calibrator(plan, book, report, past=held, run=run)
        report.note(f"run {calibrator.run}")
        try:
            return calibrator.calibrate()
        except (KeyboardInterrupt, AttnbenchError):
            report.note(f"go on with `attnbench calibrate --resume {calibrator.run}`")
            raise


def _show_plan(request: CalibrationRequest, *, as_json: bool) -> None:
    from attnbench.measure.calibration_plan import plan_calibration
    from attnbench.report.plan_table import plan_json, plan_table

    plan: CalibrationPlan = plan_calibration(request)
    if as_json:
        typer.echo(plan_json(plan.cell))
    else:
        console().print(plan_table(plan.cell))


def _show(result: CalibrationResult, path: Path, *, as_json: bool) -> None:
    """Print the tables, or the result as JSON."""
    import msgspec

    from attnbench.report.calibration_table import calibration_tables

    if as_json:
        typer.echo(msgspec.json.encode(result).decode())
        return
    shown = console()
    shown.print(calibration_tables(result))
    shown.print(
        f"run {result.run} is in {path}; `attnbench calibrate --resume {result.run} --sessions N` "
        "goes on to more sessions.",
        highlight=False,
        soft_wrap=True,
    )
