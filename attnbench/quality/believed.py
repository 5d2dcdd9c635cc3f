"""Whether an arm's samples agree with the share of tokens that it says it attends to; no torch."""

from __future__ import annotations

import numpy as np

from attnbench.quality.samples import Floats, GateArrays

MORE_MASS = 0.02  # than the best selection keeps: what 16 bits and an approximation may add
MORE_COSINE = 0.02  # than the oracle: it is not the best selection for a cosine, only near it


def false_share(arrays: GateArrays) -> str:
    """What no selection of the declared share can have, in words; empty where all may be true.

    An arm that reads nothing but what it keeps, and keeps no more than it declares, may have merged
    tokens and be better than any selection of them.
    """
    if not arrays.compact.size or arrays.compact.all():
        return ""
    said = f"its witness says that {_mean(arrays.kept_share):.1%} of the tokens are attended to, "
    mass, most = _by_layer(arrays.kept_mass), arrays.most_mass.ravel()
    if mass.size and np.isfinite(mass).all():
        layer = int(np.argmax(mass - most))
        if mass[layer] <= most[layer] + MORE_MASS:
            return ""
        return (
            f"{said}but layer {arrays.layers[layer]} keeps {mass[layer]:.1%} of the attention, and "
            f"as many tokens hold {most[layer]:.1%} at most"
        )
    own, oracle = _mean(arrays.cosine), _mean(arrays.null_oracle)
    if not own > oracle + MORE_COSINE:
        return ""
    return f"{said}but its mean cosine is {own:.4f}, and that of the oracle {oracle:.4f}"


def _by_layer(mass: Floats) -> Floats:
    """Over the heads [L] that the weights explain; NaN where they explain none."""
    if not mass.size:
        return mass
    known = np.isfinite(mass[0])
    total = np.where(known, mass[0], 0).sum(-1)
    by_layer: Floats = np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
    return by_layer


def _mean(samples: Floats) -> float:
    finite = samples[np.isfinite(samples)]
    return float(finite.mean(dtype=np.float64)) if finite.size else np.nan
