"""CY-Sieve: its sequence, its bias and its eviction policy, computed again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from attnbench.protocol.recomputed import s20
from attnbench.protocol.recomputed.observed import Observed, between, value

EXACT_WINDOW = 13  # the last distance whose S20 fits in 63 bits


def recurrence_residuals(
    last: int = 400, recurrence: tuple[tuple[int, ...], ...] = s20.RECURRENCE
) -> Observed:
    """CY-01: how often the recurrence fails, n = 0 … last."""
    terms = [s20.direct(n) for n in range(last + len(recurrence))]
    failures = sum(
        sum(s20.polynomial(p, n) * terms[n + j] for j, p in enumerate(recurrence)) != 0
        for n in range(last + 1)
    )
    return value(
        failures,
        "values of n",
        "S20 by its definition in whole numbers; the residual of the recurrence at every n",
        {"first": 0, "last": last},
    )


def log_growth() -> Observed:
    """CY-02: the log growth rate, from the recurrence and from the terms themselves."""
    both = sorted((s20.log_growth_by_polynomial(), s20.log_growth_by_saddle()))
    apart = both[1] - both[0]
    return between(
        both[0],
        both[1],
        "log growth a step",
        "the largest root of the recurrence's leading coefficients; the saddle point of the terms",
        {"recurrence": "order 4, degree 13"},
        doubt=f"the two ways differ by {apart:.2g}" if apart > 1e-9 else "",
    )


def growth_exponent(at: int = 200) -> Observed:
    """CY-03: the power β in S20(n) ~ C λ^n n^-β, and its value as n grows without bound."""
    growth = s20.log_growth_by_saddle()
    log = {n: math.log(s20.direct(n)) for n in (at, 2 * at, 4 * at)}
    betas = [
        (n * growth - (log[2 * n] - log[n])) / math.log(2) for n in (at, 2 * at)
    ]  # each errs by a multiple of 1 / n
    limit = 2 * betas[1] - betas[0]
    seen = (*betas, limit)
    return between(
        min(seen),
        max(seen),
        "exponent",
        "log S20(2n) - log S20(n) = n log λ - β log 2, at two n, and extrapolated in 1/n",
        {"n": [at, 2 * at], "log_growth": growth},
    )


def bias_table_ratio(
    length: int = 16384, vector_dtype: str = "float32", table_dtype: str = "float16"
) -> Observed:
    """CY-04: bytes of an L × L table over bytes of a vector of L."""
    table = length * length * np.dtype(table_dtype).itemsize
    vector = length * np.dtype(vector_dtype).itemsize
    return value(
        table / vector,
        "times",
        "element counts times element sizes",
        {"length": length, "vector": vector_dtype, "table": table_dtype},
        note=f"{table} and {vector} bytes; a decode step needs one row of the table: 1 times in "
        "equal dtype, and ALiBi stores nothing",
    )


def nearest_kept_distance(length: int = 512, modulus: int = 251) -> Observed:
    """CY-12: the smallest distance below `length` whose S20 the modulus divides."""
    kept = [int(d) for d in np.flatnonzero(s20.modulo(length, modulus) == 0) if d > 0]
    return value(
        min(kept, default=length),
        "tokens",
        "S20 modulo the number for every distance, by Pascal's rows",
        {"length": length, "modulus": modulus},
        note=f"kept distances: {', '.join(map(str, kept))}",
    )


def tail_error(last: int = 2048, exact_window: int = EXACT_WINDOW) -> Observed:
    """CY-13: the greatest relative error of the analytic tail against ln S20."""
    growth = s20.log_growth_by_saddle()
    terms = s20.by_recurrence(last + 1)
    wrong = [n for n in (exact_window, 400, 1000) if n <= last and terms[n] != s20.direct(n)]
    at = exact_window
    log_c = math.log(terms[at]) - at * growth + 2 * math.log(at)
    errors = {
        d: abs(d * growth - 2 * math.log(d) + log_c - exact) / exact
        for d in range(at + 1, last + 1)
        for exact in (math.log(terms[d]),)
    }
    worst = max(errors, key=errors.__getitem__)
    return value(
        errors[worst],
        "relative error",
        "S20 by recurrence in whole numbers, three of them by definition too; tail joined at 13",
        {"first": at + 1, "last": last, "exact_window": exact_window},
        note=f"greatest at distance {worst}",
        doubt=f"the recurrence leaves S20 at {wrong[0]}" if wrong else "",
    )


def differing_kept_sets(
    contexts: Sequence[int] = (256, 512, 2048, 4096), budgets: Sequence[int] = (16, 64, 128, 200)
) -> Observed:
    """CY-14: in how many cases `holo-strided` keeps other tokens than `recent`."""
    weight = -np.array([0.0, *(math.log(term) for term in s20.by_recurrence(max(contexts))[1:])])
    cases = [(context, budget) for context in contexts for budget in budgets]
    differing = sum(
        holo_strided(weight[:context], budget) != set(range(budget)) for context, budget in cases
    )
    return value(
        differing,
        "cases",
        "both policies as the source's code has them, over distances; sets compared",
        {"contexts": list(contexts), "budgets": list(budgets), "cases": len(cases)},
    )


def holo_strided(log_weight: np.ndarray, budget: int) -> set[int]:
    """Half of the budget most recent, then the heaviest older distances; ties to the nearer."""
    recent = budget // 2
    by_weight = np.argsort(-log_weight, kind="stable")
    older = [int(d) for d in by_weight if d >= recent][: budget - recent]
    return set(range(recent)) | set(older)


RECOMPUTED = {
    "CY-01": recurrence_residuals,
    "CY-02": log_growth,
    "CY-03": growth_exponent,
    "CY-04": bias_table_ratio,
    "CY-12": nearest_kept_distance,
    "CY-13": tail_error,
    "CY-14": differing_kept_sets,
}
