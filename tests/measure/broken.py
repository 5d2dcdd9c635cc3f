"""Methods that do one thing wrong, and one that keeps a quarter of the cache's bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import (
    CacheView,
    Family,
    KernelConfig,
    LayerShape,
    Method,
    MethodLayer,
)
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention


@dataclass(frozen=True)
class Broken(Method):
    """Exact attention over the exact cache, spoilt by its subclasses."""

    name: ClassVar[str] = "broken"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "tests"
    spoilt: ClassVar[type[ExactCacheLayer]] = ExactCacheLayer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        return exact_attention(q, k, v, shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        return self.spoilt(shape)


class GoodLayer(ExactCacheLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        return exact_attention(q, keys, values, self.shape.scale).to(q.dtype)


class Good(Broken):
    spoilt = GoodLayer


class Exact(Good):
    """Keeps what it declares."""

    family: ClassVar[Family] = Family.EXACT


class SaysExact(Exact):
    """Fast, of the right shape, finite, and not attention."""

    class spoilt(ExactCacheLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return q.clone()


class ForgetsNew(Exact):
    """Attends to all tokens but the new one, in the last layer only."""

    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self.shape.layer < 2:
                return super().decode(q, k, v)
            keys, values = (rows[:, :, :-1] for rows in self.append(k, v))
            return exact_attention(q, keys, values, self.shape.scale).to(q.dtype)


class Nan(Broken):
    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return super().decode(q, k, v).mul_(float("nan"))


class Transposed(Broken):
    """[B,1,H,D] has as many elements as [B,H,1,D], so that a whole step would not notice."""

    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return super().decode(q, k, v).transpose(1, 2)


class Raises(Broken):
    """Goes well through a warm-up of sixteen steps."""

    class spoilt(GoodLayer):  # noqa: N801
        steps = 0

        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.steps += 1
            if self.steps > 19:
                raise IndexError("block 19 is out of range")
            return super().decode(q, k, v)


class Damages(Broken):
    """Changes a cached row, and what it computes is right."""

    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            output = super().decode(q, k, v)
            self.cache.k[:, :, 3] += 1
            return output


class LeavesTail(Broken):
    """Does not take back the row that it appended."""

    class spoilt(GoodLayer):  # noqa: N801
        def reset(self) -> None:
            return


class OutOfMemory(Broken):
    class spoilt(GoodLayer):  # noqa: N801
        def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
            raise torch.OutOfMemoryError("tried to allocate 2 TiB")


class QuarterLayer(MethodLayer):
    """Keeps keys and values in eight bits, and the length; the exact cache goes."""

    def __init__(self, shape: LayerShape) -> None:
        self.shape = shape

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        self.length = cache.length
        self.k, self.v = (rows.clamp(-4, 4).mul(31).to(torch.int8) for rows in (cache.k, cache.v))

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.length.tokens + 1
        keys, values = (rows[:, :, :end].to(q.dtype) / 31 for rows in (self.k, self.v))
        return exact_attention(q, keys, values, self.shape.scale).to(q.dtype)

    def reset(self) -> None:
        return

    def tensors(self) -> Iterator[Tensor]:
        yield self.k
        yield self.v

    def bytes_read(self) -> int:
        return (self.length.tokens + 1) * self.shape.row_bytes // self.shape.dtype.itemsize

    def witness(self) -> Mapping[str, float]:
        return {"kept_share": 1.0}


class Quarter(Broken):
    spoilt = QuarterLayer


class Hides(Broken):
    """Says that it keeps eight bits and holds the exact cache all the same."""

    class spoilt(QuarterLayer):  # noqa: N801
        def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
            super().prefill(cache, q)
            self.hidden = cache


class Tuned(Broken):
    """Slower with more splits, and does not run with seven."""

    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self.shape.kernel.splits == 7:
                raise RuntimeError("out of resource: shared memory")
            for _ in range(self.shape.kernel.splits):
                output = super().decode(q, k, v)
            return output

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        return tuple(KernelConfig(16, splits, 4, 2) for splits in (1, 7, 40))


class Registers(Good):
    """Puts a kernel for an operator that no step has into the dispatcher, without a note of it."""

    modules: ClassVar[list[object]] = []  # keeps what it registered alive

    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if not Registers.modules:
                module = torch._C._dispatch_library("IMPL", "aten", "", "a.cpp", 1)
                Registers.modules.append(module)
                module.impl("cosh", "CPU", lambda x: x)
            return super().decode(q, k, v)
