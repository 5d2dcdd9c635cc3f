"""The exact interval of a share (Clopper and Pearson 1934): so many of so many."""

from __future__ import annotations

from scipy import special


def exact_interval(hits: int, trials: int, level: float) -> tuple[float, float]:
    """Lower and upper limit of the true share at confidence `level`; it never falls short of it.

    Raises `ValueError` for no trials, or more hits than trials.
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"{hits} of {trials} is no share")
    tail = (1 - level) / 2
    low = float(special.betaincinv(hits, trials - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, trials - hits, 1 - tail)) if hits < trials else 1.0
    return low, high
