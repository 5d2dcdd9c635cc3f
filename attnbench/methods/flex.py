"""PyTorch's FlexAttention (Dong et al. 2024, arXiv 2412.05496), compiled for the shape at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from attnbench.errors import Unsupported
from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention

# Nothing is masked, so every query has a row to attend to and the blocks follow one another.
OPTIONS = {"ROWS_GUARANTEED_SAFE": True, "BLOCKS_ARE_CONTIGUOUS": True}


@dataclass(frozen=True)
class Flex(Method):
    """`flex_attention(..., enable_gqa=True)` over the cached rows and the new one.

    `compiled` is what it is made for: for one query row PyTorch picks its decode kernel, split over
    the cache. It is compiled once for each length and shape, in seconds. `torch` is the same call
    uncompiled, for a CPU: it computes whole score matrices, right and slow.
    """

    impl: str = ""

    name: ClassVar[str] = "flex"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "torch.nn.attention.flex_attention"
    implementations: ClassVar[tuple[str, ...]] = ("compiled", "torch")

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """On a GPU: uncompiled it is no arm worth its place in every run."""
        return (cls(),) if device_type == "cuda" else ()

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def check_machine(self, device: torch.device) -> None:
        """A CUDA GPU, where it is to be compiled; a CPU, where it is not.

        Uncompiled it waits for the host in every step, so that no step can be captured.
        """
        compiled = self.resolved(device).impl == "compiled"
        wanted, other = ("CUDA GPU", "torch") if compiled else ("CPU", "compiled")
        if compiled != (device.type == "cuda"):
            raise Unsupported(
                f"{self.label} is for a {wanted}, and the device is {device.type}",
                hint=f"here it is flex,impl={other}",
            )

    def check(self, shape: LayerShape) -> None:
        """A device that the implementation is for."""
        self.check_machine(shape.device)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that calls it on views of the exact cache."""
        return FlexLayer(shape, self.resolved(shape.device).impl == "compiled")


class FlexLayer(ExactCacheLayer):
    """FlexAttention over the exact cache; the length is a shape."""

    def __init__(self, shape: LayerShape, compiled: bool) -> None:
        super().__init__(shape)
        self.compiled = compiled

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new row, then attend to all rows."""
        keys, values = self.append(k, v)
        if self.compiled:
            # With the strides of a tensor of its own: else each caller would have its own version.
            query = q.contiguous().flatten().view(q.shape)
            shape = (*q.shape, *keys.shape, keys.stride(), q.dtype)
            # Below autograd, as within an operation of one's own: else the step of a compiled model
            # would have it compiled once more.
            with torch._C._AutoDispatchBelowAutograd():
                out: Tensor = compiled_for(shape)(query, keys, values, self.shape.scale)
            return out
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return attend(q, keys, values, self.shape.scale).reshape(q.shape)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q [B,H,1,D], k and v [B,Hkv,N,D] -> [B,H,1,D]."""
    options: Any = OPTIONS
    out: Any = flex_attention(q, k, v, scale=scale, enable_gqa=True, kernel_options=options)
    attended: Tensor = out
    return attended


@cache
def compiled_for(shape: tuple[object, ...]) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """`attend` compiled for one shape and no other.

    PyTorch counts how often a function was compiled and at some number stops doing so; each shape
    gets a function with code of its own, which is compiled once.
    """
    named = attend.__code__.replace(co_name=f"attend_{abs(hash(shape)):x}")
    function = FunctionType(named, attend.__globals__)
    compiled: Any = torch.compile(function, fullgraph=True, dynamic=False)
    return compiled  # type: ignore[no-any-return]
