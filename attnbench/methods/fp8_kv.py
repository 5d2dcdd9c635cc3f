"""An FP8 cache: keys and values as e4m3 numbers (Micikevicius et al. 2022, arXiv 2209.05433), as
serving engines keep them, with one scale for each sequence and KV head or one for the layer.

A number of the cache is code · scale, where the scale gives the largest prefilled magnitude the
largest code, 448. Rows appended later saturate at it. Codes are rounded to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.kernels.splits import SplitWorkspace
from attnbench.methods.base import (
    CacheLength,
    CacheView,
    Family,
    KernelConfig,
    LayerShape,
    Method,
    MethodLayer,
)
from attnbench.methods.reference import ReferenceLayer, exact_attention

E4M3 = torch.float8_e4m3fn
LARGEST_CODE = torch.finfo(E4M3).max  # 448
LEAST_CAPABILITY = (8, 9)  # whose instructions convert e4m3


@dataclass(frozen=True)
class Fp8Kv(Method):
    """Halves the cache and what a step reads of it; three bits of mantissa are left of a number.

    `scale` says what shares one, of keys and of values apart: each sequence's KV head, or the
    layer.
    """

    scale: Literal["head", "tensor"] = "head"
    impl: str = ""

    name: ClassVar[str] = "fp8_kv"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "arXiv:2209.05433"
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """A scale for each KV head, and one for the layer."""
        del device_type
        return (cls(), cls(scale="tensor"))

    @property
    def dynamic_length(self) -> bool:
        """The kernel reads the length from the device; PyTorch takes it from a shape."""
        return self.impl == "triton"

    def scales(self, rows: Tensor) -> Tensor:
        """What a code of 1 is worth: [B,Hkv,N,D] -> float32 [B,Hkv]; 1 for zeros."""
        over = (2, 3) if self.scale == "head" else (0, 1, 2, 3)
        largest = rows.abs().amax(dim=over, keepdim=True).float()[:, :, 0, 0]
        worth = torch.where(largest > 0, largest / LARGEST_CODE, 1.0)
        return worth.expand(rows.shape[:2]).contiguous()

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention over rounded keys and values, all but the last token being prefilled."""
        worth = self.scales(k[:, :, :-1]), self.scales(v[:, :, :-1])
        return attend_rounded(q, k, v, worth, shape)

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition with the scales of prefill."""
        return Fp8ReferenceLayer(self, shape)

    def check(self, shape: LayerShape) -> None:
        """What the kernel needs, where the kernel is meant."""
        if self.impl != "triton":
            return
        from attnbench.methods.split_kv import require_triton

        require_triton(self.label, shape)
        if shape.device.type != "cuda":
            return
        capability = torch.cuda.get_device_capability(shape.device)
        if capability < LEAST_CAPABILITY:
            raise Unsupported(
                f"{self.label} needs instructions that convert e4m3, and this GPU's compute "
                f"capability is {capability[0]}.{capability[1]}",
                hint="8.9 and later have them; impl=torch runs anywhere, and is slow",
            )

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Those of the split-KV kernels for a byte an element."""
        if self.impl != "triton":
            return ()
        from attnbench.methods.split_kv import INT8_CANDIDATES, split_configurations

        return split_configurations(shape, 2 * shape.head_dim, INT8_CANDIDATES)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the chosen implementation."""
        method = self.resolved(shape.device)
        if method.impl == "torch":
            return Fp8TorchLayer(method, shape)
        return Fp8TritonLayer(method, shape, shape.kernel or method.configurations(shape)[0])


def codes_of(rows: Tensor, worth: Tensor) -> Tensor:
    """The nearest e4m3 numbers of [B,Hkv,N,D] over `worth` [B,Hkv], saturating; the quotient is
    rounded to float32."""
    steps = rows.float() / worth[:, :, None, None]
    return steps.clamp_(-LARGEST_CODE, LARGEST_CODE).to(E4M3)


def attend_rounded(
    q: Tensor, k: Tensor, v: Tensor, worth: tuple[Tensor, Tensor], shape: LayerShape
) -> Tensor:
    """Exact attention over keys and values rounded to e4m3, in float64."""
    keys, values = (
        codes_of(rows, each).double() * each.double()[:, :, None, None]
        for rows, each in zip((k, v), worth, strict=True)
    )
    return exact_attention(q, keys, values, shape.scale)


class Fp8ReferenceLayer(ReferenceLayer):
    """The definition over the exact cache, with the scales taken at prefill."""

    def __init__(self, method: Fp8Kv, shape: LayerShape) -> None:
        super().__init__(method, shape)
        self.scales = method.scales

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Take the scales."""
        super().prefill(cache, q)
        tokens = slice(0, self.prefilled)
        self.worth = self.scales(cache.k[:, :, tokens]), self.scales(cache.v[:, :, tokens])

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend; the output is float64."""
        keys, values = self.append(k, v)
        return attend_rounded(q, keys, values, self.worth, self.shape)


class Fp8Layer(MethodLayer):
    """Codes and scales of one layer, and nothing of the exact cache but its length."""

    length: CacheLength
    codes: tuple[Tensor, Tensor]  # e4m3 [B,Hkv,capacity,D], of keys and of values
    worth: tuple[Tensor, Tensor]  # float32 [B,Hkv]

    def __init__(self, method: Fp8Kv, shape: LayerShape) -> None:
        self.method, self.shape = method, shape
        self.prefilled = 0

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Round the cached tokens, one sequence after another to save memory."""
        del q
        self.length = cache.length
        self.prefilled = cache.length.tokens
        prompt = [rows[:, :, : self.prefilled] for rows in (cache.k, cache.v)]
        self.worth = self.method.scales(prompt[0]), self.method.scales(prompt[1])
        self.codes = torch.zeros_like(cache.k, dtype=E4M3), torch.zeros_like(cache.v, dtype=E4M3)
        for codes, rows, worth in zip(self.codes, prompt, self.worth, strict=True):
            for one in (slice(at, at + 1) for at in range(self.shape.batch)):
                codes[one, :, : self.prefilled] = codes_of(rows[one], worth[one])

    def reset(self) -> None:
        """Zero the rows appended since prefill."""
        for codes in self.codes:
            codes[:, :, self.prefilled :] = 0

    def tensors(self) -> Iterator[Tensor]:
        """Codes and scales."""
        yield from (*self.codes, *self.worth)

    def bytes_read(self) -> int:
        """A byte an element, and the scales."""
        rows = 2 * self.shape.batch * self.shape.kv_heads * (self.length.tokens + 1)
        return rows * self.shape.head_dim + sum(worth.nbytes for worth in self.worth)

    def witness(self) -> Mapping[str, float]:
        """All tokens are attended; appended codes at the limit may have been cut off there."""
        appended = (codes[:, :, self.prefilled :].float().abs() for codes in self.codes)
        return {
            "kept_share": 1.0,
            "attended_tokens": float(self.length.tokens + 1),
            "appended_codes_at_limit": float(sum((a == LARGEST_CODE).sum() for a in appended)),
        }


