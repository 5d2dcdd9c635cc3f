"""`attnbench ledger`: read, compare, check and take back what was recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from attnbench import ledger as book
from attnbench.cli import ledger_views as views
from attnbench.cli.diff_view import diff_json, show_diff
from attnbench.cli.ledger_export import export
from attnbench.cli.ledger_filters import Filters, parse_percent, parse_since, refuse_unknown
from attnbench.cli.ledger_listing import listed
from attnbench.cli.options import DEFAULT, AsJson, Evidence, LedgerPath
from attnbench.cli.tabular import show
from attnbench.errors import Exit, UsageError
from attnbench.ledger.bearing import around, descendants, standing
from attnbench.ledger.comparison import Side
from attnbench.ledger.lookup import find_record, matching
from attnbench.ledger.sides import latest_two, run_and_earlier, side_of
from attnbench.ledger.survey import survey

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Read, compare, check, export, mend and take back what was recorded.

    Examples: `attnbench ledger log --kind result`, `attnbench ledger diff`,
    `attnbench ledger verify`.
    """,
)

app.command()(export)


@app.command()
def log(
    path: LedgerPath = DEFAULT,
    kind: Annotated[book.Kind | None, typer.Option(help="Only records of this kind.")] = None,
    cell: Annotated[
        str, typer.Option(help="Only cells with all these words, as in 'context=8192 step'.")
    ] = "",
    method: Annotated[str, typer.Option(help="Only methods or arms that contain this.")] = "",
    verdict: Annotated[str, typer.Option(help="Only results with this verdict.")] = "",
    run: Annotated[str, typer.Option(help="Only runs whose id begins so.")] = "",
    since: Annotated[str, typer.Option(help="Only records from this date or time (UTC) on.")] = "",
    tainted: Annotated[bool, typer.Option(help="Only what is tainted or retracted.")] = False,
    as_json: AsJson = False,
) -> None:
    """List records, oldest first.

    Examples: `attnbench ledger log`, `attnbench ledger log --kind result --verdict faster
    --cell context=8192`, `attnbench ledger log --since 2026-01-31 --json`.
    """
    filters = Filters(kind, cell, method, verdict, run, parse_since(since), tainted)
    walk = survey(path, filters)
    if not walk.finds:
        refuse_unknown(filters, path)
    chosen = listed(walk, filters, citing=as_json)
    if as_json:
        _print_list(views.record_json(record, state) for record, state in chosen)
        return
    rows = [views.log_row(record, state) for record, state in chosen]
    if rows:
        show(views.log_grid(rows))
    else:
        typer.echo(f"No record of {len(walk)} in {path} fits.")


@app.command(name="show")
def show_record(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="A record's id, or its start.")],
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Print one record, its standing, and everything that cites it or remarks on it.

    Example: `attnbench ledger show 5402fb34`.
    """
    walk, records = matching(path, record_id)
    record = find_record(records, record_id)
    state = standing(walk, [record], citing=True)
    if as_json:
        _print_json(views.record_json(record, state))
    else:
        typer.echo(views.record_text(record, state, around(walk, record, state)))


@app.command()
def diff(
    before: Annotated[
        str, typer.Argument(help="A run, a result, a ledger file, or REVISION:path in git.")
    ] = "",
    after: Annotated[
        str,
        typer.Argument(
            help="What to compare it with.", show_default="a run alone: the one before it"
        ),
    ] = "",
    fail_if_slower: Annotated[
        str,
        typer.Option(
            metavar="PERCENT",
            help="Leave with 10 where a speed-up fell by more, with 11 where that cannot be told.",
        ),
    ] = "",
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Compare results, aligned by cell and arm; bare: the latest run with the one before it.

    A run alone is compared with the latest one of the same cells before it. With --fail-if-slower,
    candidates are judged by their speed-up over the baseline, by the whole of its interval.

    Examples: `attnbench ledger diff`, `attnbench ledger diff 81c2`,
    `attnbench ledger diff 3f9a 81c2 --fail-if-slower 2%`,
    `attnbench ledger diff HEAD~1:ledger/ledger.jsonl ledger/ledger.jsonl`.
    """
    allowed = parse_percent(fail_if_slower)
    pair = _sides(before, after, book.Ledger(path))
    if isinstance(pair, str):
        _say({"comparable": False, "reason": pair}, f"Nothing to compare: {pair}.", as_json)
        raise typer.Exit(Exit.DONE if allowed is None else Exit.INCONCLUSIVE)
    outcome = book.diff(*pair)
    judged = None if allowed is None else book.gate(outcome, allowed)
    if as_json:
        _print_json(diff_json(outcome, judged))
    else:
        show_diff(outcome, judged)
    raise typer.Exit(Exit.DONE if judged is None else judged.exit_code)


