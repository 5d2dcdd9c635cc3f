"""Causal attention over full sequences with a bias by distance that is made in registers.

Tiles after the diagonal and beyond a head's reach are never visited. Of the others those that lie
wholly beyond the table and before the diagonal are computed without masks and without the table,
and are asked for ahead; the few others are not, or the table would be staged with them.
Online softmax in float32 and base 2, as in FlashAttention (Dao 2023, arXiv 2307.08691).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.distance_bias import (
    LOG2E,
    BiasForm,
    HeadNumbers,
    _base,
    _logarithm,
)
from attnbench.kernels.splits import LOWEST, _soften


@dataclass(frozen=True)
class FullLaunch:
    """Tiles and warps of a kernel over full sequences: BLOCK_M queries, BLOCK_N keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def forward_launch(head_dim: int, item_bytes: int) -> FullLaunch:
    """What fits in 99 KiB of shared memory; longer rows take smaller tiles."""
    if head_dim * item_bytes <= 128:
        return FullLaunch(128, 64, 8, 3)
    if head_dim * item_bytes <= 256:
        return FullLaunch(64, 64, 4, 2)
    return FullLaunch(32, 32, 4, 2)


@triton.jit
def _tile_bias(
    queries,
    keys,
    table_ptr,
    slope,
    curvature,
    reach,
    growth,
    exponent,
    constant,
    KIND: tl.constexpr,
    CURVED: tl.constexpr,
    BOUNDED: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
    NEAR: tl.constexpr,
):
    """The bias of one head between positions [M] and [N], in units of slope and curvature: float32
    [M,N], -inf where there is no attention. Unless NEAR, all keys are before all queries."""
    distance = queries[:, None] - keys[None, :]
    known = tl.maximum(distance, 0) if NEAR else distance
    bias = tl.zeros(distance.shape, tl.float32)
    if KIND > 0:
        base = _base(known, table_ptr, growth, exponent, constant, KIND, SHIFT, LAST, NEAR)
        bias -= slope * base
    if CURVED:
        bias += curvature * _logarithm(known, SHIFT)
    if NEAR:
        bias = tl.where(distance >= 0, bias, float("-inf"))
    if BOUNDED:
        bias = tl.where(distance < reach, bias, float("-inf"))
    return bias


