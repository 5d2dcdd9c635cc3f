"""Which blocks a step keeps, for all query heads of a KV head at once and without asking the host.

Scores are float64 [B,G,n] of n blocks; so is what follows from them. A block whose score is no
number is kept: nothing shows that it may be left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.methods.aether import BACKEND_LEAST_TOKENS, Aether
from attnbench.methods.aether_certificate import block_logits, fewest
from attnbench.methods.selection import share_of


def pinned_blocks(method: Aether, count: int, device: torch.device) -> Tensor:
    """Blocks that are always kept: bool [n]."""
    place = torch.arange(count, device=device)
    return (place < method.sinks) | (place >= count - method.local)


def falling(scores: Tensor, pinned: Tensor) -> Tensor:
    """Blocks by falling score after those that are always kept; of equals the first."""
    return scores.masked_fill(pinned, torch.inf).argsort(dim=-1, descending=True, stable=True)


def leading(order: Tensor, count: Tensor | int) -> Tensor:
    """The first `count` [..,1] of an order of blocks, as a mask."""
    place = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
    return torch.zeros_like(order).scatter(-1, order, place) < count


def promised(ceilings: Tensor, order: Tensor, mass: float) -> Tensor:
    """How many blocks of an order hold this part of the softmax by their scores: [..,1]."""
    parts = torch.softmax(ceilings, dim=-1).gather(-1, order)
    return (~((parts.cumsum(dim=-1) - parts) >= mass)).sum(dim=-1, keepdim=True)


def near_share(value: Tensor | float, count: int) -> Tensor | int:
    """The whole number of blocks nearest to a share of so many, at least one; a number is the
    decimal that was written."""
    if isinstance(value, Tensor):
        return torch.round(value * count).clamp_min(1)
    return max(1, round(share_of(value, count)))


def chosen(
    method: Aether,
    scores: Tensor,
    candidates: Tensor,
    tokens: Tensor,
    value: Tensor | float,
    logits: Tensor,
    scale: float,
) -> Tensor:
    """Blocks that each query head keeps by itself: bool [B,G,n], none where it would keep nothing.

    `candidates` are those that a hierarchy let through, `tokens` [n] what each block holds, `value`
    a number or [B,1,1], `logits` [B,G,N] of all tokens, of which a guarantee needs the kept ones'.
    """
    count = scores.shape[-1]
    pinned = pinned_blocks(method, count, scores.device)
    if method.variant == "trt_backend" and logits.shape[-1] < BACKEND_LEAST_TOKENS:
        return torch.ones_like(candidates)
    if method.kind == "absolute":
        return (candidates & ~(scores < value)) | pinned
    if method.kind == "relative":
        return ~(scores < value * scores.amax(dim=-1, keepdim=True)) | pinned
    order = falling(scores, pinned)
    first: Tensor | int
    if method.kind == "share":
        first = near_share(value, count)
    elif method.kind == "mass":
        ceilings = method.formula.logits(scores, scale) + tokens.double().log()
        first = promised(ceilings, order, method.value)
    else:
        bounds = method.formula.logits(scores, scale)
        weights = block_logits(logits, method.block)
        first = fewest(bounds, tokens, order, weights, method.guarantee)
    return leading(order, first) | pinned
