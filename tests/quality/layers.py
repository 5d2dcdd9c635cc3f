"""Made-up layer traces and methods with known faults, for the tests of the quality room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.quality.replay import LayerTrace


def gaussian_trace(
    *, context=200, steps=4, heads=4, kv_heads=2, dim=16, layer=0, seed=0, sharpness=1.0
) -> LayerTrace:
    """A layer of Gaussian q, k and v; sharpness 0 makes attention uniform."""
    generator = torch.Generator().manual_seed(seed)
    rows = context + steps
    shape = LayerShape(
        batch=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        capacity=rows + 7,
        dtype=torch.float32,
        device=torch.device("cpu"),
        layer=layer,
        scale=sharpness * dim**-0.5,
    )
    q = torch.randn(steps, heads, dim, generator=generator)
    k, v = torch.randn(2, kv_heads, rows, dim, generator=generator)
    return LayerTrace(shape, context, q, k, v)


@dataclass(frozen=True)
class Mutant(Method):
    """Exact attention whose output goes through `spoil` (for a test of what the gates see)."""

    spoil: Callable[[Tensor], Tensor] = torch.clone

    name: ClassVar[str] = "mutant"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "a test"

    def reference(self, q, k, v, shape):
        raise NotImplementedError

    def layer(self, shape: LayerShape) -> MethodLayer:
        return MutantLayer(self, shape)


class MutantLayer(MethodLayer):
    view: CacheView

    def __init__(self, method: Mutant, shape: LayerShape) -> None:
        self.method = method
        self.shape = shape

    def prefill(self, cache, q=None):
        self.view = cache

    def decode(self, q, k, v):
        row = self.view.length.tokens
        self.view.k[:, :, row] = k[:, :, 0]
        self.view.v[:, :, row] = v[:, :, 0]
        rows = slice(0, row + 1)
        output = scaled_dot_product_attention(
            q,
            self.view.k[:, :, rows],
            self.view.v[:, :, rows],
            scale=self.shape.scale,
            enable_gqa=True,
        )
        return self.method.spoil(output)

    def reset(self):
        raise NotImplementedError

    def tensors(self):
        yield self.view.k

    def bytes_read(self):
        return 0

    def witness(self):
        return {"kept_share": 1.0}
