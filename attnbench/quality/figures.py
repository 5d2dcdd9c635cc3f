"""The figures of one arm's quality, computed from its raw samples with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnbench.quality.samples import Floats, GateArrays

PERPLEXITY_WINDOWS = 5  # fewer text offsets do not make a perplexity gate
LOGIT_STEPS = 64  # fewer steps a window do not make a gate of logits

Figures = dict[str, float]


@dataclass(frozen=True)
class Head:
    """One query head and its value, averaged over windows and steps."""

    layer: int
    head: int
    value: float


def figures(arrays: GateArrays) -> Figures:
    """Every figure by name; one that cannot be computed from finite samples is absent.

    Samples that are not finite are counted in `non_finite` and enter nothing else.
    """
    found = {
        "non_finite": float(_non_finite(arrays.cosine) + _non_finite(arrays.kl_nats)),
        "deterministic": float(arrays.deterministic[0]),
        "kept_share": _mean(arrays.kept_share),
        **_outputs(arrays),
        **_nulls(arrays),
        **_logits(arrays),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _outputs(arrays: GateArrays) -> Figures:
    lowest, (ratio_low, ratio_high) = lowest_head(arrays), norm_ratio_heads(arrays)
    return {
        "cosine_mean": _mean(arrays.cosine),
        "cosine_p5": _percentile(arrays.cosine, 5),
        "cosine_p1": _percentile(arrays.cosine, 1),
        "cosine_min": _percentile(arrays.cosine, 0),
        "cosine_lowest_head": lowest.value,
        "relative_l2_mean": _mean(arrays.relative_l2),
        "relative_l2_max": _percentile(arrays.relative_l2, 100),
        "norm_ratio_low": ratio_low.value,
        "norm_ratio_high": ratio_high.value,
        "floor_cosine": _mean(arrays.floor_cosine),
        "floor_relative_l2": _mean(arrays.floor_relative_l2),
    }


def _nulls(arrays: GateArrays) -> Figures:
    """Mean cosines of the null models, and where the arm stands between random and oracle."""
    found = {
        name: _mean(getattr(arrays, name))
        for name in ("null_uniform", "null_recent", "null_random", "null_oracle")
    }
    room = found["null_oracle"] - found["null_random"]
    found["skill"] = (_mean(arrays.cosine) - found["null_random"]) / room if room else np.nan
    return found


def _logits(arrays: GateArrays) -> Figures:
    if not arrays.kl_nats.size or arrays.kl_nats.shape[1] < LOGIT_STEPS:
        return {}
    found = {
        "logit_steps": float(arrays.kl_nats.shape[1]),
        "kl_mean_nats": _mean(arrays.kl_nats),
        "kl_p99_nats": _percentile(arrays.kl_nats, 99),
        "top1_agreement": _mean(arrays.agree),
    }
    if len(arrays.nll_nats) >= PERPLEXITY_WINDOWS:
        by_offset = (arrays.nll_nats - arrays.nll_sdpa_nats).mean(-1, dtype=np.float64)
        found["perplexity_change"] = float(np.expm1(by_offset.mean()))
        found["perplexity_change_se"] = float(by_offset.std(ddof=1) / len(by_offset) ** 0.5)
        found["perplexity_sdpa"] = float(np.exp(_mean(arrays.nll_sdpa_nats)))
    return found


def uniform_figures(arrays: GateArrays) -> Figures:
    """The cosine figures of the null model that knows nothing of q and k: the mean of all values.

    Its samples are means over steps already, so its 1st percentile is over windows and heads.
    """
    null = arrays.null_uniform
    return {
        "cosine_mean": _mean(null),
        "cosine_p1": _percentile(null, 1),
        "cosine_lowest_head": float(null.mean(0, dtype=np.float64).min()),
    }


def lowest_head(arrays: GateArrays) -> Head:
    """The (layer, head) of the lowest cosine averaged over windows and steps."""
    means = _by_head(arrays.cosine)
    return _head(arrays, means, np.argmin(_comparable(means, np.inf)))


def norm_ratio_heads(arrays: GateArrays) -> tuple[Head, Head]:
    """The (layer, head) of the lowest and of the highest norm ratio, averaged likewise."""
    means = _by_head(arrays.norm_ratio)
    return (
        _head(arrays, means, np.argmin(_comparable(means, np.inf))),
        _head(arrays, means, np.argmax(_comparable(means, -np.inf))),
    )


def _by_head(samples: Floats) -> NDArray[np.float64]:
    """[W,L,S,H] -> [L,H], over the finite samples; NaN where there is none."""
    finite = np.isfinite(samples)
    total = np.where(finite, samples, 0).sum(axis=(0, 2), dtype=np.float64)
    count = finite.sum(axis=(0, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _comparable(means: NDArray[np.float64], instead: float) -> NDArray[np.float64]:
    return np.where(np.isfinite(means), means, instead)


def _head(arrays: GateArrays, means: NDArray[np.float64], flat: Any) -> Head:
    layer, head = np.unravel_index(flat, means.shape)
    return Head(int(arrays.layers[layer]), int(head), float(means[layer, head]))


def _non_finite(samples: Floats) -> int:
    return int(np.count_nonzero(~np.isfinite(samples)))


def _mean(samples: Floats) -> float:
    finite = samples[np.isfinite(samples)]
    return float(finite.mean(dtype=np.float64)) if finite.size else np.nan


def _percentile(samples: Floats, percent: float) -> float:
    finite = samples[np.isfinite(samples)]
    return float(np.percentile(finite.astype(np.float64), percent)) if finite.size else np.nan
