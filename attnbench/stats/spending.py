"""How an error rate is spent on several looks at the same growing data.

Nine tenths follow the O'Brien-Fleming-like spending function of Lan and DeMets 1983 ("Discrete
sequential boundaries for clinical trials", Biometrika 70:659), next to nothing early and nearly all
at the end; a tenth is shared equally, because an early look of three sessions could otherwise find
nothing at all by a t test. Their boundaries rest on the joint normal distribution of the looks,
which a handful of sessions with a spread of their own does not have. So each look is tested at the
error that falls to it alone: by Bonferroni's inequality the errors add up to no more than the
whole, however the looks depend on each other. What that gives away is little, since the last look
keeps most of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from scipy import special

SHARED = 0.1  # of the error, equally among the looks


def split(alpha: float, looks: Sequence[int]) -> tuple[float, ...]:
    """The error of each look; they sum to `alpha`. `looks` are ascending counts, the last all."""
    totals = [0.0, *(spent(alpha, look / looks[-1]) for look in looks[:-1]), alpha]
    return tuple(
        SHARED * alpha / len(looks) + (1 - SHARED) * (after - before)
        for before, after in pairwise(totals)
    )


def spent(alpha: float, share: float) -> float:
    """What Lan and DeMets's function has spent when this share of the data, 0 to 1, is in."""
    boundary = special.ndtri(1 - alpha / 2) / math.sqrt(share)
    return float(2 * special.ndtr(-boundary))
