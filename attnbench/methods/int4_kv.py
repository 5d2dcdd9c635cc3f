"""A four-bit cache: KIVI (Liu et al. 2024, arXiv 2402.02750), keys by channel, values by token.

A code is (x - zero) / scale, rounded to 0..15, where zero is the least of what shares a scale.
Whole groups of tokens are codes; the tokens after the last whole group are the residual and stay as
they are until they fill a group of their own. So which tokens are codes follows from the length
alone, in prefill as in decode: of N cached tokens the first N // group * group. (KIVI's own values
leave the residual one by one; here both leave together.)

Scale and zero are float16, as KIVI's are: two float32 add a whole bit to each of a token's 64
channels, two float16 half a bit. Codes are found against the rounded pair, so that its rounding
costs no more than a sliver at either end of the range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import Family, KernelConfig, LayerShape, Method, MethodLayer
from attnbench.methods.reference import exact_attention

LARGEST_CODE = 15
SCALE_DTYPE = torch.float16
LARGEST_SCALE = torch.finfo(SCALE_DTYPE).max
# Of the kernel's tile of codes, once it is widened to float16 or float32.
WIDENED_BYTES = 32 * 1024

Sharing = Literal["channel", "token"]


@dataclass(frozen=True)
class Int4Kv(Method):
    """Leaves little more than a quarter of a 16-bit cache, and of what a step must read of it.

    `keys` says what shares a scale: a channel in a group of tokens, or a token; `values=exact`
    leaves the values in the exact cache.
    """

    keys: Sharing = "channel"
    group: int = 128
    values: Literal["token", "exact"] = "token"
    impl: str = ""

    name: ClassVar[str] = "int4_kv"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "arXiv:2402.02750, at 4 bits"
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    def __post_init__(self) -> None:
        if self.group < 1:
            raise UsageError(f"int4_kv: group={self.group} holds no token", hint="group from 1")

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default, and groups small enough for a short cache to hold codes of every kind."""
        del device_type
        return (
            cls(),
            cls(group=16),
            cls(keys="token", group=24),
            cls(group=32, values="exact"),
        )

    @property
    def dynamic_length(self) -> bool:
        """The kernel reads the length from the device; PyTorch takes it from a shape."""
        return self.impl == "triton"

    @property
    def period(self) -> int:
        """The last token of a group makes codes of it."""
        return self.group

    def whole(self, tokens: int) -> int:
        """How many of so many cached tokens are codes."""
        return tokens // self.group * self.group

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention over rounded whole groups and the exact residual, which the last token
        is of."""
        coded = self.whole(k.shape[2] - 1)
        keys = self._rounded(k, coded, self.keys)
        values = v if self.values == "exact" else self._rounded(v, coded, "token")
        return exact_attention(q, keys, values, shape.scale)

    def _rounded(self, rows: Tensor, coded: int, sharing: Sharing) -> Tensor:
        """Rows [B,H,N,D] in float64, the first `coded` of them by way of codes."""
        grouped = by_group(rows[:, :, :coded], self.group)
        scale, zero = scales(grouped, sharing)
        worth = codes_of(grouped, scale, zero).double() * scale.double() + zero.double()
        return torch.cat((worth.flatten(2, 3), rows[:, :, coded:].double()), dim=2)

    def check(self, shape: LayerShape) -> None:
        """Two channels share a byte; and what the kernel needs, where the kernel is meant."""
        super().check(shape)
        if shape.head_dim % 2:
            raise Unsupported(
                f"{self.label} packs two channels into a byte, and head dimension "
                f"{shape.head_dim} is odd"
            )
        if self.impl == "triton":
            from attnbench.methods.split_kv import LEAST_ROWS, require_triton

            require_triton(self.label, shape)
            if self.keys == "channel" and self.group % LEAST_ROWS:
                raise Unsupported(
                    f"{self.label}: a group of {self.group} tokens holds no whole tiles of the "
                    "kernel",
                    hint=f"a multiple of {LEAST_ROWS}, or keys=token, or impl=torch",
                )

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Those of the split-KV kernels for four bits an element with their scales, in tiles that
        lie within a group where its tokens share scales."""
        if self.impl != "triton":
            return ()
        from attnbench.methods.split_kv import INT8_CANDIDATES, split_configurations

        most = WIDENED_BYTES // (shape.head_dim * shape.dtype.itemsize)
        if self.keys == "channel":
            most = min(most, largest_tile(self.group))
        return split_configurations(shape, self._row_bytes(shape), INT8_CANDIDATES, most)

    def _row_bytes(self, shape: LayerShape) -> int:
        """One token's key and value of one KV head, scales and zeros of tokens included."""
        half, of_a_token = shape.head_dim // 2, 2 * SCALE_DTYPE.itemsize
        key = half + (of_a_token if self.keys == "token" else 0)
        exact = shape.head_dim * shape.dtype.itemsize
        return key + (exact if self.values == "exact" else half + of_a_token)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the chosen implementation."""
        from attnbench.methods.int4_layers import Int4TorchLayer, Int4TritonLayer

        method = self.resolved(shape.device)
        if method.impl == "torch":
            method.check(shape)
            return Int4TorchLayer(method, shape)
        return Int4TritonLayer(method, shape, shape.kernel or method.configurations(shape)[0])


def largest_tile(group: int) -> int:
    """The largest power of two of rows that divides a group."""
    return group & -group


def by_group(rows: Tensor, group: int) -> Tensor:
    """Whole groups of tokens: [B,H,N,D] -> [B,H,N/group,group,D]."""
    return rows.reshape(*rows.shape[:2], rows.shape[2] // group, group, rows.shape[3])


def scales(grouped: Tensor, sharing: Sharing) -> tuple[Tensor, Tensor]:
    """What one code is worth, and what code 0 is: of [B,H,G,group,D] float16 [B,H,G,1,D] for each
    channel, or [B,H,G,group,1] for each token; the scale is 1 where all are equal.

    Beyond what float16 holds they saturate.
    """
    over = 3 if sharing == "channel" else 4
    least = grouped.amin(dim=over, keepdim=True).float()
    most = grouped.amax(dim=over, keepdim=True).float()
    zero = least.clamp(-LARGEST_SCALE, LARGEST_SCALE).to(SCALE_DTYPE)
    step = (most - zero.float()) / LARGEST_CODE
    scale = step.clamp(0, LARGEST_SCALE).to(SCALE_DTYPE)
    return torch.where(scale > 0, scale, 1.0), zero


def codes_of(grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes in float32, halves upwards, saturating."""
    steps = (grouped.float() - zero.float()) / scale.float()
    return steps.add_(0.5).floor_().clamp_(0, LARGEST_CODE)


def packed(codes: Tensor) -> Tensor:
    """Two codes to a byte, the first half of the channels in the low bits: [..,D] -> [..,D/2]."""
    low, high = codes.to(torch.uint8).chunk(2, dim=-1)
    return low | high << 4


def unpacked(pairs: Tensor) -> Tensor:
    """The codes again: uint8 [..,D/2] -> [..,D]."""
    return torch.cat((pairs & LARGEST_CODE, pairs >> 4), dim=-1)
