"""A calibration that was begun: what the ledger holds of it, and how it was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from attnbench.errors import UsageError
from attnbench.ledger import Ledger, Record
from attnbench.ledger.promises import is_opening
from attnbench.measure.calibration_plan import CalibrationRequest
from attnbench.measure.past import Past, past_sessions
from attnbench.measure.tasks import Bench

ABOUT = "calibration"  # the member of an opening record that holds the request


@dataclass(frozen=True)
class CalibrationPast:
    """Closed sessions, the request, and the bench of the run's first worker."""

    held: Past
    request: CalibrationRequest
    bench: Bench


def past_of(ledger: Ledger, run: str) -> CalibrationPast:
    """What the ledger holds of the calibration whose id begins with `run`.

    Raises `UsageError` where there is no such run, or more than one.
    """
    records = list(ledger.records()) if ledger.path.exists() else []
    opened = [r for r in records if is_opening(r) and _begins(r, run) and ABOUT in r.body]
    runs = sorted({str(record.body["run"]) for record in opened})
    if len(runs) != 1:
        found = f"{len(runs)} calibrations begin" if runs else "no calibration begins"
        raise UsageError(
            f"{found} with {run!r} in {ledger.path}",
            hint=f"they are {', '.join(runs)}" if runs else "`attnbench ledger log` lists runs",
        )
    body = opened[0].body
    held = past_sessions(ledger, records, runs[0], body.get("cell"))
    assert held is not None  # its opening record was just found
    return CalibrationPast(
        held=held,
        request=msgspec.convert(body[ABOUT], CalibrationRequest),
        bench=msgspec.convert(body["task"]["bench"], Bench),
    )


def _begins(record: Record, run: str) -> bool:
    return bool(run) and str(record.body.get("run", "")).startswith(run)
