"""A method as a user writes it: one file outside the package, named on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention


@dataclass(frozen=True)
class MyWindow(Method):
    """Attend to the last `recent` tokens."""

    recent: int = 16

    name: ClassVar[str] = "my_window"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "an example"

    def full_budget(self, tokens: int) -> Self:
        return type(self)(recent=tokens)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        return exact_attention(q, k[:, :, -self.recent :], v[:, :, -self.recent :], shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        return MyWindowLayer(self, shape)


class MyWindowLayer(ExactCacheLayer):
    """SDPA over a view of the last rows."""

    def __init__(self, method: MyWindow, shape: LayerShape) -> None:
        super().__init__(shape)
        self.recent = method.recent

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (rows[:, :, -self.recent :] for rows in self.append(k, v))
        return scaled_dot_product_attention(
            q, keys, values, scale=self.shape.scale, enable_gqa=self.shape.group > 1
        )

    @property
    def attended(self) -> int:
        return min(self.visible, self.recent)
