"""SLAY: its features, its decode state and its synthetic tasks, computed again from the formulas.

x is the cosine of query and key, C = 2 + ε; the kernel that is approximated is x² / (C - 2x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from attnbench.protocol.recomputed import slay_tasks as tasks
from attnbench.protocol.recomputed.observed import Observed, mean_of, value

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


def decode_state_growth(
    short: int = 64,
    long: int = 4096,
    head_dim: int = 64,
    nodes: int = 2,
    anchors: int = 32,
    exponentials: int = 16,
    *,
    recurrent: bool = True,
    seed: int = 20,
) -> Observed:
    """SL-11: bytes that anchor attention keeps after many tokens over those after a few.

    `recurrent=False` keeps the features of every token instead, as a check of the check.
    """
    rng = np.random.default_rng(seed)
    features = anchor_features(rng, head_dim, nodes, anchors, exponentials)
    keys = unit(rng.standard_normal((long, head_dim)))
    values = rng.standard_normal((long, head_dim))
    mapped = features(keys).astype(np.float32)
    kept = [_state(mapped[:n], values[:n], recurrent=recurrent) for n in (short, long)]
    query = features(unit(rng.standard_normal((1, head_dim))))
    error = _error_of_state(kept[1], query, mapped, values) if recurrent else 0.0
    small, large = (sum(array.nbytes for array in state) for state in kept)
    return value(
        large / small,
        "times",
        "anchor features of random unit keys, their sums in float32, bytes counted from the arrays",
        {"tokens": [short, long], "head_dim": head_dim, "features": mapped.shape[1], "seed": seed},
        note=f"{large} bytes a head after {long} tokens",
        doubt=f"the state's attention is off by {error:.2g}" if error > 1e-3 else "",
    )


def anchor_features(
    rng: np.random.Generator, head_dim: int, nodes: int, anchors: int, exponentials: int
) -> Callable[[Array], Array]:
    """Anchor polynomial features times positive random features at each quadrature node; ε 1e-3."""
    directions = unit(rng.standard_normal((anchors, head_dim)))
    frequencies = rng.standard_normal((nodes, exponentials, head_dim))
    places, weights = quadrature(nodes, 1e-3)

    def features(rows: Array) -> Array:
        squares = (rows @ directions.T) ** 2 / np.sqrt(anchors)
        parts = []
        for s, w, omega in zip(places, weights, frequencies, strict=True):
            waves = np.exp(np.clip(np.sqrt(2 * s) * rows @ omega.T - s, -20, 20))
            joint = squares[:, :, None] * waves[:, None, :] / np.sqrt(exponentials)
            parts.append(np.sqrt(w) * joint.reshape(len(rows), -1))
        return np.concatenate(parts, axis=1)

    return features


def quadrature(nodes: int, epsilon: float) -> tuple[Array, Array]:
    """Gauss-Laguerre places and weights of the integral over e^(-sC)."""
    places, weights = np.polynomial.laguerre.laggauss(nodes)
    return places / (2 + epsilon), weights / (2 + epsilon)


def worst_quadrature_ratio(
    nodes: int = 2, greatest_cosine: float = 0.99, epsilon: float = 1e-6, points: int = 1000
) -> Observed:
    """SL-12: the least ratio of the quadrature to the exact kernel, cosines from 0 up."""
    x = np.linspace(0, greatest_cosine, points)
    places, weights = quadrature(nodes, epsilon)
    approximate = np.exp(2 * np.outer(x, places)) @ weights
    ratio = approximate * (2 + epsilon - 2 * x)
    return value(
        float(ratio.min()),
        "of the exact kernel",
        "sum over nodes of w e^(2 s x), times (C - 2x); x² cancels",
        {
            "nodes": nodes,
            "cosines": [0.0, greatest_cosine],
            "points": points,
            "epsilon": epsilon,
        },
        note=f"least at a cosine of {x[ratio.argmin()]:.2f}",
    )


def orthogonal_over_parallel(
    head_dim: int = 16, anchors: int = 20000, draws: int = 30, seed: int = 13
) -> Observed:
    """SL-13: anchor features' product for orthogonal vectors over that for equal ones."""
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(draws):
        a = unit(rng.standard_normal((anchors, head_dim)))
        ratios.append(float(np.mean(a[:, 0] ** 2 * a[:, 1] ** 2) / np.mean(a[:, 0] ** 4)))
    return mean_of(
        ratios,
        "of the value for equal vectors",
        "mean over random unit anchors of (a·x)² (a·y)²",
        {"head_dim": head_dim, "anchors": anchors, "draws": draws, "seed": seed},
        note="in expectation (1 + 2x²) / (D (D + 2)): one third",
    )


def tasks_without_attention(
    enough: float = 0.75, sequences: int = 2000, seed: int = 15
) -> Observed:
    """SL-15: tasks of which a predictor that mixes no tokens gets at least `enough` right."""
    rng = np.random.default_rng(seed)
    scores = {name: without_mixing(*make(rng, sequences)) for name, make in tasks.MAKE.items()}
    return value(
        sum(score >= enough for score in scores.values()),
        "tasks",
        "seven of the 22 generators; at each place the answer is the token there, or one constant",
        {"enough": enough, "sequences": sequences, "seed": seed, "tasks": sorted(scores)},
        note=", ".join(f"{name} {score:.3f}" for name, score in sorted(scores.items())),
    )


def constant_on_retrieval(sequences: int = 4000, seed: int = 16) -> Observed:
    """SL-16: accuracy of the best constant answer on the retrieval task."""
    _, targets = tasks.retrieval(np.random.default_rng(seed), sequences)
    return value(
        best_constant(targets[:, 0]),
        "accuracy",
        "the task as its generator is described; the commonest target answered always",
        {"sequences": sequences, "seed": seed},
    )


def without_mixing(tokens: Whole, targets: Whole) -> float:
    """Accuracy of the better of two answers at each place: the token there, or the best constant.

    Both are [sequences, places].
    """
    own = np.mean(tokens == targets, axis=0)
    constant = [best_constant(targets[:, place]) for place in range(targets.shape[1])]
    return float(np.mean(np.maximum(own, constant)))


def best_constant(targets: Whole) -> float:
    """The share of the commonest target."""
    return float(np.bincount(targets).max() / len(targets))


def unit(rows: Array) -> Array:
    """Each row divided by its length."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def _state(
    mapped: npt.NDArray[np.float32], values: Array, *, recurrent: bool
) -> Sequence[npt.NDArray[np.float32]]:
    if not recurrent:
        return mapped, values.astype(np.float32)
    return (mapped.T @ values.astype(np.float32)), mapped.sum(axis=0)


def _error_of_state(
    state: Sequence[npt.NDArray[np.float32]],
    query: Array,
    mapped: npt.NDArray[np.float32],
    values: Array,
) -> float:
    """How far the state's answer to a query is from the sum over all tokens, relative."""
    weights = (query @ mapped.T)[0]
    over_all = weights @ values / weights.sum()
    by_state = (query @ state[0])[0] / (query @ state[1])[0]
    return float(np.linalg.norm(by_state - over_all) / np.linalg.norm(over_all))


RECOMPUTED = {
    "SL-11": decode_state_growth,
    "SL-12": worst_quadrature_ratio,
    "SL-13": orthogonal_over_parallel,
    "SL-15": tasks_without_attention,
    "SL-16": constant_on_retrieval,
}