@app.command()
def verify(
    path: LedgerPath = DEFAULT,
    against: Annotated[
        Path | None, typer.Option(help="A checkpoint that was kept elsewhere.")
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Build every result again from its raw samples.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the chain, the raw samples, and the checkpoint if one is given; 13 when broken.

    With --recompute every estimate, interval and verdict is computed again, without a GPU, and
    whatever is not as recorded is listed: 13 where this very source made the record, 11 where
    another one did and the ledger says nothing of it yet.

    Examples: `attnbench ledger verify`, `attnbench ledger verify --against ~/checkpoint.json`,
    `attnbench ledger verify --recompute`.
    """
    checkpoint = book.read_checkpoint(against) if against else None
    report = book.verify(path, checkpoint=checkpoint)
    value, text, code = views.report_json(report), views.report_text(report), report.exit_code
    if recompute and report.is_sound:
        again, again_text, code = _recomputed(path)
        value, text = (
            {**value, "exit_code": int(code), "recomputed": again},
            f"{text}\n{again_text}",
        )
    elif recompute:
        text += "\nNothing was computed again: a ledger that does not hold proves nothing."
    _say(value, text, as_json)
    raise typer.Exit(code)


def _recomputed(path: Path) -> tuple[dict[str, Any], str, Exit]:
    from attnbench.cli.recompute_view import recomputed_json, recomputed_text
    from attnbench.measure.recompute import recompute

    found = recompute(book.Ledger(path))
    return recomputed_json(found), recomputed_text(found), found.exit_code


@app.command()
def checkpoint(path: LedgerPath = DEFAULT, _as_json: AsJson = False) -> None:
    """Print what to keep elsewhere, so that `verify --against` can tell a rewritten ledger.

    Always JSON. Example: `attnbench ledger checkpoint > ~/checkpoint.json`.
    """
    _print_json(asdict(book.take_checkpoint(path)))


@app.command()
def merge(
    other: Annotated[Path, typer.Argument(help="Another machine's ledger, its blobs beside it.")],
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Take over what another ledger holds and this one does not; records keep their ids.

    Example: `attnbench ledger merge from-the-gpu/ledger.jsonl`.
    """
    merged = book.merge(book.Ledger(path), other)
    text = f"{merged.added} records of {other} added to {path}; {merged.known} were here already."
    _say(asdict(merged), text, as_json)


@app.command()
def retract(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="A record's id, or its start.")],
    reason: Annotated[
        book.Reason | None, typer.Option(help="Required: why it no longer counts.")
    ] = None,
    note: Annotated[
        str, typer.Option(help="Required: what was wrong, in a sentence.", show_default=False)
    ] = "",
    evidence: Evidence = "",
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Take a record back: it stays, marked, and what derives from it is tainted.

    Example: `attnbench ledger retract 5402fb34 --reason wrong-baseline --note "SDPA ran in math"`.
    """
    ledger = book.Ledger(path)
    retraction = book.retract(ledger, record_id, reason, note, evidence)
    _say_standing(ledger, retraction, as_json)


@app.command()
def reinstate(
    record_id: Annotated[
        str, typer.Argument(metavar="ID", help="The id of a retracted record, or its retraction's.")
    ],
    note: Annotated[
        str,
        typer.Option(help="Required: why it counts after all.", show_default=False),
    ] = "",
    evidence: Evidence = "",
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Bring a retracted record back: the retraction stays, and what it tainted is tainted no more.

    Example: `attnbench ledger reinstate 5402fb34 --note "the log was of another machine"`.
    """
    ledger = book.Ledger(path)
    _say_standing(ledger, book.reinstate(ledger, record_id, note, evidence), as_json)


@app.command()
def correct(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="A record's id, or its start.")],
    member: Annotated[
        str, typer.Option(help="Required: which value, as in verdict.claim.", show_default=False)
    ] = "",
    value: Annotated[
        str, typer.Option(help="Required: what it should be, as JSON.", show_default=False)
    ] = "",
    reason: Annotated[
        str, typer.Option(help="Required: what was wrong, in a sentence.", show_default=False)
    ] = "",
    evidence: Evidence = "",
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Say what a member of a record should be: the record stays as it is, the correction beside it.

    A correction changes no verdict; retract what must not count.

    Example: `attnbench ledger correct 5402fb34 --member findings.harness_share --value 0.389
    --reason "untimed steps are no time of the harness"`.
    """
    said = book.correct(book.Ledger(path), record_id, member, value, reason, evidence)
    _say(asdict(said), views.remark_text(said), as_json)


@app.command()
def concern(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="A record's id, or its start.")],
    note: Annotated[
        str, typer.Option(help="Required: what is doubted, in a sentence.", show_default=False)
    ] = "",
    evidence: Evidence = "",
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Say what is doubted about a record: it stays and counts, the doubt beside it.

    Example: `attnbench ledger concern 5402fb34 --note "its kernel was not the fastest"`.
    """
    said = book.concern(book.Ledger(path), record_id, note, evidence)
    _say(asdict(said), views.remark_text(said), as_json)


