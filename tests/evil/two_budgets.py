"""A budget where it is timed, and another where it is judged.

Every step is what the method's definition says for the shape that it is given, and its witness is
true: the shapes are not the same. Cheat: `FewWhereTheCacheEnds` (few tokens where there is room for
one token more than the prompt alone, as where steps are timed). Honest: `Windowed` of common.py, a
fixed number of tokens at every length, and any other budget that hangs on the length alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from attnbench.methods.reference import exact_attention
from tests.evil.common import Approximate, Windowed, WindowLayer


class FewWhereTheCacheEndsLayer(WindowLayer):
    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        if cache.k.shape[2] > cache.length.tokens + 1:
            self.window = cache.k.shape[2]


@dataclass(frozen=True)
class FewWhereTheCacheEnds(Approximate):
    """Its definition knows the capacity too."""

    few: int = 32

    name: ClassVar[str] = "evil_few_where_the_cache_ends"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        rows = self.few if shape.capacity == k.shape[2] else k.shape[2]
        return exact_attention(q, k[:, :, -rows:], v[:, :, -rows:], shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        return FewWhereTheCacheEndsLayer(shape, self.few)


@dataclass(frozen=True)
class FixedWindow(Windowed):
    """The last 32 tokens of any context."""

    name: ClassVar[str] = "evil_fixed_window"
    layer_class: ClassVar[type[MethodLayer]] = WindowLayer
