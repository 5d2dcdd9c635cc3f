"""Scaled dot-product attention of PyTorch, grouped-query native."""

from __future__ import annotations

import contextlib
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnbench.errors import Unsupported
from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention

Backend = Literal["auto", "math", "flash", "efficient", "cudnn"]
BACKENDS: dict[str, SDPBackend] = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
# How PyTorch says that the backends it may use do not take a shape.
REFUSALS = ("No available kernel", "No viable backend")
# Enough rows for every backend to show whether it takes the shape, few enough to cost nothing.
TRIAL_TOKENS = 32


@dataclass(frozen=True)
class Sdpa(Method):
    """`scaled_dot_product_attention(..., enable_gqa=True)` over the cached rows and the new one.

    `auto` leaves the choice of a backend to PyTorch; any other name is that backend or an error.
    """

    backend: Backend = "auto"

    name: ClassVar[str] = "sdpa"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "torch.nn.functional.scaled_dot_product_attention"

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """PyTorch's own choice and every backend that this type of device may have."""
        cpu: tuple[Backend, ...] = ("auto", "math", "flash")
        cuda: tuple[Backend, ...] = ("auto", "math", "flash", "efficient", "cudnn")
        return tuple(cls(backend=name) for name in (cuda if device_type == "cuda" else cpu))

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that calls SDPA on views of the exact cache."""
        return SdpaLayer(self, shape)

    def check(self, shape: LayerShape) -> None:
        """Try the shape on a few zero tokens: a backend says what it refuses only when called."""
        rows = (shape.batch, shape.kv_heads, TRIAL_TOKENS, shape.head_dim)
        k = torch.zeros(rows, dtype=shape.dtype, device=shape.device)
        q = k.new_zeros(shape.batch, shape.heads, 1, shape.head_dim)
        with warnings.catch_warnings(record=True) as refusals:
            warnings.simplefilter("always")
            try:
                self.call(q, k[:, :, :-1], k[:, :, :-1], shape)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise refused(self, shape, error, [str(w.message) for w in refusals]) from error

    def attend(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """q [B,H,1,D], k and v [B,Hkv,N,D] -> [B,H,1,D]; `Unsupported` where it is refused."""
        try:
            return self.call(q, k, v, shape)
        except RuntimeError as error:
            if not any(words in str(error) for words in REFUSALS):
                raise
            raise refused(self, shape, error, []) from error

    def call(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """SDPA itself."""
        with self.chosen():
            return scaled_dot_product_attention(
                q, k, v, scale=shape.scale, enable_gqa=shape.group > 1
            )

    def chosen(self) -> AbstractContextManager[object]:
        """Restrict SDPA to this backend; it raises rather than take another."""
        if self.backend == "auto":
            return contextlib.nullcontext()
        return sdpa_kernel([BACKENDS[self.backend]])


class SdpaLayer(ExactCacheLayer):
    """SDPA over the exact cache; the length is a shape."""

    def __init__(self, method: Sdpa, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new row, then attend to all rows."""
        return self.method.attend(q, *self.append(k, v), self.shape)


def refused(
    method: Sdpa, shape: LayerShape, error: RuntimeError, reasons: list[str]
) -> Unsupported:
    """The typed form of a backend's refusal, with the reasons that PyTorch warned about."""
    why = "; ".join(reasons) or str(error)
    return Unsupported(
        f"{method.label} does not run on {shape.device.type}: {why}",
        hint=f"tried with {shape.heads} heads over {shape.kv_heads} KV heads of dimension "
        f"{shape.head_dim} in {shape.dtype}; use sdpa without a backend, or another one",
    )
