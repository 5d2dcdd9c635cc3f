"""Blocks of keys, AETHER's bounds on them, and attention over a choice of blocks.

One head at a time: q is [D], k and v are [N, D], N a multiple of the block. Logits are q·k / √D.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]


class Head(NamedTuple):
    """One query with its keys and values."""

    q: Array
    k: Array
    v: Array


def gaussian_head(
    rng: np.random.Generator, tokens: int, head_dim: int, *, with_values: bool = True
) -> Head:
    """Independent standard normal entries, as in the source's own logs; no values where unused."""
    q, k = rng.standard_normal(head_dim), rng.standard_normal((tokens, head_dim))
    return Head(q, k, rng.standard_normal((tokens if with_values else 0, head_dim)))


def varied_heads(rng: np.random.Generator, heads: int, tokens: int) -> Iterator[Head]:
    """Normal, heavy-tailed, clustered and repeated keys of 64 and 128 dimensions in turn."""
    for i in range(heads):
        head = gaussian_head(rng, tokens, (64, 128)[i // 4 % 2], with_values=False)
        keys = {
            0: head.k,
            1: rng.standard_t(2, head.k.shape),
            2: 30 * rng.standard_normal(head.k.shape[1]) + 0.01 * head.k,
            3: np.repeat(head.k[:1], tokens, axis=0),
        }[i % 4]
        yield head._replace(k=keys)


def blocks_of(k: Array, block: int) -> Array:
    """[N / block, block, D]"""
    return k.reshape(-1, block, k.shape[-1])


def upper_bounds(head: Head, block: int, *, scaled: bool = True) -> Array:
    """q·μ + ‖q‖ r of each block, over √D where scaled; μ its mean key, r its radius."""
    blocks = blocks_of(head.k, block)
    centre = blocks.mean(axis=1)
    radius = np.linalg.norm(blocks - centre[:, None], axis=-1).max(axis=1)
    bounds = centre @ head.q + np.linalg.norm(head.q) * radius
    return np.asarray(bounds / np.sqrt(len(head.q)) if scaled else bounds)


def trt_potentials(head: Head, block: int) -> Array:
    """The potential of the TensorRT-LLM variant: of unit keys, with variance and concentration."""
    blocks = blocks_of(head.k, block)
    units = blocks / np.linalg.norm(blocks, axis=-1, keepdims=True)
    centre = units.mean(axis=1)
    centre /= np.linalg.norm(centre, axis=-1, keepdims=True)
    off = np.linalg.norm(units - centre[:, None], axis=-1)
    spread = np.sqrt((off**2).mean(axis=1))
    concentration = np.clip(np.einsum("nbd,nd->nb", units, centre).mean(axis=1), 0.1, 1)
    reach = np.linalg.norm(head.q) * off.max(axis=1) * (1 + spread)
    bound = (centre @ head.q + reach) / np.sqrt(len(head.q))
    return np.asarray(bound * (0.3 + 0.7 * concentration))


def greatest_logits(head: Head, block: int, *, scaled: bool = True) -> Array:
    """The greatest logit of each block."""
    greatest = (blocks_of(head.k, block) @ head.q).max(axis=1)
    return np.asarray(greatest / np.sqrt(len(head.q)) if scaled else greatest)


def top_blocks(scores: Array, share_kept: float) -> Kept:
    """The blocks with the highest scores, that share of them (rounded); ties to the earlier."""
    kept = np.zeros(len(scores), dtype=bool)
    kept[np.argsort(-scores, kind="stable")[: round(share_kept * len(scores))]] = True
    return kept


def attend(head: Head, block: int, kept: Kept) -> Array:
    """Softmax attention over the kept blocks; [D]."""
    tokens = np.repeat(kept, block)
    logits = head.k[tokens] @ head.q / np.sqrt(len(head.q))
    weights = np.exp(logits - logits.max())
    return np.asarray(weights @ head.v[tokens] / weights.sum())


def all_blocks(head: Head, block: int) -> Kept:
    """Every block kept."""
    return np.ones(len(head.k) // block, dtype=bool)


def cosine(a: Array, b: Array) -> float:
    """Of two vectors; a zero vector counts 0."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def dropped_mass(head: Head, block: int, kept: Kept) -> float:
    """The share of the softmax that lies in blocks that are not kept."""
    logits = head.k @ head.q / np.sqrt(len(head.q))
    weights = np.exp(logits - logits.max())
    return float(weights[~np.repeat(kept, block)].sum() / weights.sum())
