"""How much of the softmax the skipped blocks can hold at most, and what that can do to the output.

Where U_B is never below a logit of block B, the tokens of the skipped blocks weigh at most
R = Σ |B| exp(U_B) together, beside the kept ones' exp(L), L being the logsumexp of their logits.
So δ, the skipped share of the softmax, is at most R / (exp(L) + R); and as the outputs with and
without the skipped tokens differ by δ times the distance of two means of values, by at most
2 δ max|v|. All of it in exact arithmetic: what a dtype rounds comes on top.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.methods.aether_bounds import rounded_up


class Certificate(NamedTuple):
    """For every query head of the last step, float64 [B,H]: the most that was skipped, as a share
    of the softmax, and the most by which the output can be off, in L2."""

    skipped_mass: Tensor
    output_error: Tensor


def skipped_mass(bounds: Tensor, tokens: Tensor, kept: Tensor, kept_logits: Tensor) -> Tensor:
    """The most softmax mass outside `kept`: [..] of bounds [..,n] in the units of logits, tokens
    [n] of each block, bool [..,n] and the logsumexp [..] of the kept logits."""
    ceilings = bounds + tokens.double().log()
    rest = ceilings.masked_fill(kept, -torch.inf).logsumexp(dim=-1)
    return torch.sigmoid(rest - kept_logits)


def block_logits(scores: Tensor, block: int) -> Tensor:
    """The logsumexp of each block's logits: [..,N] -> [..,n], the last block being short."""
    spare = -scores.shape[-1] % block
    padded = pad(scores, (0, spare), value=-torch.inf)
    return padded.reshape(*padded.shape[:-1], -1, block).logsumexp(dim=-1)


def fewest(bounds: Tensor, tokens: Tensor, order: Tensor, logits: Tensor, most: float) -> Tensor:
    """How many blocks must be kept, in this order, until at most `most` of the softmax can be
    outside: int64 [..,1] of bounds, order and blocks' logsumexps, each [..,n].

    Keeping one block more raises L and lowers R, so the count of the prefixes that do not do is one
    less than that of the first which does. All blocks always do.
    """
    held = logits.gather(-1, order).logcumsumexp(dim=-1)
    ceilings = (bounds + tokens.double().log()).gather(-1, order)
    outside = ceilings.flip(-1).logcumsumexp(dim=-1).flip(-1)
    outside = pad(outside[..., 1:], (0, 1), value=-torch.inf)
    return (~(torch.sigmoid(outside - held) <= most)).sum(dim=-1, keepdim=True) + 1


def longest_values(values: Tensor, block: int) -> Tensor:
    """The greatest |v| of each block of values [B,Hkv,N,D]: float32 [B,Hkv,n], rounded up."""
    lengths = torch.stack([rows.double().norm(dim=-1) for rows in values.unbind(dim=1)], dim=1)
    spare = -lengths.shape[-1] % block
    padded = pad(lengths, (0, spare))
    return rounded_up(padded.reshape(*padded.shape[:-1], -1, block).amax(dim=-1))