class Fp8TritonLayer(Fp8Layer):
    """Converts in registers: reads half the bytes of a 16-bit cache."""

    work: SplitWorkspace

    def __init__(self, method: Fp8Kv, shape: LayerShape, config: KernelConfig) -> None:
        super().__init__(method, shape)
        self.config = config

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Round, and allocate workspaces."""
        from attnbench.methods.split_kv import workspace

        super().prefill(cache, q)
        self.work = workspace(self.shape, self.config)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Round and append the new row, and attend, in one launch."""
        from attnbench.kernels.fp8_decode import fp8_decode

        return fp8_decode(
            q,
            k,
            v,
            self.codes,
            self.worth,
            self.length.tensor,
            self.work,
            scale=self.shape.scale,
            block_n=self.config.block_n,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Codes, scales and workspaces."""
        yield from super().tensors()
        yield from self.work.tensors()


class Fp8TorchLayer(Fp8Layer):
    """Widens the codes to float32 at every step: as small, but no faster than it can be in
    PyTorch."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, then attend in float32 with the scales folded into logits and output."""
        tokens = self.length.tokens
        for codes, row, worth in zip(self.codes, (k, v), self.worth, strict=True):
            codes[:, :, tokens : tokens + 1] = codes_of(row, worth)
        keys, values = (codes[:, :, : tokens + 1].float() for codes in self.codes)
        k_worth, v_worth = (worth[:, :, None, None] for worth in self.worth)
        queries = q.float().reshape(*k_worth.shape[:2], -1, self.shape.head_dim)
        scores = queries @ keys.mT * (k_worth * self.shape.scale)
        out = torch.softmax(scores, dim=-1) @ values * v_worth
        return out.reshape(q.shape).to(q.dtype)
