"""Every session that was opened, by run, and how it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnbench.ledger import Kind, Record
from attnbench.report.page.reading import Reading, day

OPENED = "opened"
ENDINGS = ("closed", "aborted", "failed", "abandoned")


@dataclass(frozen=True)
class Unfinished:
    """A session that did not close: its last record, its name and how it ended."""

    record: Record
    session: str
    how: str


@dataclass(frozen=True)
class RunSessions:
    """The sessions of one run: `ended` counts them by how they ended."""

    run: str
    day: str
    device: str
    opened: int
    ended: Mapping[str, int]
    first: Record
    unfinished: Sequence[Unfinished]


def sessions(reading: Reading) -> tuple[RunSessions, ...]:
    """By run, in the order in which the runs began."""
    by_run: dict[str, list[Record]] = {}
    for record in reading.of_kind(Kind.SESSION):
        by_run.setdefault(str(record.body.get("run", "")), []).append(record)
    return tuple(_of_run(run, records, reading) for run, records in by_run.items())


def total(found: Sequence[RunSessions]) -> Counter[str]:
    """How many were opened, and how many ended how."""
    counted: Counter[str] = Counter()
    for run in found:
        counted[OPENED] += run.opened
        counted.update(run.ended)
    return counted


def _of_run(run: str, records: Sequence[Record], reading: Reading) -> RunSessions:
    abandoned = [record for record in records if record.id in reading.state.abandoned]
    phases = Counter(str(record.body.get("phase")) for record in records)
    ended = {how: phases[how] for how in ENDINGS} | {"abandoned": len(abandoned)}
    environment = records[0].body.get("environment") or {}
    return RunSessions(
        run=run,
        day=day(records[0]),
        device=str(environment.get("device", "")) if isinstance(environment, Mapping) else "",
        opened=phases[OPENED],
        ended=ended,
        first=records[0],
        unfinished=tuple(_unfinished(records, reading)),
    )


def _unfinished(records: Sequence[Record], reading: Reading) -> Iterator[Unfinished]:
    for record in records:
        phase = str(record.body.get("phase"))
        how = "abandoned" if record.id in reading.state.abandoned else phase
        if how not in (OPENED, "closed"):
            yield Unfinished(record, str(record.body.get("session", "")), how)
