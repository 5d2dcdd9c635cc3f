"""What the pilot decides for the sessions: baseline, arms and kernel configurations."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from attnbench.errors import Unsupported
from attnbench.measure.evidence import AGAIN
from attnbench.measure.plan import PlannedArm
from attnbench.measure.tasks import Launch, PilotResult
from attnbench.protocol.cell import Arm


def fastest_exact(pilot: PilotResult, cell: int) -> str:
    """The label of the exact arm with the lowest median in this cell; it becomes the baseline.

    Raises `Unsupported` where none ran.
    """
    visits_us: dict[str, list[float]] = {}
    for visit in pilot.session.cells[cell].samples.visits:
        visits_us.setdefault(visit.arm, []).append(sum(visit.steps_us) / len(visit.steps_us))
    if not visits_us:
        failures = pilot.session.cells[cell].failures
        raise Unsupported(
            "no exact arm runs here, so there is no baseline to compare with",
            hint="; ".join(f"{label}: {why.message}" for label, why in failures.items()),
        )
    return min(visits_us, key=lambda label: median(visits_us[label]))


def takes_part(arm: PlannedArm, pilot: PilotResult, cell: int, baseline: str) -> bool:
    """Whether an arm is in this cell's sessions: one that failed in the pilot stays out."""
    failed_here = arm.label in pilot.session.cells[cell].failures
    kept_out = arm.pilot_only and arm.label != baseline
    return pilot.arms[arm.label].failure is None and not failed_here and not kept_out


def kernel_choices(arms: Iterable[Arm], pilot: PilotResult) -> dict[str, Launch]:
    """The configuration that the pilot timed as fastest, for every arm that has one to choose."""
    chosen = {arm.label: pilot.arms[arm.label.removesuffix(AGAIN)].fastest for arm in arms}
    return {label: launch for label, launch in chosen.items() if launch is not None}
