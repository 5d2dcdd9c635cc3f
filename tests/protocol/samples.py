"""Undisturbed sessions, to be disturbed by one thing at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from attnbench.protocol.cell import SessionSamples, Visit
from attnbench.protocol.decide import latency_verdict
from attnbench.protocol.presets import CANONICAL
from attnbench.protocol.schedule import schedule
from attnbench.protocol.verdict import LatencyVerdict
from tests.calibration.simulated_gpu import SimulatedArm, SimulatedGpu

QUIET = SimulatedGpu(step_sd=0.001, placement_sd=1e-4, capture_sd=1e-4)


def sessions_of(
    step_us: Mapping[str, float | SimulatedArm],
    sessions: int = 3,
    gpu: SimulatedGpu = QUIET,
    seed: int = 1,
) -> list[SessionSamples]:
    """Canonical sessions of these arms and of the baseline pair, "a" and "a2" of 1000 µs."""
    given = {"a": 1000.0, "a2": 1000.0} | dict(step_us)
    arms = {
        label: kind if isinstance(kind, SimulatedArm) else SimulatedArm(kind)
        for label, kind in given.items()
    }
    plan = schedule(tuple(arms), sessions=sessions, blocks=12, groups=4, seed=seed)
    return gpu.run(plan, arms, steps=5, seed=seed)


def decided(sessions: list[SessionSamples], arm: str = "c", **settings: object) -> LatencyVerdict:
    """The canonical verdict on `arm` against "a"."""
    fixed = {"baseline": "a", "baseline_again": "a2", "protocol": CANONICAL}
    return latency_verdict(sessions, arm, **(fixed | settings))


def with_visits(
    sessions: list[SessionSamples], change: Callable[[int, Visit], Visit | None]
) -> list[SessionSamples]:
    """The sessions with each visit changed, or left out; `change` is told the session's number."""
    return [
        msgspec.structs.replace(
            session,
            visits=tuple(
                changed
                for visit in session.visits
                if (changed := change(session.session, visit)) is not None
            ),
        )
        for session in sessions
    ]


def slowed(visit: Visit, factor: float) -> Visit:
    """The same visit, taking `factor` times as long."""
    return msgspec.structs.replace(
        visit,
        steps_us=tuple(step * factor for step in visit.steps_us),
        wall_us=visit.wall_us * factor,
    )


def with_gpu(visit: Visit, **state: float | int | str) -> Visit:
    """The same visit with that GPU state."""
    return msgspec.structs.replace(visit, gpu=visit.gpu | state)
