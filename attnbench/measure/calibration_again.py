"""A calibration's findings once more, from the sessions in a ledger: no device is needed."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Ledger
from attnbench.measure.answers import PilotResult, SessionResult
from attnbench.measure.calibration_past import CalibrationPast
from attnbench.measure.calibration_plan import calibration_arms
from attnbench.protocol.calibration import Calibrated, findings
from attnbench.protocol.calibration_result import INSTRUMENT, CalibrationResult
from attnbench.protocol.cell import Cell
from attnbench.protocol.presets import preset

FEWEST_SESSIONS = 3


def analysed(ledger: Ledger, past: CalibrationPast) -> CalibrationResult:
    """Say what the closed sessions of a run mean, and record that.

    Raises `UsageError` for an order effect, and where fewer than three sessions are closed.
    """
    pilot = past.held.results.get("pilot")
    sessions = _in_order(past)
    if not isinstance(pilot, PilotResult) or len(sessions) < FEWEST_SESSIONS:
        raise UsageError(
            f"run {past.held.run} holds {len(sessions)} closed sessions of a calibration; "
            f"{FEWEST_SESSIONS} are needed",
            hint=f"`attnbench calibrate --resume {past.held.run}` measures more",
        )
    result = _result(past, pilot, sessions)
    ledger.append(Kind.RESULT, msgspec.to_builtins(result), cites=past.held.cites)
    return result


def _in_order(past: CalibrationPast) -> list[SessionResult]:
    numbered = {int(name): result for name, result in past.held.results.items() if name.isdigit()}
    return [r for _, r in sorted(numbered.items()) if isinstance(r, SessionResult)]


def _result(
    past: CalibrationPast, pilot: PilotResult, sessions: list[SessionResult]
) -> CalibrationResult:
    chosen, first = calibration_arms(pilot), sessions[0]
    protocol = replace(preset(past.request.protocol), sessions=len(sessions), looks=())
    seen = Calibrated(
        samples=[session.cells[0].samples for session in sessions],
        phases_s=[session.phases_s for session in sessions],
        layers=chosen.layers,
        injected=chosen.injected,
        protocol=protocol,
    )
    devices = {str(s.cells[0].samples.environment.get("device_uuid", "")) for s in sessions}
    return CalibrationResult(
        calibration=INSTRUMENT,
        run=past.held.run,
        cell=_cell(past, first),
        arms={arm.label: arm.method for arm in chosen.arms},
        protocol=msgspec.to_builtins(protocol),
        environment={
            **past.held.environment,
            **first.cells[0].samples.environment,
            "model_identity": first.model_identity,
            "cache_sha256": first.cache_sha256,
            "devices": len(devices),
        },
        sources=dict(past.held.sources),
        kernels=chosen.kernels,
        findings=findings(seen),
    )


def _cell(past: CalibrationPast, session: SessionResult) -> Cell:
    """As the run's own workers were asked: the request may have left some of it to the plan."""
    return Cell(
        model=past.bench.model,
        context=past.bench.context,
        batch=past.bench.batch,
        dtype=past.bench.dtype,
        scope=session.cells[0].scope,
        mode=session.cells[0].mode,
        device=str(past.held.environment["device"]),
    )
