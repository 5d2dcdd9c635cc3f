"""The ceiling: attention that costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer


@dataclass(frozen=True)
class ZeroCost(Method):
    """Appends k and v and returns a copy of q: no attention method can make a step faster."""

    name: ClassVar[str] = "zero_cost"
    family: ClassVar[Family] = Family.CONTROL
    source: ClassVar[str] = "this project: the ceiling of what an attention method can save"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """The query itself."""
        del k, v, shape
        return q.double()

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that only appends."""
        return ZeroCostLayer(shape)


class ZeroCostLayer(ExactCacheLayer):
    """Keeps the cache up to date and reads none of it."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, and return a fresh copy of the query."""
        self.append(k, v)
        return q.clone(memory_format=torch.contiguous_format)

    @property
    def attended(self) -> int:
        """None."""
        return 0
