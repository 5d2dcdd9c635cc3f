"""`attnbench claims`: what sources claim, the rule that decides each claim, and how it stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from attnbench.cli import claims_views as views
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath
from attnbench.cli.tabular import show
from attnbench.errors import UsageError
from attnbench.ledger import Ledger, Record
from attnbench.protocol.adjudication import (
    WITHOUT_A_MACHINE,
    Adjudicated,
    adjudicate,
    refuse_measured,
)
from attnbench.protocol.claim import Outcome
from attnbench.protocol.claim_file import ImportedClaim, Kind, read_claims
from attnbench.protocol.claim_log import import_claims, standings
from attnbench.protocol.exit import claims_exit

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Import and adjudicate what sources claim.

    Examples: `attnbench claims list --system dcr`, `attnbench claims show AE-04`,
    `attnbench claims import`, `attnbench claims adjudicate`.
    """,
)

ClaimsFolder = Annotated[Path, typer.Option("--claims", help="The folder with the claims' files.")]
FOLDER = Path("protocols/claims")


@app.command("list")
def list_claims(
    system: Annotated[str, typer.Option(help="Only claims about this system.")] = "",
    kind: Annotated[Kind | None, typer.Option(help="Only claims of this kind.")] = None,
    verdict: Annotated[Outcome | None, typer.Option(help="Only claims that stand so.")] = None,
    folder: ClaimsFolder = FOLDER,
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List every claim with the verdict that the ledger has of it so far.

    Examples: `attnbench claims list`, `attnbench claims list --system dcr`,
    `attnbench claims list --kind arithmetic --verdict FALSIFIED`.
    """
    claims = read_claims(folder)
    _refuse_unknown_system(system, claims)
    stand = standings(_records(path))
    rows = [views.row(claim, stand.get(claim.key)) for claim in claims]
    chosen = [
        row
        for row in rows
        if system in ("", row.claim.system)
        and kind in (None, row.claim.entry.kind)
        and verdict in (None, row.outcome)
    ]
    if as_json:
        _print_json([views.row_json(row) for row in chosen])
    elif chosen:
        show(views.grid(chosen))
        typer.echo(views.summary(chosen))
    else:
        typer.echo(f"No claim of {len(claims)} in {folder} fits.")


@app.command("show")
def show_claim(
    key: Annotated[str, typer.Argument(help="A claim's key, as in DCR-18.")],
    folder: ClaimsFolder = FOLDER,
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Print one claim: the statement, its figure, the rule, and every verdict on it.

    Example: `attnbench claims show DCR-18`.
    """
    claim = _named(key, read_claims(folder))
    row = views.row(claim, standings(_records(path)).get(claim.key))
    if as_json:
        _print_json(views.row_json(row))
    else:
        typer.echo(views.text(row))


@app.command("import")
def import_into_ledger(
    folder: ClaimsFolder = FOLDER, path: LedgerPath = DEFAULT, as_json: AsJson = False
) -> None:
    """Record every claim, with its rule, that the ledger does not hold as its file has it.

    A claim that was changed is recorded as a new version and begins anew. Importing again adds
    nothing. Example: `attnbench claims import --ledger mine/ledger.jsonl`.
    """
    done = import_claims(Ledger(path), read_claims(folder))
    if as_json:
        _print_json(views.imported_json(done))
    else:
        typer.echo(views.imported_text(done, path))


@app.command("adjudicate")
def adjudicate_claims(
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY]...", help="Claims; bare: all that can be judged now."),
    ] = None,
    folder: ClaimsFolder = FOLDER,
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Judge by the imported rule what arithmetic or the ledger's results decide, and record that.

    A claim whose rule is about a figure of recorded results is judged by every live result that it
    is about; that is retrospective, and the record says so. Claims about a source's own code or log
    become UNTESTABLE. What the ledger holds already is not recorded again. Leaves with 10 where a
    claim is falsified, 11 where one stays open, else 0.

    Examples: `attnbench claims adjudicate`, `attnbench claims adjudicate CY-12 FP-03`,
    `attnbench claims adjudicate PR-01`.
    """
    claims = read_claims(folder)
    chosen = list(dict.fromkeys(_named(key, claims) for key in keys)) if keys else list(claims)
    if not path.exists():
        raise UsageError(f"there is no ledger at {path}", hint="Run `attnbench claims import`.")
    judged = _judged(Ledger(path), chosen, all_of_them=bool(keys))
    if as_json:
        _print_json([views.adjudicated_json(each) for each in judged])
    else:
        show(views.adjudicated_grid(judged))
    raise typer.Exit(claims_exit(each.verdict.outcome for each in judged))


def _judged(
    ledger: Ledger, claims: Sequence[ImportedClaim], *, all_of_them: bool
) -> list[Adjudicated]:
    """What needs no new measurement, in the claims' order; without `all_of_them` the rest is left
    out, else it raises UsageError before anything is recorded."""
    from attnbench.measure.by_results import adjudicate_by_results, is_decided_by_results

    by_results = [claim for claim in claims if is_decided_by_results(claim)]
    others = [claim for claim in claims if claim not in by_results]
    if all_of_them:
        for claim in others:
            refuse_measured(claim)
    reasoned = [claim for claim in others if claim.entry.kind in WITHOUT_A_MACHINE]
    judged = [
        *adjudicate_by_results(ledger, by_results, all_of_them=all_of_them),
        *adjudicate(ledger, reasoned),
    ]
    return sorted(judged, key=lambda each: claims.index(each.claim))


def _records(path: Path) -> list[Record]:
    """What a ledger holds; nothing where there is none yet."""
    return list(Ledger(path).records()) if path.exists() else []


def _named(key: str, claims: tuple[ImportedClaim, ...]) -> ImportedClaim:
    by_key = {claim.key: claim for claim in claims}
    if key.upper() in by_key:
        return by_key[key.upper()]
    near = get_close_matches(key.upper(), by_key, n=3, cutoff=0.5)
    raise UsageError(
        f"no claim is called {key!r}",
        hint=f"Nearest: {', '.join(near)}" if near else "`attnbench claims list` lists them.",
    )


def _refuse_unknown_system(system: str, claims: tuple[ImportedClaim, ...]) -> None:
    known = list(dict.fromkeys(claim.system for claim in claims))
    if system and system not in known:
        raise UsageError(f"no system is called {system!r}", hint=f"There are {', '.join(known)}.")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
