"""The latency verdict: it starts at INCONCLUSIVE and has to earn anything else.

Asked in this order: what voids the numbers; too few sessions; the control A'/A; the difference
itself, by both centres; every exact arm measured beside it. Several candidates of one run share one
error rate (`adjusted`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from attnbench.protocol.blocks import SessionBlocks, latency_ms, log_ratios, session_blocks
from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.comparison import Comparison, ratio_interval
from attnbench.protocol.costs import next_plan
from attnbench.protocol.cycles import cycles
from attnbench.protocol.order import place_costs
from attnbench.protocol.presets import FEWEST_SESSIONS, Protocol
from attnbench.protocol.result import NextPlan
from attnbench.protocol.validity import ByteFloor, Case, void
from attnbench.protocol.verdict import Finding, LatencyVerdict, Reason, Spread, Verdict
from attnbench.stats.equivalence import as_effect, sessions_needed, smallest_effect
from attnbench.stats.holm import holm
from attnbench.stats.variance import Costs, Variance, split_variance

SPEEDS = frozenset({Verdict.FASTER, Verdict.SLOWER})
STATEMENTS = SPEEDS | {Verdict.EQUIVALENT}


@dataclass(frozen=True)
class _Trial:
    """One arm against the baseline, and the baseline against itself."""

    protocol: Protocol
    claim: float
    difference: Comparison
    control: Comparison
    not_beaten: tuple[str, ...]
    exact_p: float

    def finding(self) -> Finding:
        """What valid sessions support."""
        protocol = self.protocol
        if len(self.difference.means) < FEWEST_SESSIONS:
            return Finding(Verdict.INCONCLUSIVE, Reason.TOO_FEW_SESSIONS)
        if not self.control.covers_one(protocol.aa_level):
            detail = "A and A′, the same method, differ"
            return Finding(Verdict.VOID, Reason.AA_CONTROL, detail)
        found = self.difference.decide(self.claim, protocol.equivalence_margin, protocol.level)
        return self._blurred(found) or self._beaten(found) or self._with_plan(found)

    def _blurred(self, found: Finding) -> Finding | None:
        """The control must be sharper than half of what is said; who says nothing needs none."""
        if found.verdict is Verdict.INCONCLUSIVE:
            return None
        half_width, effect = self.control.half_width(self.protocol.level), self._stated(found)
        if half_width < effect / 2:
            return None
        detail = f"A/A′ is known to ±{half_width:.2%}, too wide for a statement about {effect:.2%}"
        return Finding(Verdict.VOID, Reason.AA_CONTROL, detail)

    def _stated(self, found: Finding) -> float:
        """The size of what the verdict states, as a log ratio."""
        if found.verdict is Verdict.EQUIVALENT:
            return math.log1p(self.protocol.equivalence_margin)
        return math.log1p(self.claim) if self.claim else self.difference.least_effect()

    def _beaten(self, found: Finding) -> Finding | None:
        if found.verdict is not Verdict.FASTER or not self.not_beaten:
            return None
        detail = f"not shown faster than {', '.join(self.not_beaten)}, exact as well"
        return Finding(Verdict.INCONCLUSIVE, Reason.NOT_STRONGEST, detail)

    def _with_plan(self, found: Finding) -> Finding:
        if found.reason is not Reason.NOT_RESOLVED:
            return found
        seen, needed = self.smallest_effect(), self.sessions_needed()
        plan = "more than a thousand sessions" if needed is UNSET else f"{needed} sessions"
        detail = f"this run could have seen {_size(seen)}; {plan} would see {_size(self.sought())}"
        return Finding(found.verdict, found.reason, detail)

    def smallest_effect(self) -> float:
        """The difference that a run like this finds in four of five cases, as a ratio minus one."""
        difference = self.difference
        return smallest_effect(difference.sd(), len(difference.means), self.protocol.level)

    def sessions_needed(self) -> int | UnsetType:
        """Sessions for the observed effect, or for the margin where that is greater."""
        needed = sessions_needed(self.difference.sd(), self.sought(), self.protocol.level)
        return UNSET if needed is None else needed

    def sought(self) -> float:
        """What another run should resolve, as a ratio minus one."""
        return max(as_effect(self.difference.least_effect()), self.protocol.equivalence_margin)

    def figures(self, bare: LatencyVerdict) -> LatencyVerdict:
        """The verdict's numbers filled in; what it says is left as it is."""
        level, difference, control = self.protocol.level, self.difference, self.control
        equivalence_p = difference.equivalence_p(self.protocol.equivalence_margin)
        faster_p = max(difference.p_faster(self.claim), self.exact_p)
        return replace(
            bare,
            equivalent=equivalence_p <= 1 - level,
            ratio=ratio_interval(difference.mean(level), level),
            robust_ratio=ratio_interval(difference.robust(level), level),
            p_value=min(faster_p, difference.p_slower(self.claim)),
            equivalence_p=equivalence_p,
            smallest_effect=self.smallest_effect(),
            sessions_needed=self.sessions_needed(),
            aa=ratio_interval(control.mean(level), level),
            aa_robust=ratio_interval(control.robust(level), level),
            not_beaten=self.not_beaten,
        )


