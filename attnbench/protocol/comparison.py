"""Two arms over all sessions, by both centres: what the difference supports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.protocol.blocks import Block, log_ratios
from attnbench.protocol.result import Interval
from attnbench.protocol.verdict import Finding, Reason, Verdict
from attnbench.stats.equivalence import tost
from attnbench.stats.ratio import as_ratio, session_ratio
from attnbench.stats.student import MeanInterval, mean_interval, p_above, p_below

GAP_RESOLUTION = 1e-6  # log ratio; below it lies rounding, not a slow mode


@dataclass(frozen=True)
class Comparison:
    """Session values of log(time of `above` / time of `below`) by both centres."""

    means: tuple[float, ...]
    robusts: tuple[float, ...]

    @classmethod
    def of(cls, sessions: Sequence[Sequence[Block]], above: str, below: str) -> Comparison:
        """From the blocks that count, by session; each session needs at least one."""
        ratios = [session_ratio(log_ratios(blocks, above, below)) for blocks in sessions]
        return cls(tuple(ratio.mean for ratio in ratios), tuple(ratio.robust for ratio in ratios))

    def mean(self, level: float) -> MeanInterval:
        """The sessions' means."""
        return mean_interval(self.means, level)

    def robust(self, level: float) -> MeanInterval:
        """The sessions' robust centres."""
        return mean_interval(self.robusts, level)

    def half_width(self, level: float) -> float:
        """The wider one's half-width."""
        return max(self.mean(level).half_width, self.robust(level).half_width)

    def sd(self) -> float:
        """The greater standard deviation between sessions."""
        return max(self.mean(0.95).sd, self.robust(0.95).sd)

    def least_effect(self) -> float:
        """The smaller distance of the two centres from no difference."""
        return min(abs(math.fsum(values)) / len(values) for values in (self.means, self.robusts))

    def covers_one(self, level: float) -> bool:
        """Whether both intervals hold "no difference"."""
        return all(
            interval.low <= 0 <= interval.high
            for interval in (self.mean(level), self.robust(level))
        )

    def p_faster(self, claim: float) -> float:
        """Two-sided p-value of "the ratio is above 1 + claim"."""
        limit = math.log1p(claim)
        return min(1.0, 2 * max(p_above(self.means, limit), p_above(self.robusts, limit)))

    def p_slower(self, claim: float) -> float:
        """Two-sided p-value of "the ratio is below 1 / (1 + claim)"."""
        limit = -math.log1p(claim)
        return min(1.0, 2 * max(p_below(self.means, limit), p_below(self.robusts, limit)))

    def equivalence_p(self, margin: float) -> float:
        """p-value of "the ratio is within the margin"."""
        return max(tost(self.means, margin), tost(self.robusts, margin))

    def decide(self, claim: float, margin: float, level: float) -> Finding:
        """What the difference alone supports: both centres must say the same."""
        gap = abs(self.mean(level).mean - self.robust(level).mean)
        if gap > max(self.half_width(level), GAP_RESOLUTION):
            detail = f"mean and robust centre lie {gap:.2%} apart, more than their interval"
            return Finding(Verdict.INCONCLUSIVE, Reason.HEAVY_TAIL, detail)
        alpha = 1 - level
        if self.p_faster(claim) <= alpha:
            return Finding(Verdict.FASTER, Reason.INTERVAL_CLEAR)
        if self.p_slower(claim) <= alpha:
            return Finding(Verdict.SLOWER, Reason.INTERVAL_CLEAR)
        if self.equivalence_p(margin) <= alpha:
            return Finding(Verdict.EQUIVALENT, Reason.WITHIN_MARGIN)
        if self._one_centre_is_clear(claim, level):
            detail = "one centre clears the claim, the other does not"
            return Finding(Verdict.INCONCLUSIVE, Reason.HEAVY_TAIL, detail)
        return Finding(Verdict.INCONCLUSIVE, Reason.NOT_RESOLVED)

    def _one_centre_is_clear(self, claim: float, level: float) -> bool:
        limit = math.log1p(claim)
        intervals = (self.mean(level), self.robust(level))
        return any(interval.low > limit or interval.high < -limit for interval in intervals)


def ratio_interval(log_interval: MeanInterval, level: float) -> Interval:
    """The interval as a ratio."""
    return Interval(
        estimate=as_ratio(log_interval.mean),
        low=as_ratio(log_interval.low),
        high=as_ratio(log_interval.high),
        level=level,
    )