def _say_standing(ledger: book.Ledger, said: book.Record, as_json: bool) -> None:
    """Print a retraction or a reinstatement, and how many records derive from its target."""
    walk, records = matching(ledger.path, said.id)
    state = standing(walk, records, citing=True)
    heirs = descendants(walk, {str(said.body["target"])})
    _say(views.record_json(said, state), views.standing_text(said, len(heirs)), as_json)


@app.command()
def repair(
    apply: Annotated[bool, typer.Option("--apply", help="Do it; else only say what.")] = False,
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Mend an end that a crash or a full disk cut short; anything else broken is refused.

    What was written of the last record goes into a file beside the ledger, and a `repair` record
    says so. Examples: `attnbench ledger repair`, `attnbench ledger repair --apply`.
    """
    done = book.repair(book.Ledger(path)) if apply else book.plan_repair(path)
    _say(views.repair_json(done), views.repair_text(done, path), as_json)


def _sides(before: str, after: str, ledger: book.Ledger) -> tuple[Side, Side] | str:
    if before and after:
        return side_of(before, ledger), side_of(after, ledger)
    if after:
        raise UsageError(
            "diff compares two things, and the first is empty",
            hint="Name both, or one run to compare it with the one before it.",
        )
    return run_and_earlier(before, ledger) if before else latest_two(ledger)


def _say(value: Any, text: str, as_json: bool) -> None:
    if as_json:
        _print_json(value)
    else:
        typer.echo(text)


def _print_list(values: Iterable[Any]) -> None:
    """Print a list as JSON, without holding all of it."""
    texts = (json.dumps(value, ensure_ascii=False, indent=2) for value in values)
    first = next(texts, None)
    typer.echo("[]" if first is None else f"[\n{first}", nl=first is None)
    for text in texts:
        typer.echo(f",\n{text}", nl=False)
    if first is not None:
        typer.echo("\n]")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