@triton.jit
def _attend_tiles(
    acc,
    highest,
    total,
    q,
    queries,
    k_ptr,
    v_ptr,
    k_row,
    v_row,
    table_ptr,
    slope,
    curvature,
    gain,
    reach,
    growth,
    exponent,
    constant,
    length,
    first,
    end,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KIND: tl.constexpr,
    CURVED: tl.constexpr,
    BOUNDED: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
    NEAR: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Key tiles `first` up to `end` for one tile of queries."""
    dims = tl.arange(0, HEAD_DIM)
    for tile in tl.range(first, end, num_stages=STAGES):
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k_place = k_ptr + keys[:, None].to(tl.int64) * k_row + dims[None, :]
        v_place = v_ptr + keys[:, None].to(tl.int64) * v_row + dims[None, :]
        if NEAR:
            there = (keys < length)[:, None]
            k = tl.load(k_place, mask=there, other=0.0)
            v = tl.load(v_place, mask=there, other=0.0)
        else:
            k = tl.load(k_place)
            v = tl.load(v_place)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * gain
        scores += _tile_bias(
            queries,
            keys,
            table_ptr,
            slope,
            curvature,
            reach,
            growth,
            exponent,
            constant,
            KIND,
            CURVED,
            BOUNDED,
            SHIFT,
            LAST,
            NEAR,
        )
        weights, shrink, highest, total = _soften(scores, highest, total)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, highest, total


@triton.jit
def _key_tiles(
    start,
    reach,
    length,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BOUNDED: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
):
    """Tiles of keys that queries from `start` on attend to: first, end of the far ones, end."""
    first = start * 0
    if BOUNDED:
        first = tl.maximum(start + 1 - reach, 0) // BLOCK_N
    end = tl.cdiv(tl.minimum(start + BLOCK_M, length), BLOCK_N)
    far_end = tl.maximum((start - SHIFT - LAST) // BLOCK_N, first)
    far_end = tl.where(start > SHIFT + LAST, far_end, first)
    return first, tl.minimum(far_end, end), end


@triton.jit
def distance_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    slope_ptr,
    curvature_ptr,
    gain_ptr,
    reach_ptr,
    table_ptr,
    out_ptr,
    lse_ptr,
    scale_log2,
    growth,
    exponent,
    constant,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    out_batch,
    out_head,
    out_row,
    length,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KIND: tl.constexpr,
    CURVED: tl.constexpr,
    BOUNDED: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of queries, batch * heads); the longest rows of tiles are started first."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    pair = tl.program_id(1)
    head = pair % HEADS
    batch = (pair // HEADS).to(tl.int64)
    wide = head.to(tl.int64)
    start = tile * BLOCK_M
    queries = start + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM)
    there = (queries < length)[:, None]
    q_ptr += batch * q_batch + wide * q_head
    k_ptr += batch * k_batch + (wide // GROUP) * k_head
    v_ptr += batch * v_batch + (wide // GROUP) * v_head
    out_ptr += batch * out_batch + wide * out_head
    place = queries[:, None].to(tl.int64)
    q = tl.load(q_ptr + place * q_row + dims[None, :], mask=there, other=0.0)
    slope = tl.load(slope_ptr + head) * LOG2E
    curvature = tl.load(curvature_ptr + head) * LOG2E
    gain = tl.load(gain_ptr + head) * scale_log2
    reach = tl.load(reach_ptr + head)
    highest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    first, far_end, end = _key_tiles(start, reach, length, BLOCK_M, BLOCK_N, BOUNDED, SHIFT, LAST)
    for near in tl.static_range(2):
        acc, highest, total = _attend_tiles(
            acc,
            highest,
            total,
            q,
            queries,
            k_ptr,
            v_ptr,
            k_row,
            v_row,
            table_ptr,
            slope,
            curvature,
            gain,
            reach,
            growth,
            exponent,
            constant,
            length,
            far_end if near else first,
            end if near else far_end,
            HEAD_DIM,
            BLOCK_N,
            KIND,
            CURVED,
            BOUNDED,
            SHIFT,
            LAST,
            near == 1,
            1 if near else STAGES,
            PRECISION,
        )
    total = tl.where(queries < length, total, 1.0)  # rows past the end may have seen no key
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + place * out_row + dims[None, :], out, mask=there)
    lse = highest + tl.log2(total)
    tl.store(lse_ptr + pair.to(tl.int64) * length + queries, lse, mask=queries < length)


def distance_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    form: BiasForm,
    numbers: HeadNumbers,
    table: Tensor,
    scale: float,
    launch: FullLaunch | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B,H,L,D], k and v [B,Hkv,L,D] of one dtype, last dimension contiguous.

    Returns the output, laid out as q, and the base-2 logarithm of each row's sum of weights:
    float32 [B,H,L].
    """
    batch, heads, length, head_dim = q.shape
    chosen = launch or forward_launch(head_dim, q.element_size())
    out = torch.empty_like(q)
    lse = torch.empty((batch, heads, length), dtype=torch.float32, device=q.device)
    distance_forward_kernel[(triton.cdiv(length, chosen.block_m), batch * heads)](
        q,
        k,
        v,
        *numbers.tensors(),
        table,
        out,
        lse,
        scale * math.log2(math.e),
        *form.tail(),
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:3],
        length,
        HEADS=heads,
        GROUP=heads // k.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        **form.compiled(),
        STAGES=chosen.num_stages,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=chosen.num_warps,
    )
    return out, lse
