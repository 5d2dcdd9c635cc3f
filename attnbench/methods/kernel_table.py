"""Kernel configurations that were measured as the fastest, by GPU and shape.

A file of this package holds the project's own; `attnbench methods tune` writes such files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from attnbench.errors import UsageError
from attnbench.methods.base import KernelConfig
from attnbench.protocol.cell import Mode, Scope

BUILT_IN = Path(__file__).with_name("kernel_table.json")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a configuration was the fastest; it is used in the same place and in no other.

    `method` is the arm's label with its implementation; `context` counts the cached tokens.
    """

    method: str
    gpu: str
    compute_capability: str
    scope: Scope
    mode: Mode
    dtype: str
    head_dim: int
    kv_heads: int
    group: int
    context: int
    batch: int


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the choice rests on: the median time of a step of `layers` layers, that of the next
    best configuration (0: there was none), how many were timed, and with what.

    `commit` is that of attnbench, `run` the run in a ledger that holds the samples.
    """

    step_us: float
    layers: int
    next_us: float
    tried: int
    utc: str
    torch: str
    triton: str
    source_sha256: str
    driver: str = ""
    commit: str = ""
    run: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration, by the fields of `methods.base.KernelConfig`."""

    place: Place
    launch: dict[str, int]
    measured: Provenance


@dataclass(frozen=True)
class KernelTable:
    """The entries of one file; `name` is what records call it."""

    name: str
    entries: tuple[Entry, ...]

    def find(self, place: Place) -> Entry | None:
        """The entry of exactly this place."""
        return next((entry for entry in self.entries if entry.place == place), None)


def read_table(path: Path = BUILT_IN) -> KernelTable:
    """Read a table; `UsageError` where it is none."""
    name = "built-in table" if path == BUILT_IN else str(path)
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=tuple[Entry, ...])
        for entry in entries:
            KernelConfig(**entry.launch)
    except OSError as error:
        raise UsageError(
            f"{name} cannot be read as a table of kernel configurations: {error.strerror}",
            hint="check the path after --table, or leave it out for the project's own table; "
            "`attnbench methods tune --out FILE` writes one",
        ) from error
    except (msgspec.DecodeError, TypeError) as error:
        raise UsageError(
            f"{name} is no table of kernel configurations: {error}",
            hint="`attnbench methods tune --out FILE` writes one",
        ) from error
    return KernelTable(name, entries)


def write_entries(path: Path, new: Iterable[Entry]) -> KernelTable:
    """Add entries to a table, in the place of those for the same places; returns all of it."""
    held = {entry.place: entry for entry in (read_table(path).entries if path.exists() else ())}
    held |= {entry.place: entry for entry in new}
    entries = tuple(sorted(held.values(), key=lambda entry: msgspec.structs.astuple(entry.place)))
    replace_file(path, msgspec.json.encode(entries))
    return KernelTable(str(path), entries)


def replace_file(path: Path, encoded: bytes) -> None:
    """Write JSON for people to read, all of it or nothing."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    unfinished.replace(path)
