"""An INT8 cache: keys with one scale for each channel, values with one for each token.

The axes are KIVI's (Liu et al. 2024, arXiv 2402.02750), at eight bits, without a recent window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, Family, KernelConfig, LayerShape, Method, MethodLayer
from attnbench.methods.reference import ReferenceLayer, exact_attention

LARGEST_CODE = 127
SCALE_BYTES = 4


@dataclass(frozen=True)
class Int8Kv(Method):
    """Halves the cache and what a step reads of it.

    A key channel's scale is taken at prefill, over the cached tokens; keys appended later saturate
    at it. A value's scale is its own. The scales fold into the query and into the weights.
    """

    impl: str = ""

    name: ClassVar[str] = "int8_kv"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "arXiv:2402.02750, at 8 bits"
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    @property
    def dynamic_length(self) -> bool:
        """The kernel reads the length from the device; PyTorch takes it from a shape."""
        return self.impl == "triton"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention over rounded keys and values, all but the last token being prefilled."""
        return attend_rounded(q, k, v, key_scales(k[:, :, :-1]), shape)

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition with the key scales of prefill."""
        return Int8ReferenceLayer(self, shape)

    def check(self, shape: LayerShape) -> None:
        """What the kernel needs, where the kernel is meant."""
        if self.impl == "triton":
            from attnbench.methods.split_kv import require_triton

            require_triton(self.label, shape)

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Those of the split-KV kernels for a byte an element and a value scale a token."""
        if self.impl != "triton":
            return ()
        from attnbench.methods.split_kv import INT8_CANDIDATES, split_configurations

        return split_configurations(shape, 2 * shape.head_dim + SCALE_BYTES, INT8_CANDIDATES)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the chosen implementation."""
        from attnbench.methods.int8_layers import Int8TorchLayer, Int8TritonLayer

        method = self.resolved(shape.device)
        if method.impl == "torch":
            return Int8TorchLayer(shape)
        return Int8TritonLayer(shape, shape.kernel or method.configurations(shape)[0])


def key_scales(k: Tensor) -> Tensor:
    """What one code is worth in each channel: [B,Hkv,N,D] -> float32 [B,Hkv,D]; 1 for zeros."""
    return code_worth(k.abs().amax(dim=2).float())


def value_scales(v: Tensor) -> Tensor:
    """What one code is worth in each token: [B,Hkv,N,D] -> float32 [B,Hkv,N]; 1 for zeros."""
    return code_worth(v.abs().amax(dim=3).float())


def code_worth(largest: Tensor) -> Tensor:
    """The scale that gives the largest magnitude the largest code."""
    return torch.where(largest > 0, largest / LARGEST_CODE, 1.0)


def nearest_codes(values: Tensor, scales: Tensor) -> Tensor:
    """Codes in float32, halves upwards, saturating; the quotient is rounded to float32."""
    codes = (values.float() / scales).add_(0.5).floor_()
    return codes.clamp_(-LARGEST_CODE, LARGEST_CODE)


def attend_rounded(q: Tensor, k: Tensor, v: Tensor, k_scales: Tensor, shape: LayerShape) -> Tensor:
    """Exact attention over keys and values rounded to eight bits, in float64."""
    worth = k_scales[:, :, None, :]
    keys = nearest_codes(k, worth).double() * worth
    worth = value_scales(v)[..., None]
    values = nearest_codes(v, worth).double() * worth
    return exact_attention(q, keys, values, shape.scale)


class Int8ReferenceLayer(ReferenceLayer):
    """The definition over the exact cache, with the key scales taken at prefill."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Take the key scales."""
        super().prefill(cache, q)
        self.k_scales = key_scales(cache.k[:, :, : self.prefilled])

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend; the output is float64."""
        keys, values = self.append(k, v)
        return attend_rounded(q, keys, values, self.k_scales, self.shape)
