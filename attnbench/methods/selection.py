"""What methods that select tokens share: how many, by which scores, and attention to the chosen."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import LayerShape
from attnbench.methods.dcr_topk import SHORTEST, DcrTopK, as_fraction
from attnbench.methods.random_k import gathered


def require_budget(name: str, coverage: float, k_min: int) -> None:
    """Raise `UsageError` where these are no budget."""
    if not 0 < coverage <= 1:
        raise UsageError(
            f"{name}: coverage={coverage} is no share of the tokens", hint="0 < coverage <= 1"
        )
    if k_min < 1:
        raise UsageError(f"{name}: k_min={k_min} keeps nothing", hint="k_min from 1")


def require_groups(name: str, shape: LayerShape) -> None:
    """Raise `Unsupported` where query heads do not divide into KV heads."""
    if shape.heads % shape.kv_heads:
        raise Unsupported(
            f"{name} needs as many query heads for each KV head, and {shape.heads} heads do not "
            f"divide by {shape.kv_heads}"
        )


def even_budget(coverage: float, k_min: int, tokens: int) -> int:
    """DCR's code: max(k_min, floor(coverage · N)), rounded up to even, and N at most."""
    return DcrTopK(coverage=coverage, k_min=k_min).kept(tokens)


def share_of(coverage: float, tokens: int) -> Fraction:
    """So much of so many tokens, of the decimal number that was written: .29 of 100 are 29."""
    return Fraction(*as_fraction(coverage)) * tokens


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which an implementation scores: float64 for float32, so that rounding decides nothing;
    float32 for 16 bits, whose products are exact in it, so that only its sums can."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def grouped(q: Tensor, kv_heads: int) -> Tensor:
    """Queries by KV head: [B,H,1,D] -> [B,Hkv,G,D]."""
    return q.reshape(q.shape[0], kv_heads, -1, q.shape[-1])


def mean_direction(keys: Tensor, over: tuple[int, ...]) -> Tensor:
    """normalise(mean of K / |K|) over dimensions `over` of [..,N,D], which stay with size 1; in
    float64."""
    wide = keys.double()
    unit: Tensor = wide / wide.norm(dim=-1, keepdim=True).clamp_min(SHORTEST)
    mean = unit.mean(dim=over, keepdim=True)
    axis: Tensor = mean / mean.norm(dim=-1, keepdim=True).clamp_min(SHORTEST)
    return axis


def by_projection(keys: Tensor, axis: Tensor, count: int) -> Tensor:
    """The `count` rows of [B,Hkv,N,D] that lie farthest along an axis [..,1,D], farthest first and
    of equal ones the earlier: int64 [B,Hkv,count]."""
    along = (keys.double() * axis).sum(dim=-1)
    return along.argsort(dim=-1, descending=True, stable=True)[..., :count]


def attend_chosen(scores: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """softmax of chosen logits over chosen values: scores [B,Hkv,G,K] of `rows` (of the same
    shape) in values [B,Hkv,N,D] -> float32 [B,Hkv,G,D]."""
    weights = torch.softmax(scores, dim=-1).float()
    batch, kv_heads, group, kept = rows.shape
    worth = gathered(values, rows.reshape(batch, kv_heads, group * kept))
    worth = worth.reshape(batch, kv_heads, group, kept, -1).float()
    return (weights[..., None, :] @ worth)[..., 0, :]


def joined(cache: Tensor, rows: Tensor, prompt: int) -> Tensor:
    """Rows [B,H,K] of the first `prompt` tokens of a cache [B,H,N,D], and all after those."""
    return torch.cat((gathered(cache[:, :, :prompt], rows), cache[:, :, prompt:]), dim=2)
