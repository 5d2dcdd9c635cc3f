"""Eviction by position, as CY-Sieve tried it: the most recent tokens, sinks and recent ones, and
`holo-strided` (xaviercallens/Mirror-Map-Sieve @476e92e)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.cy_sequence import S20
from attnbench.methods.reference import exact_attention
from attnbench.protocol.recomputed.cy_sieve import holo_strided

Policy = Literal["recent", "sink_recent", "holo_strided"]
# Policies are asked for the distances they keep of so many times their budget; S20 in whole
# numbers beyond that would take long, and a weight that falls all the way brings nothing new.
CONSIDERED = 4
MOST_CONSIDERED = 4096


@dataclass(frozen=True)
class Evict(Method):
    """Keep `budget` tokens, the newest among them, and forget the others for good.

    `recent` keeps the last ones; `sink_recent` the first `sinks` and the last ones; `holo_strided`
    half of the budget most recent and then the older distances of the greatest weight 1 / S20(d).
    As that weight falls with distance these are the next ones, so it keeps what `recent` keeps: a
    run that names both is refused. Saves memory as well as reads; `sink_window` saves reads alone.
    """

    policy: Policy = "sink_recent"
    budget: int = 128
    sinks: int = 4

    name: ClassVar[str] = "evict"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "xaviercallens/Mirror-Map-Sieve @476e92e"

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise UsageError(f"evict: budget={self.budget} keeps nothing", hint="budget from 1")
        if not 0 <= self.kept_sinks < self.budget:
            raise UsageError(
                f"evict: sinks={self.sinks} of a budget of {self.budget}",
                hint="from 0 to below the budget",
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """Each policy, with a budget that leaves tokens out of a short cache."""
        del device_type
        policies: tuple[Policy, ...] = ("recent", "sink_recent", "holo_strided")
        return (cls(), *(cls(policy=policy, budget=24) for policy in policies))

    def full_budget(self, tokens: int) -> Self:
        """Room for all of them."""
        return replace(self, budget=tokens)

    @property
    def kept_sinks(self) -> int:
        """First tokens that are kept whatever comes."""
        return self.sinks if self.policy == "sink_recent" else 0

    @property
    def window(self) -> int:
        """Last tokens that are kept, the newest included."""
        if self.policy == "holo_strided":
            return strided_window(self.budget)
        return self.budget - self.kept_sinks

    def rows_by_position(self, tokens: int) -> frozenset[int]:
        """Of so many tokens, those that are still there."""
        return frozenset(range(min(self.kept_sinks, tokens))) | frozenset(
            range(max(0, tokens - self.window), tokens)
        )

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention over the kept tokens."""
        kept = torch.tensor(sorted(self.rows_by_position(k.shape[2])), device=k.device)
        return exact_attention(q, k[:, :, kept], v[:, :, kept], shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that keeps the tokens in a small cache of its own."""
        return EvictLayer(self, shape)


@cache
def strided_window(budget: int) -> int:
    """How many last tokens holo-strided keeps, by the source's own rule over S20's weights.

    Raises Unsupported where the distances are no unbroken run from 0: a token that has been
    forgotten cannot come back when its distance has grown.
    """
    considered = min(max(CONSIDERED * budget, budget + 1), max(MOST_CONSIDERED, budget + 1))
    weights = -np.array([0.0, *S20.logarithms(considered)[1:]])
    kept = holo_strided(weights, budget)
    if kept != set(range(len(kept))):
        raise Unsupported(
            f"holo_strided keeps {sorted(kept)}, which is no unbroken run",
            hint="eviction for good needs one; select from the whole cache instead",
        )
    return len(kept)


class EvictLayer(MethodLayer):
    """A cache of its own: sinks, what is left of the prompt, and room for what is appended."""

    def __init__(self, method: Evict, shape: LayerShape) -> None:
        self.method = method
        self.shape = shape

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Copy what the next step may still attend to; the exact cache is not needed after."""
        del q
        self.cache_length = cache.length
        tokens = cache.length.tokens
        sinks = min(self.method.kept_sinks, tokens)
        first = max(sinks, tokens + 1 - self.method.window)
        self.prefilled, self.sinks, self.first = tokens, sinks, first
        self.k, self.v = (self._kept(rows) for rows in (cache.k, cache.v))

    def _kept(self, rows: Tensor) -> Tensor:
        """[B,Hkv,sinks + capacity - first,D]; rows after the prompt are zero."""
        kept = torch.cat((rows[:, :, : self.sinks], rows[:, :, self.first :]), dim=2)
        kept[:, :, self._place(self.prefilled) :] = 0
        return kept

    def _place(self, token: int) -> int:
        """Where a token that was not evicted lies."""
        return token - self.first + self.sinks

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, attend to sinks and window."""
        row = self._place(self.cache_length.tokens)
        self.k[:, :, row : row + 1].copy_(k)
        self.v[:, :, row : row + 1].copy_(v)
        keys, values = (self._attended(rows, row + 1) for rows in (self.k, self.v))
        return scaled_dot_product_attention(
            q, keys, values, scale=self.shape.scale, enable_gqa=self.shape.group > 1
        )

    def _attended(self, rows: Tensor, end: int) -> Tensor:
        """Sinks and the last rows of [B,Hkv,rows,D]."""
        start = max(end - self.method.window, self.sinks)
        if start == self.sinks:
            return rows[:, :, :end]
        if not self.sinks:
            return rows[:, :, start:end]
        return torch.cat((rows[:, :, : self.sinks], rows[:, :, start:end]), dim=2)

    def reset(self) -> None:
        """Forget what was appended."""
        for rows in (self.k, self.v):
            rows[:, :, self._place(self.prefilled) :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        """Its own cache."""
        yield from (self.k, self.v)

    @property
    def attended(self) -> int:
        """Tokens of the last step."""
        visible = self.cache_length.tokens + 1
        return self.sinks + min(visible - self.sinks, self.method.window)

    def bytes_read(self) -> int:
        """Keys and values of the kept tokens."""
        return self.attended * self.shape.row_bytes

    def witness(self) -> Mapping[str, float]:
        """The kept share of all tokens."""
        visible = self.cache_length.tokens + 1
        return {"kept_share": self.attended / visible, "attended_tokens": float(self.attended)}
