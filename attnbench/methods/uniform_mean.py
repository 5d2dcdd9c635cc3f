"""A null model: every token weighs the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer


@dataclass(frozen=True)
class UniformMean(Method):
    """The mean of all values; a gate that this passes says nothing about attention."""

    name: ClassVar[str] = "uniform_mean"
    family: ClassVar[Family] = Family.CONTROL
    source: ClassVar[str] = "this project: the null model without scores"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """The mean over tokens, given to every query head of the group."""
        del k
        mean = v.double().mean(dim=2, keepdim=True)
        return mean.repeat_interleave(shape.group, dim=1).expand(q.shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that averages the value cache."""
        return UniformMeanLayer(shape)


class UniformMeanLayer(ExactCacheLayer):
    """Averages the whole value cache at every step."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, then average in float32."""
        _, values = self.append(k, v)
        mean = values.float().mean(dim=2, keepdim=True).to(q.dtype)
        return mean.repeat_interleave(self.shape.group, dim=1)

    def bytes_read(self) -> int:
        """The values alone."""
        return self.attended * self.shape.row_bytes // 2
