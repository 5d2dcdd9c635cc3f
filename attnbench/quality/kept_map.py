"""Which tokens of a text a method attends to, by layer, head and step, as the method tells it.

What it tells is held against its outputs: the weights that they show in the last step of a layer
(`kept_mass.effective_weights`) must lie on the tokens that it named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from attnbench.methods.base import KernelConfig, Method, MethodLayer
from attnbench.quality.kept_mass import effective_weights, last_step
from attnbench.quality.replay import LayerTrace, declared_share, replay

MOST_BINS = 64
LEAST_BIN = 16  # tokens
ROUNDING = 1e-6  # of a weight
WHOLE = 0.999  # a declared share from which on a layer that names nothing attends to all


@dataclass(frozen=True)
class Named:
    """Of one layer: the share of each bin that each head attended to in each step, float64 [S,H,P]
    (NaN where the step saw none of the bin, or the layer names nothing), and the most weight that a
    head gave to tokens which were not named."""

    shares: Tensor
    outside: float


def bin_tokens(tokens: int) -> int:
    """How many tokens a bin holds: a power of two, so that `MOST_BINS` and one are enough."""
    width = LEAST_BIN
    while width * MOST_BINS < tokens:
        width *= 2
    return width


def named(method: Method, trace: LayerTrace, kernel: KernelConfig | None = None) -> Named:
    """What the method names in every step of the trace."""
    rows = _rows(method, trace, kernel)
    width = bin_tokens(trace.k.shape[1])
    shares = torch.stack([_binned(each, trace, width) for each in rows])
    return Named(shares, _outside(method, trace, kernel))


def _rows(method: Method, trace: LayerTrace, kernel: KernelConfig | None) -> list[Tensor | None]:
    """Tokens that each query head attended to, by step: bool [H,N]; None where they are not named.

    A layer that names none and says that it attends to all does so."""
    found: list[Tensor | None] = []

    def note(layer: MethodLayer, q: Tensor) -> None:
        rows = layer.attended_rows(q)
        if rows is None and declared_share(method, layer) >= WHOLE:
            rows = q.new_ones((*q.shape[:2], trace.context + len(found) + 1), dtype=torch.bool)
        found.append(None if rows is None else rows[0])

    replay(method, trace, kernel, after=note)
    return found


def _binned(rows: Tensor | None, trace: LayerTrace, width: int) -> Tensor:
    """The share of each bin: [H,P]."""
    heads, last = trace.shape.heads, trace.k.shape[1]
    bins = -(-last // width)
    if rows is None:
        return torch.full((heads, bins), torch.nan, dtype=torch.float64)
    kept = pad(rows.double(), (0, bins * width - rows.shape[1])).reshape(heads, bins, width).sum(-1)
    first = torch.arange(bins, device=rows.device) * width
    there = (rows.shape[1] - first).clamp(0, width).double()
    return torch.where(there > 0, kept / there, torch.nan).cpu()


def _outside(method: Method, trace: LayerTrace, kernel: KernelConfig | None) -> float:
    last = last_step(trace)
    (rows,) = _rows(method, last, kernel)
    if rows is None:
        return math.nan
    if bool(rows.all()):
        return 0.0
    found = _beyond(effective_weights(method, last, kernel), rows)
    if found > ROUNDING:  # it may choose otherwise in each of many sequences: in one, then
        found = _beyond(effective_weights(method, last, kernel, at_once=1), rows)
    return found


def _beyond(weights: Tensor, rows: Tensor) -> float:
    """The most weight [H,R] that a head gives to other rows."""
    return float(weights.clamp_min(0).masked_fill(rows, 0.0).sum(dim=-1).max())


def bin_texts(tokenizer: Any, ids: Tensor, width: int) -> NDArray[np.str_]:
    """The text of each bin of token ids [R]."""
    return np.array(
        [tokenizer.decode(part.tolist()) for part in torch.split(ids, width)], dtype=np.str_
    )
