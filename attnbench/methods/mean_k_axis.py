"""Keys ranked along one axis of each KV head, whatever the query: DCR's second negative result.

The axis is normalise(mean of K / |K|) over the prompt's keys, after rotary embedding. The source
ranks the keys once and states no rule for tokens that come later; here those are all attended to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.reference import exact_attention
from attnbench.methods.selection import (
    by_projection,
    even_budget,
    joined,
    mean_direction,
    require_budget,
    require_groups,
)
from attnbench.methods.static_rows import StaticReferenceLayer, StaticRowsLayer


@dataclass(frozen=True)
class MeanKAxis(Method):
    """Keep the prompt's tokens that lie farthest along the mean direction of its keys, and every
    token after it.

    Of N prompt tokens max(k_min, floor(coverage · N)) are kept, rounded up to even, chosen once for
    each sequence and KV head; all of them where there are no more. The rest is gone: it saves
    memory as well as reads.
    """

    coverage: float = 0.15
    k_min: int = 64

    name: ClassVar[str] = "mean_k_axis"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "Seqev/dcr-attention_v3"

    def __post_init__(self) -> None:
        require_budget(self.name, self.coverage, self.k_min)

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default, and a budget small enough to leave tokens out of a short cache."""
        del device_type
        return (cls(), cls(coverage=0.3, k_min=4))

    def full_budget(self, tokens: int) -> Self:
        """Every token."""
        del tokens
        return replace(self, coverage=1.0)

    def chosen(self, keys: Tensor) -> Tensor:
        """Rows to keep of the prompt's keys [B,Hkv,N,D], farthest first: int64 [B,Hkv,K]."""
        count = even_budget(self.coverage, self.k_min, keys.shape[2])
        return by_projection(keys, mean_direction(keys, over=(2,)), count)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention over the chosen of all but the last token, and the last one."""
        prompt = k.shape[2] - 1
        return self.attend(q, k, v, self.chosen(k[:, :, :prompt]), prompt, shape)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, prompt: int, shape: LayerShape
    ) -> Tensor:
        """Exact attention over rows [B,Hkv,K] of the prompt, and all tokens after it."""
        keys, values = joined(k, rows, prompt), joined(v, rows, prompt)
        return exact_attention(q, keys, values, shape.scale)

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition over rows that were chosen at prefill."""
        return StaticReferenceLayer(self, shape)

    def check(self, shape: LayerShape) -> None:
        """Whole groups."""
        super().check(shape)
        require_groups(self.label, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the kept rows."""
        self.check(shape)
        return StaticRowsLayer(shape, self.chosen)
