"""From the samples of a map of kept tokens to what a record and a page say of it; no torch."""

from __future__ import annotations

import numpy as np

from attnbench.protocol.kept_map import Excerpt, KeptMap
from attnbench.quality.samples import Floats, GateArrays

EXCERPTS = 3  # of the bins that are kept most, and least
EXCERPT_CHARACTERS = 100
NOTHING_LEFT_OUT = 0.9995  # of every bin: there is nothing to see


def head_shares(arrays: GateArrays) -> Floats:
    """By layer and head, over the steps that saw a bin: [L,H,P]; NaN where nothing is known."""
    seen = np.isfinite(arrays.kept_map[0])
    total = np.where(seen, arrays.kept_map[0], 0.0).sum(axis=1)
    counted = seen.sum(axis=1)
    shares = np.where(counted > 0, total / np.maximum(counted, 1), np.nan)
    return shares.astype(np.float32)


def kept_map_of(arrays: GateArrays) -> KeptMap | None:
    """None where no map was made, no layer could tell, or no token is left out."""
    if not arrays.kept_map.size or not arrays.map_text.size:
        return None
    shares = head_shares(arrays)
    if not np.isfinite(shares).any() or np.nanmin(shares) >= NOTHING_LEFT_OUT:
        return None
    tells = np.isfinite(shares).any(axis=(1, 2))
    known = shares[tells]
    by_bin = known.mean(axis=(0, 1))
    order = np.argsort(-by_bin, kind="stable")
    return KeptMap(
        bin_tokens=int(arrays.map_bin[0]),
        tokens=int(arrays.context[0]) + arrays.kept_map.shape[2],
        steps=arrays.kept_map.shape[2],
        layers=tuple(int(layer) for layer in arrays.layers),
        hundredths=tuple(_hundredths(layer) for layer in shares.mean(axis=1)),
        most=tuple(_excerpt(arrays, by_bin, int(at)) for at in order[:EXCERPTS]),
        least=tuple(_excerpt(arrays, by_bin, int(at)) for at in order[::-1][:EXCERPTS]),
        share=float(arrays.kept_share[0, tells].mean()),
        outside=float(np.nanmax(arrays.map_outside)),
    )


def _hundredths(shares: Floats) -> tuple[int, ...]:
    return tuple(-1 if np.isnan(share) else round(100 * float(share)) for share in shares)


def _excerpt(arrays: GateArrays, by_bin: Floats, at: int) -> Excerpt:
    width = int(arrays.map_bin[0])
    tokens = int(arrays.context[0]) + arrays.kept_map.shape[2]
    text = " ".join(str(arrays.map_text[at]).split())
    return Excerpt(
        begin=at * width,
        end=min((at + 1) * width, tokens),
        share=float(by_bin[at]),
        text=text[:EXCERPT_CHARACTERS],
    )
