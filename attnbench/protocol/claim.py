"""What a measurement says of a claim: it starts at INCONCLUSIVE and has to earn anything else.

Asked in this order: whether the evidence is about the claim at all; whether it counts; what the
claim says of quality; what the numbers say of its bound.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import UNSET

from attnbench.errors import UsageError
from attnbench.protocol.result import ArmResult, Interval
from attnbench.protocol.verdict import Reason, Verdict

# An INCONCLUSIVE latency can have an interval that is clear of the claim's bound all the same. For
# these reasons the interval stands, and can falsify; fewer let it support a speed.
INTERVAL_STANDS = (Reason.NOT_RESOLVED, Reason.NOT_STRONGEST, Reason.HOLM)
INTERVAL_SUPPORTS = (Reason.NOT_RESOLVED,)


class Outcome(StrEnum):
    """What the evidence does to the claim."""

    SUPPORTED = "SUPPORTED"
    FALSIFIED = "FALSIFIED"
    INCONCLUSIVE = "INCONCLUSIVE"
    VOID = "VOID"
    UNTESTABLE = "UNTESTABLE"


class Direction(StrEnum):
    """On which side of its bound a claim puts the value."""

    AT_LEAST = "at-least"
    AT_MOST = "at-most"
    ABOUT = "about"  # within the claim's tolerance


class Reach(StrEnum):
    """How far a claim goes."""

    DEFINITION = "definition"  # follows from definitions and named random data, on no machine
    UNIVERSAL = "universal"
    THIS_GPU = "this-gpu"
    THIS_MODEL = "this-model"


class ClaimReason(StrEnum):
    """Why a claim's verdict is what it is."""

    BOUND_HELD = "bound-held"
    BOUND_MISSED = "bound-missed"
    BOUND_NOT_RESOLVED = "bound-not-resolved"
    CONTROL_NOT_FOUND = "control-not-found"
    EVIDENCE_OPEN = "evidence-open"
    EVIDENCE_VOID = "evidence-void"
    NOT_MEASURED = "not-measured"
    ONE_PLACE = "one-place"
    QUALITY_KILL = "quality-kill"
    REQUIREMENT_MISSED = "requirement-missed"
    QUALITY_NOT_SHOWN = "quality-not-shown"
    SCOPE = "scope"
    SOURCE_ONLY = "source-only"


NEXT_STEP = {
    ClaimReason.BOUND_HELD: "cite it with the cell that it was measured in",
    ClaimReason.BOUND_MISSED: "withdraw the claim, or state the bound that was measured",
    ClaimReason.BOUND_NOT_RESOLVED: "measure more sessions: the interval reaches both sides",
    ClaimReason.CONTROL_NOT_FOUND: (
        "find out why what is known beforehand was not found, then measure again"
    ),
    ClaimReason.EVIDENCE_OPEN: "settle the latency verdict first",
    ClaimReason.EVIDENCE_VOID: "cure what voids the measurement, then measure again",
    ClaimReason.NOT_MEASURED: "measure the quantity that the claim is about",
    ClaimReason.ONE_PLACE: "claim it of the GPU and the model where it held: one place is not all",
    ClaimReason.QUALITY_KILL: "withdraw the claim: the method hurts the model",
    ClaimReason.QUALITY_NOT_SHOWN: "run every quality gate on a trained model until it passes",
    ClaimReason.REQUIREMENT_MISSED: (
        "bring the arm to where the claim is about it, then measure again"
    ),
    ClaimReason.SCOPE: "measure on the GPU and the model that the claim names",
    ClaimReason.SOURCE_ONLY: "read the source's own code or log, which is not part of this project",
}


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A statement about one scalar: a speed-up (baseline time over arm time), bytes, a share.

    `tolerance` is relative to the bound (0.05: within 5 %) and of ABOUT alone. `gpu` and `model`
    are those that the statement was made of, as a cell names them; empty: it names none, as a
    statement about definitions must.
    `keeps_quality` is for a claim that says "without hurting quality".
    """

    statement: str
    bound: float
    direction: Direction
    reach: Reach
    tolerance: float = 0.0
    gpu: str = ""
    model: str = ""
    keeps_quality: bool = False

    def __post_init__(self) -> None:
        if (self.direction is Direction.ABOUT) != (self.tolerance > 0):
            raise UsageError(f"{self.statement!r}: a tolerance goes with 'about', and only with it")
        if self.direction is Direction.ABOUT and self.bound == 0:
            raise UsageError(f"{self.statement!r}: about nothing has no tolerance relative to it")
        unnamed = {Reach.THIS_GPU: not self.gpu, Reach.THIS_MODEL: not self.model}
        if unnamed.get(self.reach):
            raise UsageError(f"{self.statement!r}: a claim of {self.reach.value} must name it")
        if self.reach is Reach.DEFINITION and (self.gpu or self.model):
            raise UsageError(f"{self.statement!r}: what follows from definitions has no place")

    def limits(self) -> tuple[float, float]:
        """The least and the greatest value that the claim allows."""
        slack = self.tolerance * abs(self.bound)
        infinity = float("inf")
        return {
            Direction.AT_LEAST: (self.bound, infinity),
            Direction.AT_MOST: (-infinity, self.bound),
            Direction.ABOUT: (self.bound - slack, self.bound + slack),
        }[self.direction]


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of what a claim is about.

    `intervals` are of the same value by each of its centres; what is said must hold for all. A
    value that is no latency leaves the latency verdict empty; one that was computed from
    definitions has neither GPU nor model.
    """

    intervals: tuple[Interval, ...]
    gpu: str
    model: str
    latency: str = ""
    latency_reason: str = ""
    quality: str = ""
    next_step: str = ""

    @classmethod
    def of_speed(cls, result: ArmResult) -> Observation:
        """An arm's speed-up over the baseline."""
        return cls(
            intervals=tuple(r for r in (result.ratio, result.robust_ratio) if r is not UNSET),
            gpu=result.cell.device,
            model=result.cell.model,
            latency=result.verdict.latency,
            latency_reason=result.verdict.latency_reason,
            quality=result.verdict.quality,
            next_step=result.verdict.next_step,
        )


class ClaimVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the claim, why, and what to do next."""

    outcome: Outcome
    reason: ClaimReason
    next_step: str


def claim_verdict(claim: Claim, seen: Observation) -> ClaimVerdict:
    """What one observation does to the claim.

    On another GPU or model than a local claim names it says nothing of it; a universal claim it may
    falsify anywhere, and supports nowhere. What is measured somewhere settles no definition.
    """
    if claim.reach is not Reach.UNIVERSAL and _elsewhere(claim, seen):
        return _saying(Outcome.UNTESTABLE, ClaimReason.SCOPE)
    if seen.latency == Verdict.VOID:
        return _saying(Outcome.VOID, ClaimReason.EVIDENCE_VOID, seen.next_step)
    if claim.keeps_quality and seen.quality == "KILL":
        return _saying(Outcome.FALSIFIED, ClaimReason.QUALITY_KILL)
    if not seen.intervals:
        return _saying(Outcome.INCONCLUSIVE, ClaimReason.NOT_MEASURED)
    if not _is_among(seen, INTERVAL_STANDS):
        return _saying(Outcome.INCONCLUSIVE, ClaimReason.EVIDENCE_OPEN, seen.next_step)
    return _by_bound(claim, seen)


def _by_bound(claim: Claim, seen: Observation) -> ClaimVerdict:
    least, greatest = claim.limits()
    if all(each.high < least or each.low > greatest for each in seen.intervals):
        return _saying(Outcome.FALSIFIED, ClaimReason.BOUND_MISSED)
    if not all(least <= each.low and each.high <= greatest for each in seen.intervals):
        return _saying(Outcome.INCONCLUSIVE, ClaimReason.BOUND_NOT_RESOLVED)
    if not _is_among(seen, INTERVAL_SUPPORTS):
        return _saying(Outcome.INCONCLUSIVE, ClaimReason.EVIDENCE_OPEN, seen.next_step)
    if claim.keeps_quality and seen.quality != "PASS":
        return _saying(Outcome.INCONCLUSIVE, ClaimReason.QUALITY_NOT_SHOWN)
    if claim.reach is Reach.UNIVERSAL:
        return _saying(Outcome.INCONCLUSIVE, ClaimReason.ONE_PLACE)
    return _saying(Outcome.SUPPORTED, ClaimReason.BOUND_HELD)


def _elsewhere(claim: Claim, seen: Observation) -> bool:
    if claim.reach is Reach.DEFINITION:
        return bool(seen.gpu or seen.model)
    named = ((claim.gpu, seen.gpu), (claim.model, seen.model))
    return any(of_claim and of_claim != measured for of_claim, measured in named)


def _is_among(seen: Observation, reasons: tuple[str, ...]) -> bool:
    """Whether the latency verdict decided, or is open for one of these reasons alone."""
    return seen.latency != Verdict.INCONCLUSIVE or seen.latency_reason in reasons


def _saying(outcome: Outcome, reason: ClaimReason, detail: str = "") -> ClaimVerdict:
    advice = NEXT_STEP[reason]
    return ClaimVerdict(
        outcome=outcome, reason=reason, next_step=f"{advice}: {detail}" if detail else advice
    )
