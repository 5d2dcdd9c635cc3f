"""Where protocols are found: a file, the ledger's registrations, the folder of protocol files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from attnbench.errors import UsageError
from attnbench.ledger import Ledger, Record
from attnbench.protocol.reading import BadProtocol, Source, is_protocol, read_file
from attnbench.protocol.registration import registered_source, versions_of

FOLDER = Path("protocols")
Folder = Annotated[Path, typer.Option("--folder", help="Where protocol files lie.")]


def records_of(ledger: Ledger) -> list[Record]:
    """All records; none where there is no ledger yet."""
    return list(ledger.records()) if ledger.path.exists() else []


def files_in(folder: Path) -> Iterator[tuple[Path, Source | BadProtocol]]:
    """Every protocol file of a folder, or what is wrong with it."""
    for path in filter(is_protocol, sorted(folder.rglob("*.toml"))):
        try:
            yield path, read_file(path)
        except BadProtocol as bad:
            yield path, bad


def find(name: str, records: Sequence[Record], folder: Path) -> Source:
    """The protocol that a file holds or, by its id, the registered version or a file of the folder.

    Raises BadProtocol, and UsageError where there is none.
    """
    if name.endswith(".toml") or Path(name).is_file():
        return read_file(Path(name))
    if versions_of(records, name):
        return registered_source(records, name)
    for _, source in files_in(folder):
        if isinstance(source, Source) and source.file.id == name:
            return source
    known = [s.file.id for _, s in files_in(folder) if isinstance(s, Source)]
    raise UsageError(
        f"there is no protocol {name!r}: no file, no registration, nothing in {folder}/",
        hint=f"there are {', '.join(known)}" if known else "`attnbench protocol new ID` begins one",
    )
