"""Raw samples beside a ledger, each stored under the sha256 of its bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from attnbench.ledger.faults import BadBlob
from attnbench.ledger.storage import explained, write_file

_REF = re.compile(r"sha256:([0-9a-f]{64})")


def refs_of(body: Mapping[str, object]) -> tuple[str, ...]:
    """The blobs that a record's body names: its raw samples, and evidence that is no record."""
    samples, evidence = body.get("samples"), body.get("evidence")
    named = (samples,) if isinstance(samples, str) else ()
    if isinstance(evidence, str) and _REF.fullmatch(evidence):
        return (*named, evidence)
    return named


def put(folder: Path, data: bytes) -> str:
    """Store bytes durably and return their reference, `sha256:<hex>`; storing twice is no harm."""
    ref = ref_of(data)
    path = _path(folder, ref)
    if not path.exists() or ref_of(path.read_bytes()) != ref:
        write_file(path, data)
    return ref


def get(folder: Path, ref: str) -> bytes:
    """Return the bytes that were stored; raises BadBlob where they are gone or were changed."""
    path = _path(folder, ref)
    if not path.exists():
        raise BadBlob(f"{ref} is not in {folder}", hint=_where_to_find(folder))
    with explained(path, "read"):
        data = path.read_bytes()
    if ref_of(data) != ref:
        raise BadBlob(
            f"{path} was changed: its bytes no longer have the hash in its name",
            hint="Restore it from a copy or from git.",
        )
    return data


def _where_to_find(folder: Path) -> str:
    if folder.is_dir():
        return "Restore it from a copy or from git."
    return (
        "There is no such folder: blobs are looked for beside the ledger's own file. If this file "
        "is a copy or a hard link, name the ledger in the folder that has its blobs."
    )


def ref_of(data: bytes) -> str:
    """How a record names these bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _path(folder: Path, ref: str) -> Path:
    match = _REF.fullmatch(ref)
    if match is None:
        raise BadBlob(f"{ref!r} names no blob", hint="A reference reads sha256:<64 hex digits>.")
    return folder / match[1][:2] / match[1]
