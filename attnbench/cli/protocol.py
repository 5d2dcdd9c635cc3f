"""`attnbench protocol`: promise first what will be measured and what decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from attnbench.cli import protocol_views as views
from attnbench.cli.common import require_appendable
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath
from attnbench.cli.protocol_files import FOLDER, Folder, files_in, find, records_of
from attnbench.cli.tabular import show
from attnbench.errors import UsageError
from attnbench.ledger import Ledger
from attnbench.protocol.checks import ID
from attnbench.protocol.history import runs_of
from attnbench.protocol.imported_rule import imported_of
from attnbench.protocol.reading import Source, read_file
from attnbench.protocol.registration import register as promise
from attnbench.protocol.registration import versions_of
from attnbench.protocol.template import template

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="""Promise first: what is claimed, how it will be measured, what decides.

    Examples: `attnbench protocol check FILE`, `attnbench protocol register FILE`, then
    `attnbench run FILE`.
    """,
)


@app.command("list")
def list_protocols(
    path: LedgerPath = DEFAULT, folder: Folder = FOLDER, as_json: AsJson = False
) -> None:
    """List the protocols of the folder and of the ledger, with their runs and verdicts.

    Example: `attnbench protocol list --json`.
    """
    rows = views.listed(records_of(Ledger(path)), list(files_in(folder)))
    if as_json:
        _print_json(rows)
    elif rows:
        show(views.list_grid(rows))
    else:
        typer.echo(f"No protocol in {folder}/ and none in {path}.")


@app.command("show")
def show_protocol(
    name: Annotated[str, typer.Argument(metavar="PROTOCOL", help="A file, or an id.")],
    path: LedgerPath = DEFAULT,
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Say what a protocol promises, since when, and everything that was begun for it.

    Example: `attnbench protocol show DCR-18-order-effect`.
    """
    records = records_of(Ledger(path))
    source = find(name, records, folder)
    versions, runs = versions_of(records, source.file.id), runs_of(records, source.file.id)
    if as_json:
        _print_json(views.shown_json(source, versions, runs))
    else:
        typer.echo(views.shown_text(source, versions, runs))


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Protocol files.")],
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Say in words what a file will measure and what decides, or all that is wrong with it.

    A file that names an imported claim is compared with that claim's rule in the ledger.
    Example: `attnbench protocol check protocols/dcr/DCR-18-order-effect.toml`.
    """
    sources = [read_file(file) for file in files]
    records = records_of(Ledger(path))
    for source in sources:
        imported_of(records, source.file)
    if as_json:
        _print_json([views.source_json(source) for source in sources])
        return
    typer.echo("\n\n".join(views.source_text(source) for source in sources))


@app.command()
def register(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Protocol files.")],
    path: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Write a promise into the ledger; a file that changed becomes a new version.

    The same bytes are registered once. Example: `attnbench protocol register
    protocols/dcr/DCR-18-order-effect.toml`.
    """
    sources = [read_file(file) for file in files]
    book = Ledger(path)
    require_appendable(book)
    done = [(source, promise(book, source)) for source in sources]
    if as_json:
        _print_json([views.registered_json(source, outcome) for source, outcome in done])
        return
    for source, outcome in done:
        typer.echo(views.registered_text(source, outcome, runs_of(records_of(book), _id(source))))


@app.command()
def new(
    id: Annotated[str, typer.Argument(metavar="ID", help="What it will be called.")],
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Begin a protocol file: an example with every key explained, which passes `check`.

    Example: `attnbench protocol new my-method-is-faster`.
    """
    if not ID.fullmatch(id):
        raise UsageError(
            f"{id!r} cannot be an id", hint="use letters, digits, dot, dash and underscore"
        )
    path = folder / f"{id}.toml"
    if path.exists():
        raise UsageError(f"{path} is there already", hint="choose another id, or edit it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template(id))
    if as_json:
        _print_json({"id": id, "file": str(path)})
        return
    typer.echo(f"{path} is an example: edit it, then `attnbench protocol check {path}`.")


def _id(source: Source) -> str:
    return source.file.id


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
