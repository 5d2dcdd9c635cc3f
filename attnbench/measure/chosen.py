"""What the pilot decides for the sessions: baseline, arms and kernel configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from msgspec.structs import replace

from attnbench.errors import DoesNotFit, Unsupported
from attnbench.measure.answers import PilotResult
from attnbench.measure.conduct import conduct_of
from attnbench.measure.evidence import AGAIN, Evidence, JudgedArm
from attnbench.measure.tasks import ArmFailure, Launch
from attnbench.protocol.cell import Arm, Cell
from attnbench.protocol.family import Family
from attnbench.protocol.integrity import misconduct
from attnbench.protocol.verdict import NEXT_STEP, Finding

# Of the room beside model and cache, what arms may take together: an allocator rounds.
ROOM_SHARE = 0.95
GIB = 1 << 30
BROKEN_ARM = "BrokenArm"
PLAIN = "sdpa"


def baseline_of(pilot: PilotResult, cell: int, arms: Iterable[JudgedArm]) -> str:
    """The fastest exact arm of this cell, or the one that was named. One that would stay in the
    pilot has to be faster than every other in each block: else luck decides whether the sessions
    have an arm more.

    Raises `Unsupported` where none ran, or the one that was named did not.
    """
    arms = tuple(arms)
    visits_us = _exact_visits_us(pilot, cell)
    named = next((arm.label for arm in arms if arm.named_baseline), None)
    if named is not None:
        return _running(named, visits_us, pilot, cell)
    shy = {arm.label for arm in arms if arm.pilot_only}
    fastest = _fastest(visits_us)
    others = {label: by_block for label, by_block in visits_us.items() if label not in shy}
    if fastest not in shy or not others:
        return fastest
    beaten = (
        all(visits_us[fastest][block] < us for block, us in by_block.items())
        for by_block in others.values()
    )
    return fastest if all(beaten) else _fastest(others)


def _running(named: str, visits_us: Mapping[str, object], pilot: PilotResult, cell: int) -> str:
    if named in visits_us:
        return named
    failure = pilot.arms[named].failure or pilot.session.cells[cell].failures.get(named)
    raise Unsupported(
        f"{named}, which is named as the baseline, does not run here",
        hint=failure.message if failure else "",
    )


def fastest_exact(pilot: PilotResult, cell: int) -> str:
    """The label of the exact arm with the lowest median in this cell.

    Raises `Unsupported` where none ran.
    """
    return _fastest(_exact_visits_us(pilot, cell))


def _fastest(visits_us: Mapping[str, Mapping[int, float]]) -> str:
    return min(visits_us, key=lambda label: median(visits_us[label].values()))


def _exact_visits_us(pilot: PilotResult, cell: int) -> dict[str, dict[int, float]]:
    """Microseconds of a step, by arm and block, of the arms that are sound."""
    visits_us: dict[str, dict[int, float]] = {}
    visits = pilot.session.cells[cell].samples.visits
    for visit in (each for each in visits if pilot.arms[each.arm].failure is None):
        step_us = sum(visit.steps_us) / len(visit.steps_us)
        visits_us.setdefault(visit.arm, {})[visit.block] = step_us
    if not visits_us:
        failures = pilot.session.cells[cell].failures
        raise Unsupported(
            "no exact arm runs here, so there is no baseline to compare with",
            hint="; ".join(f"{label}: {why.message}" for label, why in failures.items()),
        )
    return visits_us


def without_cheats(pilot: PilotResult, arms: Iterable[JudgedArm], dtype: str) -> PilotResult:
    """The pilot with a failure for every exact arm whose timed steps were not honest.

    Else the fastest of them would become the baseline, and void everything that is compared to it.
    """
    exact = [arm.label for arm in arms if arm.family is Family.EXACT]
    found = dict(pilot.arms)
    for label in exact:
        finding = _misconduct(pilot, label, dtype)
        if finding is not None and found[label].failure is None:
            failure = ArmFailure(
                type=BROKEN_ARM,
                message=finding.detail,
                hint=NEXT_STEP[finding.reason],
                during="pilot",
                reason=finding.reason.value,
            )
            found[label] = replace(found[label], failure=failure)
    return replace(pilot, arms=found)


def _misconduct(pilot: PilotResult, label: str, dtype: str) -> Finding | None:
    """In any cell, beside plain SDPA where that ran, since there is no baseline yet."""
    for cell, walked in enumerate(pilot.session.cells):
        beside = PLAIN if PLAIN in walked.read_bytes else label
        seen = conduct_of(label, beside, [pilot.session], cell, dtype=dtype, exact=True)
        finding = misconduct(seen)
        if finding is not None:
            return finding
    return None


def without_crowded(pilot: PilotResult, arms: Sequence[JudgedArm]) -> PilotResult:
    """The pilot with a failure for every arm that has no room beside the others.

    Arms of a cell stand in memory together, the baseline twice. Those that were asked for come
    first, then the others in their order; what does not fit is told with figures, and could be
    measured in a run with fewer arms.
    """
    if not pilot.room_bytes:
        return pilot
    cells = range(len(pilot.session.cells))
    pairs = {baseline_of(pilot, cell, arms) for cell in cells}
    left = int(pilot.room_bytes * ROOM_SHARE)
    left -= 2 * max(pilot.arms[label].own_bytes for label in pairs)
    found = dict(pilot.arms)
    for arm in sorted(arms, key=lambda arm: not arm.asked_for):
        seen = found[arm.label]
        if arm.label in pairs or arm.pilot_only or seen.failure is not None:
            continue
        if seen.own_bytes <= left:
            left -= seen.own_bytes
        else:
            found[arm.label] = replace(seen, failure=_crowded(seen.own_bytes, left))
    return replace(pilot, arms=found)


def _crowded(own_bytes: int, left: int) -> ArmFailure:
    return ArmFailure(
        type=DoesNotFit.__name__,
        message=f"it holds {own_bytes / GIB:.2f} GiB of its own, and the other arms leave "
        f"{max(0, left) / GIB:.2f} GiB",
        hint="measure it with fewer arms beside it, or at a smaller context or batch",
        during="pilot",
    )


def takes_part(arm: JudgedArm, pilot: PilotResult, cell: int, baseline: str) -> bool:
    """Whether an arm is in this cell's sessions: one that failed in the pilot stays out."""
    failed_here = arm.label in pilot.session.cells[cell].failures
    kept_out = arm.pilot_only and arm.label != baseline
    return pilot.arms[arm.label].failure is None and not failed_here and not kept_out


