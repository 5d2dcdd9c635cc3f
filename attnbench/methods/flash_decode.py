"""The project's own split-KV decode kernels, grouped-query native: in Triton, and in Gluon (the
ring of tiles that the copy engine fills) where the GPU has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import CacheView, Family, KernelConfig, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention

MOST_CONFIGURATIONS = 12
KERNELS = ("", "ring", "split")


@dataclass(frozen=True)
class FlashDecode(Method):
    """Exact attention that reads every cached row once, splits it over the whole GPU, and appends
    the new row in the same launch. `kernel` ring or split takes that one alone."""

    kernel: str = ""

    name: ClassVar[str] = "flash_decode"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "https://crfm.stanford.edu/2023/10/12/flashdecoding.html"
    implementations: ClassVar[tuple[str, ...]] = ("triton",)

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise UsageError(
                f"flash_decode: there is no kernel={self.kernel}",
                hint="kernel=ring, kernel=split, or nothing: either",
            )

    @property
    def dynamic_length(self) -> bool:
        """The kernel reads the length from the device."""
        return True

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def check(self, shape: LayerShape) -> None:
        """A CUDA GPU (or Triton's interpreter), and a head dimension that is a power of two; for
        the ring alone what it runs on."""
        from attnbench.methods.split_kv import has_ring, require_triton

        if self.kernel == "ring" and not has_ring(shape):
            raise Unsupported(
                f"{self.label}: the ring kernel does not run this layer here",
                hint="it needs compute capability 9.0, 16 bits and head dimension 64 or 128",
            )
        require_triton(self.name, shape)

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Which of the two kernels, its tiles, splits, warps and stages."""
        from attnbench.methods.split_kv import (
            has_ring,
            ring_configurations,
            split_configurations,
        )

        row_bytes = 2 * shape.head_dim * shape.dtype.itemsize
        has_rings = self.kernel != "split" and has_ring(shape)
        rings = ring_configurations(shape, row_bytes) if has_rings else ()
        others = split_configurations(shape, row_bytes) if self.kernel != "ring" else ()
        return (*rings, *others[: MOST_CONFIGURATIONS - len(rings)])

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that calls the chosen kernel on the exact cache."""
        config = shape.kernel or self.configurations(shape)[0]
        return RingDecodeLayer(shape, config) if config.ring else SplitDecodeLayer(self, shape)


class RingDecodeLayer(ExactCacheLayer):
    """The ring kernel over the exact cache."""

    def __init__(self, shape: LayerShape, config: KernelConfig) -> None:
        super().__init__(shape)
        self.config = config

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view, describe it to the copy engine and allocate workspaces."""
        from attnbench.kernels.ring_decode import descriptor
        from attnbench.methods.split_kv import workspace

        super().prefill(cache, q)
        self.tiles = (
            descriptor(cache.k, self.config.block_n),
            descriptor(cache.v, self.config.block_n),
        )
        self.workspace = workspace(self.shape, self.config)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend in one launch."""
        from attnbench.kernels.ring_decode import ring_decode

        return ring_decode(
            q,
            k,
            v,
            self.cache.k,
            self.cache.v,
            self.tiles,
            self.cache.length.tensor,
            self.workspace,
            scale=self.shape.scale,
            block_n=self.config.block_n,
            ring=self.config.ring,
            num_warps=self.config.num_warps,
        )

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and the workspaces."""
        yield from super().tensors()
        yield from self.workspace.tensors()


class SplitDecodeLayer(ExactCacheLayer):
    """The split-KV kernel over the exact cache, over all of it or over sinks and a window."""

    def __init__(
        self, method: Method, shape: LayerShape, *, sinks: int = 0, window: int = 0
    ) -> None:
        super().__init__(shape)
        self.config = shape.kernel or method.configurations(shape)[0]
        self.sinks = sinks
        self.window = window

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view and allocate workspaces."""
        from attnbench.methods.split_kv import workspace

        super().prefill(cache, q)
        self.workspace = workspace(self.shape, self.config)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend in one launch."""
        from attnbench.kernels.split_decode import split_decode

        return split_decode(
            q,
            k,
            v,
            self.cache.k,
            self.cache.v,
            self.cache.length.tensor,
            self.workspace,
            scale=self.shape.scale,
            block_n=self.config.block_n,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
            sinks=self.sinks,
            window=self.window,
        )

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and the workspaces."""
        yield from super().tensors()
        yield from self.workspace.tensors()

    def attended_rows(self, q: Tensor) -> Tensor:
        """All tokens, or those of the sinks and the window."""
        token = torch.arange(self.visible, device=q.device)
        kept = (token < self.sinks) | (token >= self.visible - (self.window or self.visible))
        return kept.expand(*q.shape[:2], -1)

    @property
    def attended(self) -> int:
        """All tokens, or those of the sinks and the window."""
        return min(self.visible, self.sinks + self.window) if self.window else self.visible
