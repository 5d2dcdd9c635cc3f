"""AETHER: its bounds, thresholds, logged qualities and governors, computed again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attnbench.ledger import Json
from attnbench.protocol.recomputed.block_bounds import (
    Array,
    Head,
    all_blocks,
    attend,
    cosine,
    dropped_mass,
    gaussian_head,
    greatest_logits,
    top_blocks,
    trt_potentials,
    upper_bounds,
    varied_heads,
)
from attnbench.protocol.recomputed.governors import count_governor, settles, share_governor
from attnbench.protocol.recomputed.observed import LEVEL, Observed, between, mean_of, value

ROUNDING = 1e-9  # relative, of float64 sums
TABLE = {0.5: 0.998, 0.7: 0.995, 0.8: 0.990, 0.9: 0.970}  # the source's cosine at a sparsity


def bound_violations(
    heads: int = 40,
    tokens: int = 1024,
    block: int = 64,
    seed: int = 1,
    bounds: Callable[..., Array] = upper_bounds,
) -> Observed:
    """AE-01: blocks whose bound lies below their greatest logit, raw and scaled."""
    rng = np.random.default_rng(seed)
    violations = looked_at = 0
    for head in varied_heads(rng, heads, tokens):
        for scaled in (False, True):
            bound = bounds(head, block, scaled=scaled)
            truth = greatest_logits(head, block, scaled=scaled)
            slack = ROUNDING * (1 + np.abs(bound) + np.abs(truth))
            violations += int(np.sum(truth > bound + slack))
            looked_at += len(truth)
    return value(
        violations,
        "blocks",
        "float64, rounding of 1e-9 allowed; normal, heavy-tailed, clustered and repeated keys",
        {"heads": heads, "tokens": tokens, "block": block, "seed": seed, "blocks": looked_at},
        note="for k in a block, q·k = q·μ + q·(k-μ) ≤ q·μ + ‖q‖‖k-μ‖ ≤ q·μ + ‖q‖ r",
    )


def mass_dropped_under_threshold(
    tokens: int = 4096, head_dim: int = 64, block: int = 64, threshold: float = 0.15
) -> Observed:
    """AE-02: softmax mass in skipped blocks, where all keys are zero but for one block's.

    Those logits are twice the threshold, so that block alone is kept; zero keys have a bound of 0.
    """
    q = np.zeros(head_dim)
    q[0] = math.sqrt(head_dim)
    k = np.zeros((tokens, head_dim))
    k[:block, 0] = 2 * threshold
    v = np.zeros((tokens, head_dim))
    v[:block, 0], v[block:, 1] = 1, 1
    head = Head(q, k, v)
    kept = upper_bounds(head, block) >= threshold
    seen = cosine(attend(head, block, kept), attend(head, block, all_blocks(head, block)))
    return value(
        dropped_mass(head, block, kept),
        "share of the softmax",
        "one block with logits of twice the threshold, all other keys zero; scaled bounds",
        {"tokens": tokens, "head_dim": head_dim, "block": block, "threshold": threshold},
        note=f"{int(kept.sum())} of {len(kept)} blocks kept; cosine of the output {seen:.4f}",
    )


def share_pruned(
    heads: int = 60,
    tokens: int = 4096,
    head_dims: Sequence[int] = (64, 128),
    block: int = 64,
    threshold: float = 0.15,
    seed: int = 3,
) -> Observed:
    """AE-03: the share of blocks below an absolute threshold, on Gaussian data."""
    rng = np.random.default_rng(seed)
    pruned, least = [], math.inf
    for i in range(heads):
        head = gaussian_head(rng, tokens, head_dims[i % len(head_dims)], with_values=False)
        bounds = upper_bounds(head, block)
        pruned.append(float(np.mean(bounds < threshold)))
        least = min(least, float(bounds.min()))
    inputs: dict[str, Json] = {
        "heads": heads,
        "tokens": tokens,
        "head_dims": list(head_dims),
        "block": block,
        "threshold": threshold,
        "seed": seed,
    }
    how = "scaled bounds of normal q and k; the raw ones are √D times as large"
    note = f"the least bound seen is {least:.2f}"
    if any(pruned):
        return mean_of(pruned, "share of blocks", how, inputs, note=note)
    most = 1 - ((1 - LEVEL) / 2) ** (1 / heads)  # of heads in which anything is pruned
    return between(0, most, "share of blocks", how, inputs, level=LEVEL, note=note)


def potential_violations(
    heads: int = 24,
    tokens: int = 4096,
    head_dims: Sequence[int] = (64, 128),
    block: int = 64,
    seed: int = 4,
    bounds: Callable[[Head, int], Array] = trt_potentials,
) -> Observed:
    """AE-04: the share of blocks whose potential lies below their greatest logit."""
    rng = np.random.default_rng(seed)
    below = looked_at = 0
    for i in range(heads):
        head = gaussian_head(rng, tokens, head_dims[i % len(head_dims)], with_values=False)
        below += int(np.sum(bounds(head, block) < greatest_logits(head, block)))
        looked_at += tokens // block
    return value(
        below / looked_at,
        "share of blocks",
        "the potential of the kernel (factor .3 + .7 concentration) on normal q and k",
        {
            "heads": heads,
            "tokens": tokens,
            "head_dims": list(head_dims),
            "block": block,
            "seed": seed,
        },
    )


def shortfall_of_table(
    heads: int = 60,
    tokens: int = 4096,
    head_dim: int = 64,
    block: int = 64,
    table: Mapping[float, float] | None = None,
    seed: int = 8,
) -> Observed:
    """AE-08: mean output cosine less the table's, where that is least."""
    table = table or TABLE
    rng = np.random.default_rng(seed)
    off: dict[float, list[float]] = {sparsity: [] for sparsity in table}
    for _ in range(heads):
        head = gaussian_head(rng, tokens, head_dim)
        exact = attend(head, block, all_blocks(head, block))
        scores = upper_bounds(head, block)
        for sparsity, promised in table.items():
            kept = top_blocks(scores, 1 - sparsity)
            off[sparsity].append(cosine(attend(head, block, kept), exact) - promised)
    means = {sparsity: float(np.mean(draws)) for sparsity, draws in off.items()}
    worst = min(means, key=means.__getitem__)
    return mean_of(
        off[worst],
        "cosine above the table's",
        "blocks of the highest bounds kept, exact softmax over them, normal q, k and v",
        {
            "heads": heads,
            "tokens": tokens,
            "head_dim": head_dim,
            "block": block,
            "seed": seed,
            "table": {f"{s:g}": c for s, c in table.items()},
        },
        note="at sparsity "
        + ", ".join(f"{s:g}: cosine {means[s] + c:.3f} for {c:g}" for s, c in table.items()),
    )


