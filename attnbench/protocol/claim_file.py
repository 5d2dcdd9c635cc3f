"""A file of claims: what a source says and the rule that will decide it, before any test.

The schema is these records. A rule names everything that a verdict could later be argued about:
what is measured, where, which statistic, on which side of which bound it must lie, and how far the
claim goes.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from attnbench.errors import UsageError
from attnbench.ledger import Json
from attnbench.ledger.canonical import canonical_bytes
from attnbench.protocol.claim import Claim, Direction, Reach
from attnbench.protocol.decided import Decided

Text = Annotated[str, Meta(min_length=1)]
HINT = "docs/claims.md says what each key means."


class Kind(StrEnum):
    """What it takes to decide a claim."""

    ARITHMETIC = "arithmetic"  # computed again from definitions; `attnbench claims adjudicate`
    MEASURED = "measured"  # a run of attnbench
    TRAINING = "training"  # models trained from scratch
    SOURCE_CODE = "source-code"  # only the source's own code or log could tell


class BadClaims(UsageError):
    """A file of claims that cannot be what is meant."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}", hint=HINT)


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides a claim; bound, tolerance, reach, gpu and model as in `claim.Claim`.

    `statistic` says which figure of the measurements is held against the bound, with its interval;
    `ours` what in the rule the source does not give; `void_when` what would make the evidence worth
    nothing. `decided` says what decides for machines, where attnbench can measure it.
    """

    measures: Text
    where: Text
    statistic: Text
    direction: Direction
    bound: float
    unit: Text
    reach: Reach
    void_when: Text
    ours: str = ""
    tolerance: float = 0.0
    gpu: str = ""
    model: str = ""
    keeps_quality: bool = False
    decided: Decided | UnsetType = UNSET


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One claim as its file has it.

    `source_figure`, `rederived` and `source_status` say how the figure stood when it was collected;
    they are no verdict. `untestable` is the reason why a claim about a source's code is not tested.
    """

    key: Annotated[str, Meta(pattern=r"^[A-Z]{2,3}-[0-9]{2}$")]
    statement: Text
    source_figure: Text
    rederived: Text
    source_status: Text
    test: Text
    kind: Kind
    rule: Rule
    untestable: str = ""

    def claim(self) -> Claim:
        """As a verdict reads it; raises UsageError where its parts do not fit together."""
        rule = self.rule
        return Claim(
            statement=self.statement,
            bound=rule.bound,
            direction=rule.direction,
            reach=rule.reach,
            tolerance=rule.tolerance,
            gpu=rule.gpu,
            model=rule.model,
            keeps_quality=rule.keeps_quality,
        )


class ClaimFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The claims of one system; every key begins with `prefix`."""

    system: Text
    prefix: Text
    source: Text
    provenance: Text
    claim: Annotated[tuple[Entry, ...], Meta(min_length=1)]


class ImportedClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A claim with what it shares with the others of its file."""

    system: str
    source: str
    provenance: str
    entry: Entry

    @property
    def key(self) -> str:
        """How the ledger's records name it."""
        return self.entry.key

    @property
    def version(self) -> str:
        """sha256 of all that the file says of it, in canonical form."""
        return hashlib.sha256(canonical_bytes(self.content())).hexdigest()

    def content(self) -> Json:
        """All that the file says of it."""
        content: Json = msgspec.to_builtins(self)
        return content


def read_claims(folder: Path) -> tuple[ImportedClaim, ...]:
    """All claims of a folder, by file and then as they stand in it.

    Raises BadClaims for the first file that is wrong, UsageError where there is none.
    """
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise UsageError(
            f"{folder} holds no file of claims",
            hint="Run this from the root of attnbench's sources, or name the folder by --claims.",
        )
    claims: dict[str, ImportedClaim] = {}
    for path in files:
        for claim in read_file(path):
            if claim.key in claims:
                raise BadClaims(path, f"{claim.key} is there twice")
            claims[claim.key] = claim
    return tuple(claims.values())


def read_file(path: Path) -> tuple[ImportedClaim, ...]:
    """The claims of one file; raises BadClaims."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        file = msgspec.convert(table, ClaimFile)
    except OSError as error:
        raise BadClaims(path, f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadClaims(path, f"is no TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise BadClaims(path, _which(str(error), table)) from None
    if file.system != path.stem:
        raise BadClaims(path, f"system is {file.system!r}, the file's name says {path.stem!r}")
    for entry in file.claim:
        _check(path, file, entry)
    return tuple(
        ImportedClaim(
            system=file.system, source=file.source, provenance=file.provenance, entry=entry
        )
        for entry in file.claim
    )


def _check(path: Path, file: ClaimFile, entry: Entry) -> None:
    for problem in _senseless(file, entry):
        raise BadClaims(path, f"{entry.key}: {problem}")
    try:
        entry.claim()
    except UsageError as error:
        raise BadClaims(path, f"{entry.key}: {error.message}") from None


def _senseless(file: ClaimFile, entry: Entry) -> Iterator[str]:
    rule = entry.rule
    if entry.key.partition("-")[0] != file.prefix:
        yield f"keys of this file begin with {file.prefix}"
    if not (isfinite(rule.bound) and isfinite(rule.tolerance)):
        yield "a bound and a tolerance are numbers to compare with"
    if rule.tolerance < 0:
        yield "a tolerance is no less than 0"
    if bool(entry.untestable) != (entry.kind is Kind.SOURCE_CODE):
        yield "`untestable` is the reason that goes with kind 'source-code', and only with it"
    if rule.reach in (Reach.UNIVERSAL, Reach.DEFINITION) and (rule.gpu or rule.model):
        yield f"a claim of reach {rule.reach.value} names neither GPU nor model"
    if entry.kind is Kind.ARITHMETIC and rule.reach not in (Reach.DEFINITION, Reach.UNIVERSAL):
        yield "what is computed has no place: its reach is 'definition' or 'universal'"
    if rule.decided is not UNSET:
        if entry.kind is not Kind.MEASURED:
            yield "`decided` goes with kind 'measured', and only with it"
        yield from rule.decided.problems()


def _which(said: str, table: dict[str, object]) -> str:
    """msgspec's message, with the key of the claim in place of its number."""
    found = re.search(r"\$\.claim\[(\d+)\]", said)
    claims = table.get("claim")
    if found is None or not isinstance(claims, list):
        return said
    at = claims[int(found[1])]
    key = at.get("key") if isinstance(at, dict) else None
    return said.replace(found[0], str(key or f"claim {int(found[1]) + 1}"))
