"""The decode state of a four-bit cache, in Triton and in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.kernels.splits import SplitWorkspace
from attnbench.methods.base import CacheLength, CacheView, KernelConfig, LayerShape, MethodLayer
from attnbench.methods.int4_kv import (
    SCALE_DTYPE,
    Int4Kv,
    Sharing,
    by_group,
    codes_of,
    packed,
    scales,
    unpacked,
)
from attnbench.methods.split_kv import workspace

if TYPE_CHECKING:
    from attnbench.kernels.int4_decode import Int4Rows


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
        pairs = packed(codes_of(grouped, scale, zero))
        if groups.stop > self.pairs.shape[2]:
            return  # a group that the capacity cuts short is never full
        self.pairs[sequences, :, groups] = pairs
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

    def rows(self) -> Int4Rows:
        """As the kernel takes them."""
        from attnbench.kernels.int4_decode import Int4Rows

        return Int4Rows(self.pairs, self.scale, self.zero, self.residual)

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept."""
        yield from (self.pairs, self.scale, self.zero, self.residual, self.rest)

    def bytes_read(self, groups: int, residual: int) -> int:
        """So many groups with their scales, and rows of the residual."""
        coded = sum(
            t[:, :, :groups].numel() * t.itemsize for t in (self.pairs, self.scale, self.zero)
        )
        return coded + self.residual[:, :, :residual].numel() * self.residual.itemsize


class Int4Layer(MethodLayer):
    """Codes and residuals of one layer. Where a step's rows lie follows from the length, so a step
    may be repeated."""

    length: CacheLength
    keys: CodedRows
    values: CodedRows | Tensor  # of values=exact the exact cache's, [B,Hkv,capacity,D]

    def __init__(self, method: Int4Kv, shape: LayerShape) -> None:
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

    def maintain(self) -> None:
        """Codes of the group that the residual is of, full or not: one that is not is made again
        when it is, and not read before. A step that fills it makes them itself."""
        for coded in self._coded_rows():
            coded.flush(self.length.tokens // self.method.group)


class Int4TorchLayer(Int4Layer):
    """Widens the codes to float32 at every step: as small, but no faster than it can be in
    PyTorch."""

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


class Int4TritonLayer(Int4Layer):
    """Dequantises in registers: reads little more than a quarter of a 16-bit cache's bytes."""

    work: SplitWorkspace

    def __init__(self, method: Int4Kv, shape: LayerShape, config: KernelConfig) -> None:
        super().__init__(method, shape)
        self.config = config
        if method.keys == "channel" and method.group % config.block_n:
            raise Unsupported(
                f"{method.label} has no tiles of {config.block_n} tokens in groups of "
                f"{method.group}"
            )

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Quantise, and allocate workspaces."""
        super().prefill(cache, q)
        self.work = workspace(self.shape, self.config)
        if isinstance(self.values, Tensor) and not self.values.is_contiguous():
            raise Unsupported(f"{self.method.label} reads exact values that lie row by row alone")

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, attend and make codes of a group that is full, in one launch."""
        from attnbench.kernels.int4_decode import int4_decode

        values = self.values if isinstance(self.values, Tensor) else self.values.rows()
        return int4_decode(
            q,
            k,
            v,
            self.keys.rows(),
            values,
            self.length.tensor,
            self.work,
            scale=self.shape.scale,
            block_n=self.config.block_n,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Codes, scales, residuals, exact values where they stay so, and workspaces."""
        yield from super().tensors()
        yield from self.work.tensors()
