"""Where runs were measured, and what was registered before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.ledger import Kind, Record
from attnbench.ledger.promises import timing
from attnbench.report.page.reading import SHORT, Reading, day

COLUMNS = ("device", "driver", "cuda", "torch", "triton", "transformers")
UNKNOWN = "not used yet"
NO_COMMIT = "unknown"


@dataclass(frozen=True)
class Environment:
    """Where a run was measured; two rows where it went on elsewhere."""

    run: str
    day: str
    values: Sequence[str]
    attnbench: str
    commits: Sequence[str]
    record: Record


@dataclass(frozen=True)
class Registration:
    """A protocol as it was registered; `standing` is derived from what rests on it."""

    record: Record
    protocol: str
    title: str
    version: str
    text: str
    standing: str
    runs: Sequence[str]


def environments(reading: Reading) -> tuple[Environment, ...]:
    """One row for each run and environment, in the order of the ledger."""
    by_place: dict[tuple[str, ...], list[Record]] = {}
    for record, environment in reading.environments():
        values = tuple(str(environment.get(name, "")) for name in COLUMNS)
        by_place.setdefault((str(record.body.get("run", "")), *values), []).append(record)
    return tuple(_environment(place, records) for place, records in by_place.items())


def registrations(reading: Reading) -> tuple[Registration, ...]:
    """Oldest first."""
    return tuple(_registration(each, reading) for each in reading.of_kind(Kind.REGISTRATION))


def _environment(place: tuple[str, ...], records: Sequence[Record]) -> Environment:
    run, *values = place
    commits = dict.fromkeys(_short_commit(record.commit) for record in records)
    return Environment(
        run=run,
        day=day(records[0]),
        values=values,
        attnbench=", ".join(dict.fromkeys(record.tool for record in records)),
        commits=tuple(commits),
        record=records[0],
    )


def _short_commit(commit: str | None) -> str:
    """What came before the hash, as in `files:`, the beginning of the hash, and whether what ran
    was something else than that commit."""
    if not commit:
        return NO_COMMIT
    kind, colon, name = commit.rpartition(":")
    hash, dash, mark = name.partition("-")
    return f"{kind}{colon}{hash[:SHORT]}{dash}{mark}"


def _registration(record: Record, reading: Reading) -> Registration:
    resting = [reading.by_id[id] for id in reading.state.cited_by.get(record.id, ())]
    runs = dict.fromkeys(str(r.body["run"]) for r in resting if r.body.get("run"))
    opened = [session for run in runs for session in reading.openings.get(run, ())]
    return Registration(
        record=record,
        protocol=str(record.body.get("protocol") or ""),
        title=str(record.body.get("title") or ""),
        version=str(record.body.get("version") or ""),
        text=str(record.body.get("text") or ""),
        standing=_standing(record, opened),
        runs=tuple(runs),
    )


def _standing(registration: Record, opened: Sequence[Record]) -> str:
    """Prospective where it precedes every session of the runs that rest on it."""
    return timing(registration, opened).value if opened else UNKNOWN
