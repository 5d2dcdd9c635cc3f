"""Everything that was ever begun for a protocol: its runs, their sessions, what they said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.ledger import Account, Kind, Record, Status, Timing, account, fold
from attnbench.ledger.promises import is_opening, timing
from attnbench.protocol.claim_log import counting
from attnbench.protocol.registration import registrations


@dataclass(frozen=True)
class RunOf:
    """One run: under which version (0: none), whether that came first, its sessions, its verdict.

    `verdict` is empty while the run has none, and says so where its record no longer counts.
    """

    run: str
    utc: str
    version: int
    exploratory: bool
    timing: Timing | None
    sessions: Account
    verdict: str


def runs_of(records: Sequence[Record], id: str) -> list[RunOf]:
    """Every run of a protocol that opened a session, oldest first; none is left out."""
    openings: dict[str, list[Record]] = {}
    for record in records:
        if is_opening(record) and record.body.get("promise", {}).get("protocol") == id:
            openings.setdefault(str(record.body["run"]), []).append(record)
    verdicts = _verdicts(records)
    return [
        RunOf(
            run=run,
            utc=opened[0].utc,
            version=int(opened[0].body["promise"]["version"]),
            exploratory=bool(opened[0].body["promise"]["exploratory"]),
            timing=_timing(records, opened),
            sessions=_account(records, run),
            verdict=verdicts.get(run, ""),
        )
        for run, opened in openings.items()
    ]


def counting_run(records: Sequence[Record], id: str) -> RunOf | None:
    """The run whose verdict counts for a protocol, by the rule of `claim_log.counting`: of live
    verdicts, so that an exploratory one never hides a promised one. None without a live verdict."""
    runs = {run.run: run for run in runs_of(records, id)}
    statuses = fold(records).statuses
    verdicts = [
        record
        for record in records
        if record.kind is Kind.CLAIM
        and record.body.get("run") in runs
        and statuses[record.id] is Status.LIVE
    ]
    return runs[str(counting(verdicts).body["run"])] if verdicts else None


def _account(records: Sequence[Record], run: str) -> Account:
    return account(records, lambda record: record.body.get("run") == run)


def _timing(records: Iterable[Record], opened: Sequence[Record]) -> Timing | None:
    """By the registration that the run names or, where it names none, one of the same bytes."""
    promise = opened[0].body["promise"]
    same = [
        record
        for record in registrations(records)
        if record.id == promise["registration"]
        or (not promise["registration"] and record.body["file_sha256"] == promise["file_sha256"])
    ]
    return timing(same[0], opened) if same else None


def _verdicts(records: Sequence[Record]) -> dict[str, str]:
    statuses = fold(records).statuses
    found = {}
    for record in records:
        if record.kind is Kind.CLAIM and "run" in record.body:
            status = statuses[record.id]
            said = str(record.body["verdict"]["claim"])
            found[str(record.body["run"])] = (
                said if status is Status.LIVE else f"{said} ({status.value})"
            )
    return found
