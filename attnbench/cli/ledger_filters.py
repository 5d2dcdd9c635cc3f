"""Which records `attnbench ledger log` lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Record, State, Status


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
