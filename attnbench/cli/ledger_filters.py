"""Which records `attnbench ledger log` lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Record, State, Status

# What a record may say, from `protocol` and `quality`, whose modules import msgspec.
VERDICTS = (
    "FASTER", "SLOWER", "EQUIVALENT", "INCONCLUSIVE", "VOID", "SMALLER", "LARGER",
    "PASS", "MARGINAL", "KILL", "NOT_EVALUATED", "SUPPORTED", "FALSIFIED", "UNTESTABLE",
)  # fmt: skip
CELL_NAMES = ("model", "context", "batch", "dtype", "scope", "mode", "device")


@dataclass(frozen=True)
class Filters:
    """A record is listed when it passes all of them; an empty one lets everything pass."""

    kind: Kind | None
    cell: str
    method: str
    verdict: str
    run: str
    since: datetime | None
    tainted: bool

    def accept(self, record: Record, state: State) -> bool:
        return (
            self.kind in (None, record.kind)
            and _has_words(self.cell, record)
            and _has_method(self.method, record)
            and _has_verdict(self.verdict, record)
            and str(record.body.get("run", "")).startswith(self.run)
            and (self.since is None or datetime.fromisoformat(record.utc) >= self.since)
            and (not self.tainted or state.statuses[record.id] is not Status.LIVE)
        )


def refuse_unknown(filters: Filters, records: Sequence[Record]) -> None:
    """Raise UsageError for a verdict or a name in a cell that no record could have."""
    said = {str(value).lower() for r in records for value in _named(r, "verdict").values()}
    if filters.verdict and filters.verdict.lower() not in said:
        _require(filters.verdict, VERDICTS, "verdict")
    names = {str(name) for r in records for name in _named(r, "cell")} | set(CELL_NAMES)
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


def _has_words(words: str, record: Record) -> bool:
    cell = " ".join(f"{key}={value}" for key, value in _named(record, "cell").items())
    return all(word.lower() in cell.lower() for word in words.split())


def _has_method(method: str, record: Record) -> bool:
    arms = record.body.get("arms", [])
    names = [record.body.get("method", ""), record.body.get("arm", ""), *map(str, arms)]
    return any(method.lower() in name.lower() for name in names)


def _has_verdict(verdict: str, record: Record) -> bool:
    verdicts = _named(record, "verdict").values()
    return not verdict or any(verdict.lower() == str(value).lower() for value in verdicts)


def _named(record: Record, member: str) -> Mapping[str, object]:
    """What a body holds by names there; a body may be of any form."""
    held = record.body.get(member, {})
    return held if isinstance(held, Mapping) else {"": held}