@dataclass(frozen=True)
class PilotArm:
    """An arm that stayed in the pilot: its time there over the baseline's, None where it has none
    (a twin, which runs the kernel of another arm, or an arm that failed, and `why`)."""

    label: str
    over_baseline: float | None
    twin: str
    why: str = ""


def pilot_alone(evidence: Evidence) -> dict[Cell, tuple[PilotArm, ...]]:
    """By cell, the arms that none of its sessions holds because they are slow or a twin."""
    arms = evidence.plan.arms
    return {
        cell.cell: _alone_in(evidence.pilot, index, arms, cell.baseline.label)
        for index, cell in enumerate(evidence.cells)
    }


def _alone_in(
    pilot: PilotResult, cell: int, arms: Iterable[JudgedArm], baseline: str
) -> tuple[PilotArm, ...]:
    times_us = {label: median(us.values()) for label, us in _exact_visits_us(pilot, cell).items()}
    return tuple(
        PilotArm(
            label=arm.label,
            over_baseline=(
                times_us[arm.label] / times_us[baseline] if arm.label in times_us else None
            ),
            twin=arm.twin,
            why=_why_not(pilot, cell, arm.label),
        )
        for arm in arms
        if arm.pilot_only and arm.label != baseline
    )


def _why_not(pilot: PilotResult, cell: int, label: str) -> str:
    failure = pilot.arms[label].failure or pilot.session.cells[cell].failures.get(label)
    return "" if failure is None else failure.message


def kernel_choices(arms: Iterable[Arm], pilot: PilotResult) -> dict[str, Launch]:
    """The configuration that the pilot timed as fastest, for every arm that has one to choose."""
    chosen = {arm.label: pilot.arms[arm.label.removesuffix(AGAIN)].fastest for arm in arms}
    return {label: launch for label, launch in chosen.items() if launch is not None}
