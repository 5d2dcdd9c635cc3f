"""Where an arm is worst: the layer and head, the window and step, of its outputs and logits."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnbench.quality.samples import Floats, GateArrays


@dataclass(frozen=True)
class Head:
    """One query head and its value, averaged over windows and steps.

    `window` and `step` say when it was at its worst.
    """

    layer: int
    head: int
    value: float
    window: int = 0
    step: int = 0


@dataclass(frozen=True)
class Moment:
    """One step of one window of text, and the value there."""

    window: int
    step: int
    value: float


def lowest_head(arrays: GateArrays) -> Head:
    """The (layer, head) of the lowest cosine averaged over windows and steps."""
    means = head_means(arrays.cosine)
    at = np.argmin(_comparable(means, np.inf))
    return _head(arrays, arrays.cosine, means, at, np.argmin)


def norm_ratio_heads(arrays: GateArrays) -> tuple[Head, Head]:
    """The (layer, head) of the lowest and of the highest norm ratio, averaged likewise."""
    means = head_means(arrays.norm_ratio)
    low, high = np.argmin(_comparable(means, np.inf)), np.argmax(_comparable(means, -np.inf))
    return (
        _head(arrays, arrays.norm_ratio, means, low, np.argmin),
        _head(arrays, arrays.norm_ratio, means, high, np.argmax),
    )


def worst_norm_ratio(arrays: GateArrays) -> Head:
    """The farther of the two: 0.7 and 1.4 are equally bad, so distance from 1 is a ratio too."""
    return max(norm_ratio_heads(arrays), key=lambda head: _fold(head.value))


def non_finite_head(arrays: GateArrays) -> Head:
    """The first output that was not finite; the lowest head where all were."""
    bad = np.argwhere(~np.isfinite(arrays.cosine))
    if not len(bad):
        return lowest_head(arrays)
    window, layer, step, head = (int(index) for index in bad[0])
    return Head(int(arrays.layers[layer]), head, np.nan, window, step)


def worst_logits(arrays: GateArrays) -> Moment | None:
    """The step with the largest KL, or the first without a finite one; None where none was run."""
    if not arrays.kl_nats.size:
        return None
    at = np.argmax(np.where(np.isfinite(arrays.kl_nats), arrays.kl_nats, np.inf))
    window, step = np.unravel_index(at, arrays.kl_nats.shape)
    return Moment(int(window), int(step), float(arrays.kl_nats[window, step]))


def head_means(samples: Floats) -> NDArray[np.float64]:
    """[W,L,S,H] -> [L,H], over the finite samples; NaN where there is none."""
    finite = np.isfinite(samples)
    total = np.where(finite, samples, 0).sum(axis=(0, 2), dtype=np.float64)
    count = finite.sum(axis=(0, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _comparable(means: NDArray[np.float64], instead: float) -> NDArray[np.float64]:
    return np.where(np.isfinite(means), means, instead)


def _head(
    arrays: GateArrays, samples: Floats, means: NDArray[np.float64], flat: Any, extreme: Any
) -> Head:
    layer, head = np.unravel_index(flat, means.shape)
    of_head = samples[:, layer, :, head].astype(np.float64)
    instead = np.inf if extreme is np.argmin else -np.inf
    window, step = np.unravel_index(extreme(_comparable(of_head, instead)), of_head.shape)
    return Head(
        int(arrays.layers[layer]),
        int(head),
        float(means[layer, head]),
        int(window),
        int(step),
    )


def _fold(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio else inf
