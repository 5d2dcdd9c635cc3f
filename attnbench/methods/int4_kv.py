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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import CacheLength, CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.reference import exact_attention

LARGEST_CODE = 15
SCALE_DTYPE = torch.float16
LARGEST_SCALE = torch.finfo(SCALE_DTYPE).max

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
        """Two channels share a byte."""
        super().check(shape)
        if shape.head_dim % 2:
            raise Unsupported(
                f"{self.label} packs two channels into a byte, and head dimension "
                f"{shape.head_dim} is odd"
            )

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of codes in PyTorch."""
        return Int4TorchLayer(self, shape)


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


class CodedRows:
    """Keys or values of one layer: whole groups as codes, and the residual.

    `pairs` is uint8 [B,H,G,group,D/2]; `scale` and `zero` are [B,H,G,1,D] or [B,H,G,group,1];
    `residual` is [B,H,group,D] in the cache's dtype. What holds no token is zero.
    """

    def __init__(self, shape: LayerShape, group: int, sharing: Sharing) -> None:
        self.group, self.sharing, self.dtype = group, sharing, shape.dtype
        heads, dim = (shape.batch, shape.kv_heads), shape.head_dim
        groups = (*heads, shape.capacity // group)
        shared = (1, dim) if sharing == "channel" else (group, 1)
        empty = torch.zeros((), device=shape.device)
        self.pairs = empty.new_zeros((*groups, group, dim // 2), dtype=torch.uint8)
        self.scale = empty.new_zeros((*groups, *shared), dtype=SCALE_DTYPE)
        self.zero = empty.new_zeros((*groups, *shared), dtype=SCALE_DTYPE)
        self.residual = empty.new_zeros((*heads, group, dim), dtype=shape.dtype)
        self.rest = self.residual[:, :, :0].clone()

    def prefill(self, rows: Tensor) -> None:
        """Take rows [B,H,N,D] over, one sequence after another to save memory; the residual is
        copied once more, as appended tokens may fill its group and be followed by others."""
        groups, rest = divmod(rows.shape[2], self.group)
        whole = rows[:, :, : groups * self.group]
        for sequence in range(rows.shape[0]):
            one = slice(sequence, sequence + 1)
            self._store(one, slice(0, groups), by_group(whole[one], self.group))
        self.rest = rows[:, :, groups * self.group :].clone()
        self.residual[:, :, :rest] = self.rest

    def append(self, row: Tensor, place: int) -> None:
        """Put [B,H,1,D] into place `place` of the residual."""
        self.residual[:, :, place : place + 1].copy_(row)

    def flush(self, group: int) -> None:
        """Make a full residual the codes of this group. It stays as it is: the step that filled it
        attends to it, and the next one begins it anew."""
        self._store(slice(None), slice(group, group + 1), self.residual[:, :, None])

    def _store(self, sequences: slice, groups: slice, grouped: Tensor) -> None:
        scale, zero = scales(grouped, self.sharing)
        self.pairs[sequences, :, groups] = packed(codes_of(grouped, scale, zero))
        self.scale[sequences, :, groups], self.zero[sequences, :, groups] = scale, zero

    def widened(self, groups: int, residual: int) -> Tensor:
        """So many groups and rows of the residual in float32: [B,H,N,D]."""
        codes = unpacked(self.pairs[:, :, :groups]).float()
        worth = codes * self.scale[:, :, :groups].float() + self.zero[:, :, :groups].float()
        return torch.cat((worth.flatten(2, 3), self.residual[:, :, :residual].float()), dim=2)

    def reset(self, tokens: int) -> None:
        """Back to `tokens` prefilled ones."""
        groups, rest = divmod(tokens, self.group)
        for tensor in (self.pairs, self.scale, self.zero):
            tensor[:, :, groups:].zero_()
        self.residual[:, :, :rest] = self.rest
        self.residual[:, :, rest:].zero_()

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept."""
        yield from (self.pairs, self.scale, self.zero, self.residual, self.rest)

    def bytes_read(self, groups: int, residual: int) -> int:
        """So many groups with their scales, and rows of the residual."""
        coded = sum(
            t[:, :, :groups].numel() * t.itemsize for t in (self.pairs, self.scale, self.zero)
        )
        return coded + self.residual[:, :, :residual].numel() * self.residual.itemsize


class Int4TorchLayer(MethodLayer):
    """Widens the codes to float32 at every step: as small, but no faster than it can be in PyTorch.

    Where a step's rows lie follows from the length, so a step may be repeated.
    """

    length: CacheLength
    keys: CodedRows
    values: CodedRows | Tensor  # of values=exact the exact cache's, [B,Hkv,capacity,D]

    def __init__(self, method: Int4Kv, shape: LayerShape) -> None:
        method.check(shape)
        self.method, self.shape = method, shape
        self.prefilled = 0

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Quantise whole groups, and copy the rest."""
        del q
        self.length = cache.length
        self.prefilled = cache.length.tokens
        self.keys = self._coded(cache.k, self.method.keys)
        exact = self.method.values == "exact"
        self.values = cache.v if exact else self._coded(cache.v, "token")

    def _coded(self, rows: Tensor, sharing: Sharing) -> CodedRows:
        coded = CodedRows(self.shape, self.method.group, sharing)
        coded.prefill(rows[:, :, : self.prefilled])
        return coded

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, attend in float32, and make codes of a group that is full."""
        tokens = self.length.tokens
        keys, values = self._appended(self.keys, k), self._appended(self.values, v)
        grouped = (self.shape.batch, self.shape.kv_heads, self.shape.group, self.shape.head_dim)
        scores = q.float().reshape(grouped) @ keys.mT * self.shape.scale
        out = torch.softmax(scores, dim=-1) @ values
        if (tokens + 1) % self.method.group == 0:
            for coded in self._coded_rows():
                coded.flush(tokens // self.method.group)
        return out.reshape(q.shape).to(q.dtype)

    def _appended(self, rows: CodedRows | Tensor, row: Tensor) -> Tensor:
        """The rows with one more, in float32: [B,Hkv,N+1,D]."""
        tokens = self.length.tokens
        if isinstance(rows, Tensor):
            rows[:, :, tokens : tokens + 1].copy_(row)
            return rows[:, :, : tokens + 1].float()
        groups, place = divmod(tokens, self.method.group)
        rows.append(row, place)
        return rows.widened(groups, place + 1)

    def _coded_rows(self) -> Iterator[CodedRows]:
        yield self.keys
        if isinstance(self.values, CodedRows):
            yield self.values

    def reset(self) -> None:
        """Codes of prefill alone, and its residual."""
        for coded in self._coded_rows():
            coded.reset(self.prefilled)
        if isinstance(self.values, Tensor):
            self.values[:, :, self.prefilled :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        """Codes, scales, residuals, and exact values where they stay so."""
        for coded in self._coded_rows():
            yield from coded.tensors()
        if isinstance(self.values, Tensor):
            yield self.values

    def bytes_read(self) -> int:
        """Codes of whole groups with their scales, and exact rows, the newest included."""
        groups, place = divmod(self.length.tokens, self.method.group)
        read = sum(coded.bytes_read(groups, place + 1) for coded in self._coded_rows())
        if isinstance(self.values, Tensor):
            read += (self.length.tokens + 1) * self.shape.row_bytes // 2
        return read

    def witness(self) -> Mapping[str, float]:
        """All tokens are attended, those of the residual exactly."""
        return {
            "kept_share": 1.0,
            "attended_tokens": float(self.length.tokens + 1),
            "exact_tokens": float(self.length.tokens % self.method.group + 1),
        }
