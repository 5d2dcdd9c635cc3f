"""Holm's step-down adjustment (Holm 1979): many comparisons, one error rate."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order; rejecting those at or under alpha keeps the family's
    error rate at alpha, however the tests depend on each other."""
    ascending = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(ascending):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted
