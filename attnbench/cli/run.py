"""`attnbench run`: a registered protocol, to its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from attnbench.cli.common import console, require_appendable
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath, ShowPlan
from attnbench.cli.protocol_files import FOLDER, Folder, find, records_of

if TYPE_CHECKING:
    from attnbench.ledger import Ledger
    from attnbench.measure.conclusion import Concluded
    from attnbench.protocol.reading import Source
    from attnbench.protocol.result import Promise


class Wanted(NamedTuple):
    """A protocol to run, under which promise, and the run to go on with (empty: a new one)."""

    source: Source
    promise: Promise
    resume: str


def run(
    protocols: Annotated[
        list[str], typer.Argument(metavar="PROTOCOL…", help="Protocol files, or ids.")
    ],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the last run that stopped: what is closed is kept."
        ),
    ] = False,
    exploratory: Annotated[
        bool,
        typer.Option(
            "--exploratory", help="Run what is not registered, or not so; every record says it."
        ),
    ] = False,
    folder: Folder = FOLDER,
    ledger: LedgerPath = DEFAULT,
    plan: ShowPlan = False,
    as_json: AsJson = False,
) -> None:
    """Run registered protocols, each to the verdict on its claim.

    Only what was promised runs: the bytes of the file are those of its last
    registration. Every session cites it, and every session that was opened is
    counted, however it ended. A run may be stopped and go on with --resume.

    Exit codes: 0 supported, 1 an error, 2 wrong usage, 10 falsified, 11
    inconclusive or about something else, 12 void, 13 the ledger is broken, 130
    interrupted; of several protocols the gravest.

    Examples:

    attnbench protocol register protocols/attnbench/int8-kv-on-a-cpu.toml

    attnbench run int8-kv-on-a-cpu

    attnbench run --resume int8-kv-on-a-cpu

    attnbench run --exploratory my-draft.toml

    attnbench run --plan protocols/attnbench/int8-kv-halves-the-bytes.toml
    """
    from attnbench.ledger import Ledger

    book = Ledger(ledger)
    require_appendable(book)
    records = records_of(book)
    sources = [find(name, records, folder) for name in protocols]
    if plan:
        _show_plans(sources, as_json=as_json)
        return
    wanted = [_wanted(source, book, resume, exploratory) for source in sources]
    done = [_measured(each, book, as_json=as_json) for each in wanted]
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in done], ensure_ascii=False))
    else:
        for each in done:
            _show(each, ledger)
    raise typer.Exit(_exit_code(done))


def _wanted(source: Source, book: Ledger, resume: bool, exploratory: bool) -> Wanted:
    """Under which promise, and which run; raises UsageError before anything is measured."""
    from attnbench.measure.conclusion import run_to_go_on
    from attnbench.protocol.registration import promise_of

    records = records_of(book)
    promise = promise_of(records, source, exploratory=exploratory)
    return Wanted(source, promise, run_to_go_on(records, promise) if resume else "")


def _measured(wanted: Wanted, book: Ledger, *, as_json: bool) -> Concluded:
    """Plan, run, judge and record."""
    from rich.console import Console

    from attnbench.errors import AttnbenchError
    from attnbench.measure.conclusion import unfinished_runs
    from attnbench.measure.judge import Judge
    from attnbench.measure.promised import PromisedRun
    from attnbench.measure.supervisor import Processes
    from attnbench.report.progress import reporter

    source, promise, resume = wanted
    with reporter(Console(stderr=True), json=as_json) as report, Processes() as run:
        if promise.exploratory:
            report.note(f"exploratory: {source.file.id} is not promised")
        for stopped in unfinished_runs(records_of(book), promise):
            if stopped != resume:
                report.note(f"run {stopped} stopped without a verdict; its sessions stay counted")
        promised = PromisedRun(
            source,
            promise,
            book,
            report,
            run=run,
            resume=resume,
            unchanged=Judge().require_unchanged,
        )
        try:
            return promised.conclude()
        except (KeyboardInterrupt, AttnbenchError):
            if unfinished_runs(records_of(book), promise)[-1:] == [promised.name]:
                more = " --exploratory" * promise.exploratory
                report.note(f"go on with `attnbench run --resume{more} {source.file.id}`")
            raise


def _show_plans(sources: list[Source], *, as_json: bool) -> None:
    """What would be measured, and what would decide."""
    from attnbench.cli.protocol_views import source_text
    from attnbench.measure.promised_plan import plans_of
    from attnbench.protocol.result import Promise
    from attnbench.report.plan_table import plan_json, plan_table

    shown: list[dict[str, object]] = []
    for source in sources:
        # As an exploratory run: a plan for another GPU can be looked at here.
        promise = Promise(protocol=source.file.id, file_sha256=source.sha256, exploratory=True)
        plans = plans_of(source.file, promise)
        if as_json:
            cells = [json.loads(plan_json(plan)) for plan in plans]
            shown.append({"protocol": source.file.id, "cells": cells})
            continue
        typer.echo(source_text(source))
        for plan in plans:
            typer.echo()
            console().print(plan_table(plan))
    if as_json:
        typer.echo(json.dumps(shown, ensure_ascii=False))


def _show(done: Concluded, path: Path) -> None:
    from attnbench.report.appraisal_table import appraisal_table
    from attnbench.report.calibration_table import calibration_tables
    from attnbench.report.claim_text import claim_lines
    from attnbench.report.decode_table import decode_table

    shown = console()
    if done.appraisals:
        for cell in dict.fromkeys(each.cell for each in done.appraisals):
            shown.print(appraisal_table([it for it in done.appraisals if it.cell == cell]))
    elif done.order_effect is not None:
        shown.print(calibration_tables(done.order_effect))
    else:
        shown.print(decode_table(done.results, done.alone))
    for line in claim_lines(done):
        shown.print(line, highlight=False, soft_wrap=True)
    shown.print(
        f"run {done.run} is in {path}; `attnbench protocol show {done.source.file.id}` lists every "
        "run and session.",
        highlight=False,
        soft_wrap=True,
    )


def _as_json(done: Concluded) -> dict[str, object]:
    import msgspec

    from attnbench.measure.conclusion import claim_body

    order = () if done.order_effect is None else (done.order_effect,)
    results = (*done.results, *done.appraisals, *order)
    return {
        "protocol": done.source.file.id,
        "run": done.run,
        "record": done.claim_record,
        **claim_body(done.source, done.judgement, done.decides),
        "text": done.text,
        "promise": msgspec.to_builtins(done.promise),
        "timing": done.timing,
        "sessions": msgspec.to_builtins(done.sessions),
        "sessions_of_protocol": msgspec.to_builtins(done.of_protocol),
        "failed": [error.message for error in done.failed],
        "results": msgspec.to_builtins(results),
    }


def _exit_code(done: list[Concluded]) -> int:
    """Of what failed beside the claim, else of the claims."""
    from attnbench.protocol.exit import claims_exit

    failed = [error for each in done for error in each.failed]
    for error in failed:
        typer.echo(f"error: {error.message}", err=True)
    if failed:
        return int(failed[0].exit_code)
    return int(claims_exit(each.judgement.verdict.outcome for each in done))