def latency_verdict(
    sessions: Sequence[SessionSamples],
    arm: str,
    *,
    baseline: str,
    baseline_again: str,
    protocol: Protocol,
    claim: float = 0.0,
    exact_arms: Sequence[str] = (),
    floor: ByteFloor | None = None,
    ceiling: str | None = None,
    costs: Costs | None = None,
) -> LatencyVerdict:
    """What these sessions say of `arm` against `baseline`; every arm is named by its label.

    `claim` is the registered speed-up minus one (0: any). `exact_arms` are those that ran beside
    it; FASTER must hold against each. Without `floor` the byte floor is not checked, without
    `ceiling` (see `ceiling.ceiling_for`) Amdahl's bound is not. `costs` (see `costs.costs_of`) are
    what a plan for the next run is made of.
    """
    compared = (arm, baseline, baseline_again)
    blocks = [session_blocks(session, compared) for session in sessions]
    finding = void(Case(sessions, compared, blocks, floor, ceiling))
    bare = _bare(sessions, arm, blocks, claim)
    kept = [of_session.kept for of_session in blocks if of_session.kept]
    if len(kept) < 2:
        return _saying(bare, finding or Finding(Verdict.INCONCLUSIVE, Reason.TOO_FEW_SESSIONS))
    rivals = [rival for rival in exact_arms if rival not in compared]
    exact = _against_exact(sessions, arm, rivals)
    trial = _Trial(
        protocol=protocol,
        claim=claim,
        difference=Comparison.of(kept, baseline, arm),
        control=Comparison.of(kept, baseline, baseline_again),
        not_beaten=_not_beaten(exact, claim, protocol.level),
        exact_p=max((rival.p_faster(claim) for rival in exact.values()), default=0.0),
    )
    places = place_costs(sessions, blocks, arm, protocol.level)
    in_cycles = cycles(kept, baseline, arm, protocol.level)
    variance = _variance([log_ratios(of_session, baseline, arm) for of_session in kept])
    filled = replace(
        trial.figures(bare),
        position_effect=places.position,
        carry_over=places.carry_over,
        cycles=in_cycles.per_step,
        cycles_ratio=in_cycles.ratio,
        spread=_spread(variance),
        next_plan=_next_plan(variance, costs, trial),
    )
    return _saying(filled, finding or trial.finding())


def adjusted(verdicts: Sequence[LatencyVerdict], *, level: float) -> list[LatencyVerdict]:
    """The verdicts on all candidates of a run under one error rate (Holm).

    A verdict that only stood alone becomes INCONCLUSIVE, or EQUIVALENT where that still holds.
    """
    alpha = 1 - level
    differs = holm([verdict.p_value if verdict.verdict in SPEEDS else 1.0 for verdict in verdicts])
    equals = holm([verdict.equivalence_p if verdict.equivalent else 1.0 for verdict in verdicts])
    return [
        _adjusted(verdict, differs=p <= alpha, equivalent=verdict.equivalent and equal_p <= alpha)
        for verdict, p, equal_p in zip(verdicts, differs, equals, strict=True)
    ]


def _adjusted(verdict: LatencyVerdict, *, differs: bool, equivalent: bool) -> LatencyVerdict:
    kept = replace(verdict, equivalent=equivalent)
    if verdict.verdict not in STATEMENTS or (verdict.verdict in SPEEDS and differs):
        return kept
    if equivalent:
        return _saying(kept, Finding(Verdict.EQUIVALENT, Reason.WITHIN_MARGIN))
    return _saying(kept, Finding(Verdict.INCONCLUSIVE, Reason.HOLM))


def _against_exact(
    sessions: Sequence[SessionSamples], arm: str, rivals: Sequence[str]
) -> dict[str, Comparison]:
    """Comparisons with the exact arms that have blocks in at least three sessions with `arm`."""
    shared = {
        rival: [b.kept for s in sessions if (b := session_blocks(s, (rival, arm))).kept]
        for rival in rivals
    }
    return {
        rival: Comparison.of(blocks, rival, arm)
        for rival, blocks in shared.items()
        if len(blocks) >= FEWEST_SESSIONS
    }


def _not_beaten(exact: dict[str, Comparison], claim: float, level: float) -> tuple[str, ...]:
    return tuple(rival for rival, pair in exact.items() if pair.p_faster(claim) > 1 - level)


def _bare(
    sessions: Sequence[SessionSamples], arm: str, blocks: Sequence[SessionBlocks], claim: float
) -> LatencyVerdict:
    """A verdict that has earned nothing yet."""
    return LatencyVerdict(
        arm=arm,
        verdict=Verdict.INCONCLUSIVE,
        reason=Reason.NOT_RESOLVED,
        next_step="",
        claim=claim,
        sessions=len(sessions),
        blocks_used=sum(len(of_session.kept) for of_session in blocks),
        blocks_dropped=sum(of_session.dropped for of_session in blocks),
        latency_ms=latency_ms(sessions, arm) or UNSET,
    )


def _saying(verdict: LatencyVerdict, finding: Finding) -> LatencyVerdict:
    return replace(
        verdict,
        verdict=finding.verdict,
        reason=finding.reason,
        next_step=finding.next_step,
        equivalent=verdict.equivalent and finding.verdict in STATEMENTS,
    )


def _variance(sessions: Sequence[Sequence[Sequence[float]]]) -> Variance | None:
    """Where the ratio's spread lies; None where groups or blocks are too few to split it."""
    if not any(len(session) > 1 for session in sessions) or not any(
        len(group) > 1 for session in sessions for group in session
    ):
        return None
    return split_variance(sessions)


def _spread(variance: Variance | None) -> Spread | UnsetType:
    if variance is None:
        return UNSET
    return Spread(
        session_sd=math.sqrt(variance.session),
        group_sd=math.sqrt(variance.group),
        block_sd=math.sqrt(variance.block),
    )


def _next_plan(
    variance: Variance | None, costs: Costs | None, trial: _Trial
) -> NextPlan | UnsetType:
    if variance is None or costs is None:
        return UNSET
    return next_plan(variance, costs, trial.sought(), trial.protocol.level)


def _size(effect: float) -> str:
    """A ratio minus one in words; of a wild one the factor."""
    return f"{effect:.2%}" if effect < 10 else f"a factor of {effect:.3g}"
