"""What a selection of tokens does over steps and heads: drift, overlap, and whether overlap tells.

Three of DCR's negative results in figures, on queries and keys that a model really had. Keys are
those of the cache, after rotary embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attnbench.methods.base import KernelConfig, Method
from attnbench.methods.selection import mean_direction
from attnbench.quality.kept_mass import effective_weights, last_step
from attnbench.quality.metrics import head_metrics
from attnbench.quality.nulls import exact_weights
from attnbench.quality.replay import LayerTrace, replay

MOST_ATTENDED = 10  # tokens of each query that the mean axis is asked for
STABLE_DRIFT = 0.10  # at most, on average: a selection that stays
RESAMPLED = 1000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AxisOverlap:
    """Of a static axis, by step and head [S,H]: the share of the `MOST_ATTENDED` tokens among the
    nearest to the axis, and Spearman's correlation of projection and attention over tokens."""

    overlap: Tensor
    correlation: Tensor


@dataclass(frozen=True)
class OverlapAndCosine:
    """Of one method at one step, by head [H]: the share of its tokens that exact top-k of as many
    would take, and its output's cosine with SDPA's definition."""

    overlap: Tensor
    cosine: Tensor


def budget(coverage: float, tokens: int) -> int:
    """Tokens that a coverage takes of so many, one at least."""
    return max(1, round(coverage * tokens))


def exact_selections(trace: LayerTrace, coverage: float) -> Tensor:
    """Which of the prompt's tokens have the highest logits in each step: bool [S,H,N]."""
    prompt = trace.k[:, : trace.context].double()
    grouped = (trace.steps, trace.shape.kv_heads, trace.shape.group, trace.shape.head_dim)
    queries = trace.q.double().reshape(grouped)
    scores = torch.einsum("shgd,hnd->shgn", queries, prompt).flatten(1, 2)
    return marked(scores, budget(coverage, trace.context))


def marked(scores: Tensor, count: int) -> Tensor:
    """Where the `count` highest of [..,N] are: bool [..,N]."""
    rows = scores.topk(count, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, rows, True)


def drift(selected: Tensor) -> Tensor:
    """1 - |S_t ∩ S_0| / k of selections [S,H,N] of k tokens each: float64 [S,H]."""
    return 1 - (selected & selected[:1]).sum(-1) / selected[:1].sum(-1).double()


def reshuffle(selected: Tensor) -> Tensor:
    """1 - |S_t ∩ S_(t-1)| / k from the second step on: float64 [S-1,H]."""
    return 1 - (selected[1:] & selected[:-1]).sum(-1) / selected[:1].sum(-1).double()


def random_drift(coverage: float, tokens: int) -> float:
    """What drift and reshuffle are of selections that know nothing of each other: 1 - k / N."""
    return 1 - budget(coverage, tokens) / tokens


def stable_heads(drifted: Tensor, steps: int) -> int:
    """Heads whose drift [S,H], averaged over steps 1 to `steps`, is `STABLE_DRIFT` at most."""
    return int((drifted[1 : steps + 1].mean(0) <= STABLE_DRIFT).sum())


def axis_overlap(trace: LayerTrace, coverage: float) -> AxisOverlap:
    """What the direction normalise(mean of K / |K|) of each KV head knows of its queries, of the
    tokens that each step sees."""
    weights = exact_weights(trace.q, trace.k, trace.v, trace.shape.scale, trace.context)
    overlaps, correlations = [], []
    for step in range(trace.steps):
        seen = trace.context + step + 1
        keys = trace.k[:, :seen].double()
        along = (keys * mean_direction(keys, over=(1,))).sum(-1)[:, None]  # [Hkv,1,N]
        attention = weights.weights[:, :, step, :seen]  # [Hkv,G,N]
        most = marked(attention, min(MOST_ATTENDED, seen))
        near = marked(along, budget(coverage, seen))
        overlaps.append(((most & near).sum(-1) / most.sum(-1).double()).flatten())
        correlations.append(correlated(ranks(along), ranks(attention)).flatten())
    return AxisOverlap(torch.stack(overlaps), torch.stack(correlations))


def ranks(figures: Tensor) -> Tensor:
    """The rank of each of [..,N] in float64; equal figures as they come."""
    return figures.argsort(dim=-1).argsort(dim=-1).double()


def correlated(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension; 0 where one of the two does not vary."""
    one, other = (each - each.mean(-1, keepdim=True) for each in (one, other))
    spread = one.norm(dim=-1) * other.norm(dim=-1)
    return torch.where(spread > 0, (one * other).sum(-1) / spread.clamp_min(1e-300), 0.0)


def overlap_and_cosine(
    method: Method, trace: LayerTrace, kernel: KernelConfig | None = None
) -> OverlapAndCosine:
    """Of the last step of the trace. What a method selects is read off its outputs: the tokens to
    which it gives any weight."""
    last = last_step(trace)
    softmax = exact_weights(last.q, last.k, last.v, last.shape.scale, last.context)
    selected = effective_weights(method, last, kernel) > 0
    exact = softmax.weights[:, :, 0].flatten(0, 1)
    count = selected.sum(-1, keepdim=True)
    best = exact.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) < count
    outputs = replay(method, last, kernel).outputs
    return OverlapAndCosine(
        (selected & best).sum(-1) / count[:, 0].double().clamp_min(1),
        head_metrics(outputs, softmax.exact()).cosine[0],
    )


def spearman(one: Floats, other: Floats) -> float:
    """The rank correlation of two series, equal figures sharing their mean rank; NaN where one
    does not vary."""
    from scipy.stats import rankdata

    first, second = rankdata(one), rankdata(other)
    if first.std() == 0 or second.std() == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def spearman_interval(
    overlaps: Floats, cosines: Floats, seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Spearman's correlation over pairs of (layer, head), of means over windows [W,P], with the
    percentile interval of a bootstrap over windows."""
    rng = np.random.default_rng(seed)
    windows = len(overlaps)
    draws = []
    for _ in range(RESAMPLED):
        chosen = rng.integers(0, windows, windows)
        draws.append(spearman(overlaps[chosen].mean(0), cosines[chosen].mean(0)))
    tail = (1 - level) / 2
    low, high = np.nanquantile(draws, (tail, 1 - tail))
    return spearman(overlaps.mean(0), cosines.mean(0)), float(low), float(high)
