"""Fieldprint: the byte and time figures of its review, and its attention's definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from attnbench.protocol.recomputed.observed import LEVEL, Observed, between, value

LAYERS, KV_HEADS, HEAD_DIM, ELEMENT_BYTES = 80, 64, 128, 2  # a 70B model without grouped queries
GROUPED_KV_HEADS = 8
HBM_BYTES, HBM_BYTES_PER_S = 80e9, 3.35e12  # H100, nominal
GIGABYTE = 1e9


def layer_bytes(kv_heads: int = KV_HEADS) -> int:
    """Of K and V of one token in one layer."""
    return 2 * kv_heads * HEAD_DIM * ELEMENT_BYTES


def token_megabytes(layers: int = LAYERS, kv_heads: int = KV_HEADS) -> Observed:
    """FP-01: K and V of one token."""
    return value(
        layers * layer_bytes(kv_heads) / 1e6,
        "MB",
        "2 · layers · KV heads · head dim · 2 bytes",
        {"layers": layers, "kv_heads": kv_heads, "head_dim": HEAD_DIM},
        note=f"with {GROUPED_KV_HEADS} KV heads, as such models have, "
        f"{layers * layer_bytes(GROUPED_KV_HEADS) / 1e6:.3f} MB",
    )


def context_gigabytes(tokens: int = 100_000, kv_heads: int = KV_HEADS) -> Observed:
    """FP-02: K and V of a long context."""
    per_token = LAYERS * layer_bytes(kv_heads)
    return value(
        tokens * per_token / GIGABYTE,
        "GB",
        "tokens times bytes a token",
        {"tokens": tokens, "layers": LAYERS, "kv_heads": kv_heads},
        note=f"with {GROUPED_KV_HEADS} KV heads "
        f"{tokens * LAYERS * layer_bytes(GROUPED_KV_HEADS) / GIGABYTE:.1f} GB",
    )


def tokens_in_a_gigabyte(kv_heads: int = KV_HEADS, layers_sharing: int = 1) -> Observed:
    """FP-03: tokens whose K and V of one layer take one gigabyte."""
    return value(
        GIGABYTE / (layers_sharing * layer_bytes(kv_heads)),
        "tokens",
        "one gigabyte over the bytes of a token in one layer",
        {"kv_heads": kv_heads, "layers_sharing": layers_sharing},
        note=f"spread over all {LAYERS} layers {GIGABYTE / (LAYERS * layer_bytes(kv_heads)):.0f}",
    )


def memory_share(layers: int = LAYERS, bytes_a_layer: float = GIGABYTE) -> Observed:
    """FP-04: the share of the GPU's memory that anchors take."""
    return value(
        layers * bytes_a_layer / HBM_BYTES,
        "share of 80 GB",
        "bytes a layer times layers over the memory of one GPU",
        {"layers": layers, "bytes_a_layer": bytes_a_layer},
    )


def bandwidth_percent(total_bytes: float = GIGABYTE, tokens_per_s: float = 50) -> Observed:
    """FP-05: the share of the read bandwidth that reading the anchors takes."""
    share = total_bytes * tokens_per_s / HBM_BYTES_PER_S
    return value(
        100 * share,
        "% of 3.35 TB/s",
        "bytes a token times tokens a second over the nominal bandwidth",
        {"total_bytes": total_bytes, "tokens_per_s": tokens_per_s},
        note=f"one gigabyte in each of {LAYERS} layers: {100 * share * LAYERS:.0f} %",
    )


def hashing_ms(
    bytes_a_layer: float = 32e6, link: float = 50e9, hashing: float = 5e9, layers: int = LAYERS
) -> Observed:
    """FP-08: copying and hashing every layer's state in line, by the source's own premises."""
    return value(
        1e3 * layers * bytes_a_layer * (1 / link + 1 / hashing),
        "ms a token",
        "bytes over link and hash rates, times layers",
        {
            "bytes_a_layer": bytes_a_layer,
            "link_bytes_per_s": link,
            "hash_bytes_per_s": hashing,
            "layers": layers,
        },
        note=f"{1e3 * bytes_a_layer * (1 / link + 1 / hashing):.2f} ms a layer",
    )


