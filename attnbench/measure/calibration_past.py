"""A calibration that was begun: what the ledger holds of it, so that it can go on."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Ledger, Record, Status, fold
from attnbench.measure.calibration_plan import CalibrationPlan, CalibrationRequest
from attnbench.measure.tasks import ArmFailure, Bench, TaskResult

ABOUT = "calibration"  # the member of an opening record that holds the request
MAY_CHANGE = ("device_uuid", "driver", "platform")  # another machine of the same kind


@dataclass(frozen=True)
class Past:
    """The closed sessions of a run by their name in the ledger, and how it was asked for."""

    run: str
    request: CalibrationRequest
    results: Mapping[str, TaskResult]
    cites: tuple[str, ...]
    left_out: Mapping[str, ArmFailure]
    environment: Mapping[str, Any]
    sources: Mapping[str, str]
    bench: Bench  # of its first worker

    @property
    def sessions(self) -> int:
        """As many as its last closed session says, which are numbered from 0."""
        numbers = (name.split()[-1] for name in self.results)
        return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)

    def differences(self, plan: CalibrationPlan, environment: Mapping[str, Any]) -> tuple[str, ...]:
        """What is another one than before and may be: a card of the same name, its driver.

        Raises `UsageError` where the kind of device, packages or sources are not those of the run.
        """
        changed = {
            name: f"{name} {self.environment.get(name)} → {value}"
            for name, value in environment.items()
            if self.environment.get(name) != value
        }
        refused = [said for name, said in changed.items() if name not in MAY_CHANGE]
        refused += [
            f"the source of {name} changed"
            for name, sha256 in plan.sources.items()
            if self.sources.get(name) != sha256
        ]
        if refused:
            raise UsageError(
                f"run {self.run} cannot go on here: {'; '.join(refused)}",
                hint="sessions of one run are alike; start a new one without --resume",
            )
        return tuple(changed.values())


def past_of(ledger: Ledger, run: str) -> Past:
    """What the ledger holds of the calibration whose id begins with `run`.

    Sessions that were retracted are not there; they are measured again. Raises `UsageError` where
    there is no such run, or more than one.
    """
    records = list(ledger.records()) if ledger.path.exists() else []
    sessions = [r for r in records if r.kind is Kind.SESSION]
    opened = [r for r in sessions if _begins(r, run) and ABOUT in r.body]
    runs = sorted({str(record.body["run"]) for record in opened})
    if len(runs) != 1:
        found = f"{len(runs)} calibrations begin" if runs else "no calibration begins"
        raise UsageError(
            f"{found} with {run!r} in {ledger.path}",
            hint=f"they are {', '.join(runs)}" if runs else "`attnbench ledger log` lists runs",
        )
    statuses = fold(records).statuses
    closed = [
        record
        for record in sessions
        if record.body.get("run") == runs[0]
        and record.body.get("phase") == "closed"
        and statuses[record.id] is Status.LIVE
    ]
    body = opened[0].body
    return Past(
        run=runs[0],
        request=msgspec.convert(body[ABOUT], CalibrationRequest),
        results={str(record.body["session"]): _result(ledger, record) for record in closed},
        cites=tuple(record.id for record in closed),
        left_out=_left_out(opened[-1]),
        environment=body["environment"],
        sources=body["sources"],
        bench=msgspec.convert(body["task"]["bench"], Bench),
    )


def _begins(record: Record, run: str) -> bool:
    return bool(run) and str(record.body.get("run", "")).startswith(run)


def _result(ledger: Ledger, record: Record) -> TaskResult:
    data = gzip.decompress(ledger.get_blob(record.body["samples"]))
    result: TaskResult = msgspec.json.decode(data, type=TaskResult)
    return result


def _left_out(opened: Record) -> dict[str, ArmFailure]:
    """Arms that no worker of the run survives, as its last worker was told."""
    return msgspec.convert(opened.body["task"]["bench"].get("left_out", {}), dict[str, ArmFailure])
