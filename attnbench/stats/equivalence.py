"""Equivalence, and what a run could have seen: two one-sided tests and the power of the t test.

Schuirmann 1987 for the two one-sided tests; power by the noncentral t distribution. Effects and
margins are ratios minus one (0.01: one per cent) and are taken symmetric on the log scale.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from scipy import optimize, special

from attnbench.stats.ratio import GREATEST_LOG
from attnbench.stats.student import p_above, p_below, t_quantile

POWER = 0.8
SESSIONS = range(3, 1001)  # what may be asked for: fewer decide nothing, more nobody runs


def tost(log_ratios: Sequence[float], margin: float) -> float:
    """p-value against "the ratio lies outside 1/(1+margin) to 1+margin"; one value a session."""
    limit = math.log1p(margin)
    return max(p_above(log_ratios, -limit), p_below(log_ratios, limit))


def smallest_effect(sd: float, sessions: int, level: float, power: float = POWER) -> float:
    """The effect that a two-sided t test at `level` finds with `power`; `sd` is of log ratios."""
    return as_effect(_noncentrality(sessions - 1, level, power) * sd / math.sqrt(sessions))


def as_effect(log_ratio: float) -> float:
    """expm1, kept finite where sessions disagree beyond any float."""
    return math.expm1(min(log_ratio, GREATEST_LOG))


def sessions_needed(sd: float, effect: float, level: float, power: float = POWER) -> int | None:
    """The fewest sessions, at least three, that find `effect`; None above a thousand."""

    def found(sessions: int) -> bool:
        return smallest_effect(sd, sessions, level, power) <= effect

    index = bisect_left(SESSIONS, True, key=found)
    return SESSIONS[index] if index < len(SESSIONS) else None


@lru_cache(maxsize=4096)
def _noncentrality(degrees: int, level: float, power: float) -> float:
    """Mean over standard error at which the two-sided t test has `power` on the right side.

    The wrong side is left out: finding the opposite is not finding, and its chance is negligible.
    """
    critical = t_quantile(degrees, (1 + level) / 2)

    def excess(noncentrality: float) -> float:
        return 1 - power - float(special.nctdtr(degrees, noncentrality, critical))

    return float(optimize.brentq(excess, 0.0, _more_than_enough(degrees, critical, power)))


def _more_than_enough(degrees: int, critical: float, power: float) -> float:
    """A noncentrality that has the power for certain, and not much more.

    t falls below `critical` only where its numerator or its denominator is unlucky; each may be in
    half of the runs that miss. Far beyond that the distribution's value is no number.
    """
    lucky = (1 + power) / 2
    denominator = math.sqrt(float(special.chdtri(degrees, 1 - lucky)) / degrees)
    return critical * denominator + float(special.ndtri(lucky))
