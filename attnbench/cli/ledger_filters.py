"""Which records `attnbench ledger log` lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Record, State, Status
from attnbench.ledger.canonical import canonical_bytes
from attnbench.ledger.lookup import require_run
from attnbench.ledger.record import Envelope
from attnbench.ledger.survey import survey

# What a record may say, from `protocol` and `quality`.
VERDICTS = (
    "FASTER", "SLOWER", "EQUIVALENT", "INCONCLUSIVE", "VOID", "SMALLER", "LARGER",
    "PASS", "MARGINAL", "KILL", "NOT_EVALUATED", "SUPPORTED", "FALSIFIED", "UNTESTABLE",
)  # fmt: skip
CELL_NAMES = ("model", "context", "batch", "dtype", "scope", "mode", "device")


class _Body(msgspec.Struct):
    run: Any = ""
    method: Any = ""
    arm: Any = ""
    arms: Any = ()
    cell: Any = {}
    verdict: Any = {}


class _Members(msgspec.Struct):
    body: _Body


_DECODER = msgspec.json.Decoder(_Members)
_CITES = b',"cites":['
_UTC = re.compile(rb'"utc":"([^"]*)"\}\Z')


@dataclass(frozen=True)
class Traces:
    """What the text of a body holds, wherever, if the body is looked for: a quick look, since a
    million bodies are asked. Letters are small; `values` are the numbers right behind a `=`, which
    in JSON stand behind one, or behind a name and its colon (and quote)."""

    any: bool
    values: tuple[bytes, ...]
    numbers: tuple[bytes, ...]
    names: tuple[bytes, ...]

    @classmethod
    def of(cls, *wanted: str) -> Traces:
        found = re.findall(rb"(=?)([a-z0-9]+)", " ".join(wanted).lower().encode())
        runs = {run: sign for sign, run in sorted(found)}
        return cls(
            any(wanted),
            values=tuple(run for run, sign in runs.items() if sign and run.isdigit()),
            numbers=tuple(run for run, sign in runs.items() if not sign and run.isdigit()),
            names=tuple(run for run in runs if not run.isdigit()),
        )

    def may_be_in(self, text: bytes, end: int) -> bool:
        """Whether all of it occurs in this line of ASCII, up to `end`."""
        for value in self.values:
            at = text.find(value, 0, end)
            while at > 0 and text[at - 1] not in b':"=':
                at = text.find(value, at + 1, end)
            if at < 0:
                return False
        for number in self.numbers:
            if text.find(number, 0, end) < 0:
                return False
        if not self.names:
            return True
        body = text[:end].lower()
        return all(name in body for name in self.names)


@dataclass(frozen=True)
class Filters:
    """A look for the records that are listed: those that pass all of them; an empty one lets
    everything pass. Whether a record is tainted follows from others, and is asked afterwards."""

    kind: Kind | None
    cell: str
    method: str
    verdict: str
    run: str
    since: datetime | None
    tainted: bool

    def __call__(self, text: bytes, about: Envelope) -> bool | None:
        if self._kind and about.kind != self._kind:
            return None
        if self.since is not None and _moment(text, about) < self.since:
            return None
        if not self._traces.any:
            return True
        if text.isascii() and not self._traces.may_be_in(text, text.rfind(_CITES, 0, about.start)):
            return None
        return self._accept_body(_DECODER.decode(text).body) or None

    @cached_property
    def _kind(self) -> bytes:
        return self.kind.value.encode() if self.kind else b""

    @cached_property
    def _traces(self) -> Traces:
        return Traces.of(self.cell, self.method, self.verdict, self.run)

    def _accept_body(self, body: _Body) -> bool:
        return (
            str(body.run).startswith(self.run)
            and _has_words(self.cell, body)
            and _has_method(self.method, body)
            and _has_verdict(self.verdict, body)
        )

    def accept_standing(self, record: Record, state: State) -> bool:
        """Whether it passes the filter that follows from other records."""
        return not self.tainted or state.statuses[record.id] is not Status.LIVE


class Words(NamedTuple):
    """The verdicts and the parts of a cell that a record names, and its run."""

    verdicts: frozenset[str]
    cell: frozenset[str]
    run: str


@dataclass(frozen=True)
class Vocabulary:
    """A look for what `refuse_unknown` has to know, each combination of words once."""

    seen: set[Words] = field(default_factory=set)

    def __call__(self, text: bytes, _about: Envelope) -> Words | None:
        body = _DECODER.decode(text).body
        verdicts = frozenset(str(value).lower() for value in _named(body.verdict).values())
        said = Words(verdicts, frozenset(map(str, _named(body.cell))), str(body.run))
        if said in self.seen:
            return None
        self.seen.add(said)
        return said


def refuse_unknown(filters: Filters, path: Path) -> None:
    """Raise UsageError for a verdict or a name in a cell that no record could have, and
    UnknownRecord for a run that is not there."""
    if not (filters.verdict or filters.cell or filters.run):
        return
    said = {find.what for find in survey(path, Vocabulary()).finds}
    require_run(filters.run, {each.run for each in said})
    verdicts = {word for each in said for word in each.verdicts}
    if filters.verdict and filters.verdict.lower() not in verdicts:
        _require(filters.verdict, VERDICTS, "verdict")
    names = {name for each in said for name in each.cell} | set(CELL_NAMES)
    for word in filters.cell.split():
        name, equals, _ = word.partition("=")
        if equals and not any(each.endswith(name.lower()) for each in names):
            _require(name, sorted(names - {""}), "part of a cell")


def _require(word: str, known: Sequence[str], what: str) -> None:
    by_lower = {each.lower(): each for each in known}
    if word.lower() in by_lower:
        return
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    raise UsageError(
        f"no {what} is called {word!r}" + (f"; did you mean {by_lower[near[0]]}?" if near else ""),
        hint=f"there are {', '.join(known)}",
    )


def parse_since(text: str) -> datetime | None:
    """Read a date or time, in UTC unless it names a zone; raises UsageError."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--since {text!r} is no date", hint="Write 2026-01-31 or 2026-01-31T12:00."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_percent(text: str) -> float | None:
    """Read `2%` or `2` as 0.02, nothing as None; raises UsageError."""
    if not text:
        return None
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent < 100:
        raise UsageError(f"{text!r} is no percentage", hint="Write 2% or 0.5%.")
    return percent / 100


def _moment(text: bytes, about: Envelope) -> datetime:
    found = _UTC.search(text, about.start)
    return datetime.fromisoformat(found[1].decode() if found else "")


def _has_words(words: str, body: _Body) -> bool:
    cell = " ".join(f"{key}={_said(value)}" for key, value in _named(body.cell).items())
    return all(word.lower() in cell.lower() for word in words.split())


def _said(value: Any) -> str:
    """As the ledger's own line says it."""
    return value if isinstance(value, str) else canonical_bytes(value).decode()


def _has_method(method: str, body: _Body) -> bool:
    arms = body.arms if isinstance(body.arms, list | tuple) else ()
    return any(method.lower() in str(name).lower() for name in (body.method, body.arm, *arms))


def _has_verdict(verdict: str, body: _Body) -> bool:
    verdicts = _named(body.verdict).values()
    return not verdict or any(verdict.lower() == str(value).lower() for value in verdicts)


def _named(held: Any) -> Mapping[str, object]:
    """What a body holds by names there; a body may be of any form."""
    return held if isinstance(held, Mapping) else {"": held}