def decode_slow_down(
    bytes_a_layer: float = 8192 * 2,
    hash_rates: Sequence[float] = (0.5e9, 5e9),
    link: float = 50e9,
    copy_latency_s: float = 10e-6,
    step_s: float = 0.020,
    layers: int = LAYERS,
) -> Observed:
    """FP-09: a decode step's time with every layer's state of one token hashed, over without."""
    slow = [
        1 + layers * (copy_latency_s + bytes_a_layer * (1 / link + 1 / rate)) / step_s
        for rate in hash_rates
    ]
    premises = 1 + layers * 32e6 * (1 / link + 1 / 5e9) / step_s
    return between(
        min(slow),
        max(slow),
        "times",
        "one token's hidden state (8192 values of 16 bits) copied and hashed a layer; hash rates "
        "of one stream from slow to the source's own",
        {
            "bytes_a_layer": bytes_a_layer,
            "hash_bytes_per_s": list(hash_rates),
            "link_bytes_per_s": link,
            "copy_latency_s": copy_latency_s,
            "step_s": step_s,
            "layers": layers,
        },
        note=f"with the source's 32 MB a layer, the state of 2048 tokens, {premises:.1f} times",
    )


def query_dependence(
    anchors: int = 1, queries: int = 2000, head_dim: int = 128, seed: int = 12
) -> Observed:
    """FP-12: the greatest change of reading A's anchor term with the query."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((queries, head_dim)) @ rng.standard_normal((head_dim, anchors))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    term = weights @ rng.standard_normal((anchors, head_dim))
    return value(
        float(np.ptp(term, axis=0).max()),
        "greatest difference",
        "softmax(Q h) V_anchor for random queries; the span of each output over them",
        {"anchors": anchors, "queries": queries, "head_dim": head_dim, "seed": seed},
        note="a softmax over one element is 1",
    )


def dies_out(
    kappa: float = 0.1,
    sigma: float = 1.0,
    horizon: float = 200.0,
    dt: float = 0.05,
    paths: int = 2000,
    seed: int = 13,
) -> Observed:
    """FP-13: how likely the error of de = -κ e dt + σ e dW is small after long, from e = 1."""
    from scipy import special

    rng = np.random.default_rng(seed)
    log_error = np.zeros(paths)
    for _ in range(round(horizon / dt)):
        factor = 1 - kappa * dt + sigma * math.sqrt(dt) * rng.standard_normal(paths)
        log_error += np.log(np.abs(factor))
    small = int(np.sum(log_error < math.log(0.01)))
    tail = (1 - LEVEL) / 2
    low = special.betaincinv(small, paths - small + 1, tail) if small else 0.0
    high = special.betaincinv(small + 1, paths - small, 1 - tail) if small < paths else 1.0
    share = small / paths
    drift = (math.log(0.01) + (kappa + sigma**2 / 2) * horizon) / (sigma * math.sqrt(horizon))
    return between(
        low,
        high,
        "probability",
        "Euler-Maruyama paths; the share below .01 at the end, with its Clopper-Pearson interval",
        {
            "kappa": kappa,
            "sigma": sigma,
            "horizon": horizon,
            "dt": dt,
            "paths": paths,
            "seed": seed,
        },
        level=LEVEL,
        note=f"by the exact law {special.ndtr(drift):.6f}",
        doubt="the paths leave the exact law" if abs(share - special.ndtr(drift)) > 0.02 else "",
    )


def tail_error(
    lengths: Sequence[int] = (1, 31, 33, 63, 127, 4095),
    head_dim: int = 128,
    tile: int = 32,
    seed: int = 14,
) -> Observed:
    """FP-14: the greatest relative error where masked keys of the last tile get a logit of 0."""
    rng = np.random.default_rng(seed)
    errors = {}
    for length in lengths:
        q = rng.standard_normal(head_dim)
        k, v = rng.standard_normal((2, length, head_dim))
        logits = k @ q / math.sqrt(head_dim)
        top = max(logits.max(), 0.0)
        weights = np.exp(logits - top)
        padded = -length % tile
        described = weights @ v / (weights.sum() + padded * math.exp(-top))
        exact = weights @ v / weights.sum()
        errors[length] = float(np.linalg.norm(described - exact) / np.linalg.norm(exact))
    return value(
        max(errors.values()),
        "relative error",
        "one query, normal data; each masked key of the last tile adds e^0 to the denominator",
        {"lengths": list(lengths), "head_dim": head_dim, "tile": tile, "seed": seed},
        note=", ".join(f"N {length}: {error:.2g}" for length, error in errors.items()),
    )


RECOMPUTED = {
    "FP-01": token_megabytes,
    "FP-02": context_gigabytes,
    "FP-03": tokens_in_a_gigabyte,
    "FP-04": memory_share,
    "FP-05": bandwidth_percent,
    "FP-08": hashing_ms,
    "FP-09": decode_slow_down,
    "FP-12": query_dependence,
    "FP-13": dies_out,
    "FP-14": tail_error,
}