def error_of_zero_threshold(
    tokens: int = 256, head_dim: int = 8, block: int = 64, opposed: float = -1.0
) -> Observed:
    """AE-09: relative error at a threshold of 0, where one block points away from the query."""
    rng = np.random.default_rng(9)
    q = np.zeros(head_dim)
    q[0] = 1.0
    k = np.zeros((tokens, head_dim))
    k[:, 0] = 1.0
    k[:block, 0] = opposed
    head = Head(q, k, rng.standard_normal((tokens, head_dim)))
    bounds = upper_bounds(head, block)
    exact = attend(head, block, all_blocks(head, block))
    seen = attend(head, block, bounds >= 0)
    return value(
        float(np.linalg.norm(seen - exact) / np.linalg.norm(exact)),
        "relative error",
        "one block of keys at minus the query, all others at it; blocks with bounds of 0 or more "
        "kept",
        {
            "tokens": tokens,
            "head_dim": head_dim,
            "block": block,
            "opposed": opposed,
            "seed": 9,
        },
        note=f"{int(np.sum(bounds < 0))} of {len(bounds)} blocks have a negative bound",
        doubt="" if np.any(bounds < 0) else "no block was skipped",
    )


def least_error_at_half(
    heads: int = 60,
    tokens: int = 4096,
    head_dim: int = 64,
    block: int = 64,
    sparsity: float = 0.5,
    seed: int = 10,
) -> Observed:
    """AE-10: the least over heads of the greatest absolute error, half of the blocks dropped."""
    rng = np.random.default_rng(seed)
    errors: list[float] = []
    for _ in range(heads):
        head = gaussian_head(rng, tokens, head_dim)
        kept = top_blocks(upper_bounds(head, block), 1 - sparsity)
        exact = attend(head, block, all_blocks(head, block))
        errors.append(float(np.abs(attend(head, block, kept) - exact).max()))
    return value(
        min(errors),
        "greatest absolute error",
        "decode: the query sees every block; the blocks of the highest bounds kept; normal data",
        {
            "heads": heads,
            "tokens": tokens,
            "head_dim": head_dim,
            "block": block,
            "sparsity": sparsity,
            "seed": seed,
        },
        note=f"the greatest over heads is {max(errors):.3g}",
    )


def settled_governors(
    steps: int = 4000,
    count_gains: tuple[float, float] = (0.01, 0.05),
    share_gains: tuple[float, float] = (0.1, 0.05),
) -> Observed:
    """AE-11: the share of runs in which a governor stays within 5 % of its target."""
    demands = [float(d) for d in np.geomspace(2, 9000, 12)]
    starts = [0.1, 0.25, 0.4, 0.45, 0.55, 0.7, 0.85, 1.0]
    runs = {
        **{f"G1 {demand:.4g}": count_governor(demand, steps, count_gains) for demand in demands},
        **{f"G2 {start:g}": share_governor(start, steps, share_gains) for start in starts},
    }
    settled = {name: settles(run) for name, run in runs.items()}
    ends = {name: [float(f"{e:.4g}") for e in run[-2:]] for name, run in runs.items()}
    return value(
        sum(settled.values()) / len(settled),
        "share of runs",
        "both update rules as the source's code has them; settled: the last tenth of the run "
        "within 5 % of the target, relative",
        {
            "steps": steps,
            "G1": {"gains": list(count_gains), "demands": [round(d, 2) for d in demands]},
            "G2": {"gains": list(share_gains), "starts": starts},
        },
        note=f"settled: {', '.join(n for n, yes in settled.items() if yes) or 'none'}",
        data={"actual over target, last two steps": ends},
    )


def growth_of_work(
    tokens: int = 2**30, head_dim: int = 64, block: int = 64, kept_tokens: int = 2048
) -> Observed:
    """AE-12: the exponent with which a step's operations grow, the kept tokens held constant."""

    def operations(count: int) -> int:
        scoring = count // block * (2 * head_dim + 2)
        return scoring + kept_tokens * 4 * head_dim

    return value(
        math.log2(operations(2 * tokens) / operations(tokens)),
        "exponent of N",
        "two operations a dimension and block for q·μ, two to add ‖q‖ r, four a dimension and kept "
        "token; N doubled",
        {"tokens": tokens, "head_dim": head_dim, "block": block, "kept_tokens": kept_tokens},
    )


RECOMPUTED = {
    "AE-01": bound_violations,
    "AE-02": mass_dropped_under_threshold,
    "AE-03": share_pruned,
    "AE-04": potential_violations,
    "AE-08": shortfall_of_table,
    "AE-09": error_of_zero_threshold,
    "AE-10": least_error_at_half,
    "AE-11": settled_governors,
    "AE-12": growth_of_work,
}
