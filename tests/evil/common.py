"""What the methods of this folder start from: exact attention by SDPA, and its definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention


class AttendingLayer(ExactCacheLayer):
    """Exact attention over the exact cache, honest until a subclass spoils it."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            q, keys, values, scale=self.shape.scale, enable_gqa=self.shape.group > 1
        )

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, *self.append(k, v))


class LastOutputLayer(AttendingLayer):
    """Attention now and then; in between a copy of what came out last. Starts honestly."""

    last: Tensor | None = None

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.last = None

    def works_now(self, q: Tensor) -> bool:
        """Whether this call computes anything."""
        raise NotImplementedError

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = self.append(k, v)
        works = self.works_now(q)
        if works or self.last is None:
            self.last = self.attend(q, *rows)
        return self.last.clone()

    def tensors(self):
        yield from super().tensors()
        if self.last is not None:
            yield self.last


@dataclass(frozen=True)
class Exact(Method):
    """Declares exact attention; `layer_class` says what it does."""

    name: ClassVar[str] = "evil_exact"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "tests/evil"
    layer_class: ClassVar[type[MethodLayer]] = AttendingLayer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        return exact_attention(q, k, v, shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        return self.layer_class(shape)


@dataclass(frozen=True)
class Approximate(Exact):
    """Declares an approximation whose definition is exact attention, unless a subclass has one."""

    name: ClassVar[str] = "evil_approximate"
    family: ClassVar[Family] = Family.APPROXIMATE


@dataclass(frozen=True)
class Windowed(Approximate):
    """Declares attention to the last `window` tokens."""

    window: int = 32

    name: ClassVar[str] = "evil_windowed"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        return exact_attention(q, k[:, :, -self.window :], v[:, :, -self.window :], shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        return self.layer_class(shape, self.window)


class WindowLayer(AttendingLayer):
    """Attends to the last `window` rows and says so."""

    def __init__(self, shape: LayerShape, window: int) -> None:
        super().__init__(shape)
        self.window = window

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (rows[:, :, -self.window :] for rows in self.append(k, v))
        return self.attend(q, keys, values)

    @property
    def attended(self) -> int:
        return min(self.visible, self.window)
