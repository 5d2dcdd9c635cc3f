"""By how much the arms of a calibration are slower than its A, as its pilot decides."""

from __future__ import annotations

from math import fsum

from attnbench.measure.answers import PilotResult
from attnbench.measure.chosen import fastest_exact
from attnbench.protocol.calibration import Injected

PERCENTS = (0.2, 0.5, 1.0, 2.0, 5.0)  # of A's step, injected


def injected_by(pilot: PilotResult) -> tuple[Injected, ...]:
    """Every arm that waits, and how long: a share of the step of the fastest exact arm, A."""
    step_us = median_step_us(pilot, fastest_exact(pilot, 0))
    return tuple(
        Injected(arm=label_of(percent), asked=percent / 100, wait_us=step_us * percent / 100)
        for percent in PERCENTS
    )


def full_layers(pilot: PilotResult) -> list[int]:
    """The layers that attend in full."""
    return [layer.layer for layer in pilot.layers if layer.window is None]


def median_step_us(pilot: PilotResult, label: str) -> float:
    """Median over the pilot's visits of the mean step, microseconds."""
    visits = sorted(
        fsum(visit.steps_us) / len(visit.steps_us)
        for visit in pilot.session.cells[0].samples.visits
        if visit.arm == label
    )
    return visits[len(visits) // 2]


def label_of(percent: float) -> str:
    """What an arm is called that is slower by so much."""
    return f"+{percent:g}%"
