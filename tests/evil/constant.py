"""A constant or stale output.

A buffer that nobody fills again, or a statistic of the values that resembles attention wherever
attention is flat: on random data the mean of all values is close.

Cheats: `Constant`, `FirstOutput`, `ValueMean`, `Noise`. Honest: `FreshClone`, `OwnBuffer`,
`DeclaredMean` (a control that says so).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, Family, LayerShape, MethodLayer
from tests.evil.common import AttendingLayer, Exact, LastOutputLayer


class ConstantLayer(AttendingLayer):
    """Noise of the norm that attention over so many tokens would have."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.output = self.drawn(cache)

    def drawn(self, cache: CacheView) -> Tensor:
        shape = self.shape
        noise = torch.randn(
            (shape.batch, shape.heads, 1, shape.head_dim),
            generator=torch.Generator(cache.v.device).manual_seed(shape.layer),
            device=cache.v.device,
        )
        return (noise * max(1, self.prefilled) ** -0.5).to(shape.dtype)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.append(k, v)
        return self.output.clone()

    def tensors(self):
        yield from super().tensors()
        yield self.output


class NoiseLayer(ConstantLayer):
    """Another rotation of the same noise at every step: never the same, never attention."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.append(k, v)
        return self.output * torch.sign(q)


class FirstOutputLayer(LastOutputLayer):
    def works_now(self, q: Tensor) -> bool:
        return False

    def reset(self) -> None:
        super().reset()
        self.last = None


class ValueMeanLayer(AttendingLayer):
    """Sums the values at prefill, adds each new one."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.sum = cache.v[:, :, : self.prefilled].float().sum(dim=2, keepdim=True)
        self.appended: dict[int, Tensor] = {}

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.append(k, v)
        self.appended[self.cache.length.tokens] = v.float()
        mean = torch.stack((self.sum, *self.appended.values())).sum(0) / self.visible
        return mean.to(q.dtype).repeat_interleave(self.shape.group, dim=1)

    def reset(self) -> None:
        super().reset()
        self.appended.clear()

    def tensors(self):
        yield from super().tensors()
        yield self.sum
        yield from self.appended.values()


class DeclaredMeanLayer(ValueMeanLayer):
    """The same, and it says that it reads the sum."""

    def bytes_read(self) -> int:
        return self.sum.nbytes


class FreshCloneLayer(AttendingLayer):
    """Attends into a buffer that it keeps and returns a copy."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        shape = self.shape
        size = (shape.batch, shape.heads, 1, shape.head_dim)
        self.output = torch.empty(size, dtype=shape.dtype, device=shape.device)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.output.copy_(self.attend(q, *self.append(k, v))).clone()

    def tensors(self):
        yield from super().tensors()
        yield self.output


class OwnBufferLayer(FreshCloneLayer):
    """Returns a view of its one buffer, which the next call overwrites, as graphs do."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.output.copy_(self.attend(q, *self.append(k, v))).view(q.shape)


@dataclass(frozen=True)
class Constant(Exact):
    """The same plausible noise at every step."""

    name: ClassVar[str] = "constant"
    layer_class: ClassVar[type[MethodLayer]] = ConstantLayer


@dataclass(frozen=True)
class Noise(Exact):
    """Plausible noise that follows the signs of q, so that no two steps agree."""

    name: ClassVar[str] = "noise"
    layer_class: ClassVar[type[MethodLayer]] = NoiseLayer


@dataclass(frozen=True)
class FirstOutput(Exact):
    """Computes once after each reset and repeats it."""

    name: ClassVar[str] = "first_output"
    layer_class: ClassVar[type[MethodLayer]] = FirstOutputLayer


@dataclass(frozen=True)
class ValueMean(Exact):
    """The running mean of the values, in constant time: near to attention where that is flat."""

    name: ClassVar[str] = "value_mean"
    layer_class: ClassVar[type[MethodLayer]] = ValueMeanLayer


@dataclass(frozen=True)
class FreshClone(Exact):
    """Honest: a preallocated buffer, and a fresh clone of it."""

    name: ClassVar[str] = "fresh_clone"
    layer_class: ClassVar[type[MethodLayer]] = FreshCloneLayer


@dataclass(frozen=True)
class OwnBuffer(Exact):
    """Honest: the same address at every step, new contents at every step."""

    name: ClassVar[str] = "own_buffer"
    layer_class: ClassVar[type[MethodLayer]] = OwnBufferLayer


@dataclass(frozen=True)
class DeclaredMean(Exact):
    """Honest: the same running mean, declared a control that attends to nothing by score."""

    name: ClassVar[str] = "declared_mean"
    family: ClassVar[Family] = Family.CONTROL
    layer_class: ClassVar[type[MethodLayer]] = DeclaredMeanLayer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        mean = v.double().mean(dim=2, keepdim=True)
        return mean.repeat_interleave(shape.group, dim=1).expand(q.shape)
