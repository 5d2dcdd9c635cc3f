"""Sliding window with attention sinks (Xiao et al. 2023, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.errors import UsageError
from attnbench.methods.base import Family, KernelConfig, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.flash_decode import SplitDecodeLayer
from attnbench.methods.reference import exact_attention


@dataclass(frozen=True)
class SinkWindow(Method):
    """Attend to the first `sinks` tokens and the last `window` tokens, the newest among them.

    Approximates softmax attention; keeps the whole cache and its positions, so it saves reads, not
    memory.
    """

    sinks: int = 4
    window: int = 4096
    impl: str = ""

    name: ClassVar[str] = "sink_window"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "arXiv:2309.17453"
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1:
            raise UsageError(
                f"sink_window: sinks={self.sinks}, window={self.window} keeps nothing",
                hint="sinks from 0, window from 1",
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default, and budgets small enough to leave tokens out of a short cache."""
        del device_type
        return (cls(), cls(sinks=4, window=24), cls(sinks=40, window=33))

    @property
    def dynamic_length(self) -> bool:
        """The kernel reads the length from the device; SDPA takes it from a shape."""
        return self.impl == "triton"

    def full_budget(self, tokens: int) -> Self:
        """A window over all tokens."""
        return replace(self, window=tokens)

    def rows_by_position(self, tokens: int) -> frozenset[int]:
        """The sinks and the window."""
        window = range(max(0, tokens - self.window), tokens)
        return frozenset(range(min(self.sinks, tokens))) | frozenset(window)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention over the kept tokens."""
        token = torch.arange(k.shape[2], device=k.device)
        kept = (token < self.sinks) | (token >= k.shape[2] - self.window)
        return exact_attention(q, k[:, :, kept], v[:, :, kept], shape.scale)

    def check(self, shape: LayerShape) -> None:
        """What the kernel needs, where the kernel is meant."""
        if self.impl == "triton":
            from attnbench.methods.split_kv import require_triton

            require_triton(self.label, shape)

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Those of the split-KV kernel for as many rows as are kept."""
        if self.impl != "triton":
            return ()
        from attnbench.methods.split_kv import split_configurations

        kept = replace(shape, capacity=min(shape.capacity, self.window))
        return split_configurations(kept, 2 * shape.head_dim * shape.dtype.itemsize)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the chosen implementation."""
        method = self.resolved(shape.device)
        if method.impl == "torch":
            return SinkWindowTorchLayer(method, shape)
        return SplitDecodeLayer(method, shape, sinks=self.sinks, window=self.window)


class SinkWindowTorchLayer(ExactCacheLayer):
    """SDPA over a copy of the kept rows; over the cache itself while all of it is kept."""

    def __init__(self, method: SinkWindow, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, put the kept rows together, attend."""
        keys, values = (self.kept(rows) for rows in self.append(k, v))
        return scaled_dot_product_attention(
            q, keys, values, scale=self.shape.scale, enable_gqa=self.shape.group > 1
        )

    def kept(self, rows: Tensor) -> Tensor:
        """The first and last rows of [B,Hkv,N+1,D]."""
        start = rows.shape[2] - self.method.window
        if start <= self.method.sinks:
            return rows
        return torch.cat((rows[:, :, : self.method.sinks], rows[:, :, start:]), dim=2)

    def attended_rows(self, q: Tensor) -> Tensor:
        """Tokens of the sinks and the window."""
        token = torch.arange(self.visible, device=q.device)
        method = self.method
        kept = (token < method.sinks) | (token >= self.visible - method.window)
        return kept.expand(*q.shape[:2], -1)

    @property
    def attended(self) -> int:
        """Tokens of the sinks and the window."""
        return min(self.visible, self.method.sinks + self.method.window)
