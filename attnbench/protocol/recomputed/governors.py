"""Two of AETHER's threshold governors, each driving the simplest plant that its rule implies.

Both return actual over target at every step: 1 is settled.
"""

from __future__ import annotations

TARGET_COUNT = 1000.0
TARGET_SHARE = 0.5
NEAR = 0.05


def count_governor(demand: float, steps: int, gains: tuple[float, float]) -> list[float]:
    """G1 (rust): e = 1000 - Δ/ε; ε becomes ε - (α e + β de/dt), held between .001 and 10.

    Δ is constant and Δ/ε the count that is governed; ε begins at .1. With gains of 0.01 and 0.05
    the settled point is unstable wherever it lies within those limits: it needs
    β · 10^6 / Δ < 1, which is Δ > 50000, but ε = Δ / 1000 is at most 10.
    """
    alpha, beta = gains
    threshold, before = 0.1, None
    seen = []
    for _ in range(steps):
        actual = demand / threshold
        error = TARGET_COUNT - actual
        change = 0.0 if before is None else error - before
        threshold = min(max(threshold - (alpha * error + beta * change), 0.001), 10.0)
        before = error
        seen.append(actual / TARGET_COUNT)
    return seen


def share_governor(start: float, steps: int, gains: tuple[float, float]) -> list[float]:
    """G2 (python): ε becomes max(ε - (α + β/t)(actual - target), .01); ε is the share kept.

    Actual is the sparsity, 1 - ε, of which no more than everything is kept.
    """
    alpha, beta = gains
    kept = start
    seen = []
    for step in range(steps):
        actual = 1 - min(kept, 1.0)
        kept = max(kept - (alpha + beta / max(step, 1)) * (actual - TARGET_SHARE), 0.01)
        seen.append(actual / TARGET_SHARE)
    return seen


def settles(actual_over_target: list[float]) -> bool:
    """Whether the last tenth of a run stays within 5 % of the target."""
    last = actual_over_target[-max(len(actual_over_target) // 10, 1) :]
    return all(abs(each - 1) <= NEAR for each in last)
