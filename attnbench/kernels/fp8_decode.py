"""Split-KV decode over an FP8 cache (e4m3), converted in registers so that half the bytes are read.

One scale serves all keys of a sequence and KV head, and one all its values, so that the former goes
into the logits and the latter into the output. Every e4m3 number is one of float16 and of bfloat16
too, so that widening rounds nothing. Needs a GPU whose instructions convert e4m3 (8.9 and later).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.split_decode import LEAST_ROWS
from attnbench.kernels.splits import (
    LOWEST,
    SplitWorkspace,
    _merge_if_last,
    _publish,
    _soften,
    _span,
    merge_block,
)

LARGEST_E4M3 = tl.constexpr(448.0)
LEAST_NORMAL = tl.constexpr(2.0**-6)
# Added and taken away again it leaves multiples of 2^-9, the step below the least normal number.
ROUNDING = tl.constexpr(1.5 * 2.0**14)


@triton.jit
def _nearest(values, scale):
    """Float32 values over a scale as the nearest e4m3 numbers, of two as near the even one, still
    in float32; saturating. The conversion that follows has nothing left to round."""
    steps = tl.div_rn(values, scale)
    steps = tl.minimum(tl.maximum(steps, -LARGEST_E4M3), LARGEST_E4M3)
    bits = steps.to(tl.uint32, bitcast=True)
    # Three bits of the mantissa stay, of 23.
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000
    normal = bits.to(tl.float32, bitcast=True)
    small = (steps + ROUNDING) - ROUNDING
    return tl.where(tl.abs(steps) < LEAST_NORMAL, small, normal)


@triton.jit
def fp8_decode_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    length_ptr,
    out_ptr,
    partial_ptr,
    highest_ptr,
    total_ptr,
    finished_ptr,
    scale_log2,
    capacity,
    q_batch,
    q_head,
    k_new_batch,
    k_new_head,
    v_new_batch,
    v_new_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Grid (SPLITS, batch * KV heads); codes are contiguous [B,Hkv,capacity,D]."""
    split = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    cached = tl.load(length_ptr)
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    rows = tl.arange(0, BLOCK_N)
    k_ptr += pair.to(tl.int64) * capacity * HEAD_DIM
    v_ptr += pair.to(tl.int64) * capacity * HEAD_DIM
    k_scale = tl.load(k_scale_ptr + pair)
    v_scale = tl.load(v_scale_ptr + pair)
    unit = k_scale * scale_log2
    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    q = tl.load(
        q_ptr + heads[:, None] * q_head + dims[None, :], mask=(heads < GROUP)[:, None], other=0.0
    )

    newest = split == SPLITS - 1
    k_newest = tl.load(k_new_ptr + batch * k_new_batch + kv_head * k_new_head + dims)
    v_newest = tl.load(v_new_ptr + batch * v_new_batch + kv_head * v_new_head + dims)
    k_newest = _nearest(k_newest.to(tl.float32), k_scale)
    v_newest = _nearest(v_newest.to(tl.float32), v_scale)
    if newest:
        row = cached.to(tl.int64) * HEAD_DIM
        tl.store(k_ptr + row + dims, k_newest.to(k_ptr.dtype.element_ty))
        tl.store(v_ptr + row + dims, v_newest.to(v_ptr.dtype.element_ty))
    score = tl.sum(q.to(tl.float32) * k_newest[None, :], 1) * unit
    highest = tl.where(newest, score, LOWEST)
    total = tl.where(newest, tl.full([ROWS], 1.0, tl.float32), 0.0)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    acc += tl.where(newest, v_newest, 0.0)[None, :]

    start, first, end, full_end = _span(cached, split, SPLITS, BLOCK_N, 0)
    k_tile = k_ptr + rows[:, None] * HEAD_DIM + dims[None, :]
    v_tile = v_ptr + rows[:, None] * HEAD_DIM + dims[None, :]
    for tile in range(first, full_end):
        row = (start + tile * BLOCK_N).to(tl.int64) * HEAD_DIM
        k = tl.load(k_tile + row, eviction_policy="evict_first").to(q.dtype)
        v = tl.load(v_tile + row, eviction_policy="evict_first").to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * unit
        weights, shrink, highest, total = _soften(scores, highest, total)
        acc = tl.dot(weights.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)

    if end > full_end:  # the ragged tile at the end of the cache, in the last split alone
        row = (start + full_end * BLOCK_N).to(tl.int64)
        keep = row + rows < cached
        k = tl.load(k_tile + row * HEAD_DIM, mask=keep[:, None], other=0.0).to(q.dtype)
        v = tl.load(v_tile + row * HEAD_DIM, mask=keep[:, None], other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * unit
        scores = tl.where(keep[None, :], scores, float("-inf"))
        weights, shrink, highest, total = _soften(scores, highest, total)
        acc = tl.dot(weights.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)

    _publish(
        acc * v_scale,
        highest,
        total,
        partial_ptr,
        highest_ptr,
        total_ptr,
        pair,
        split,
        SPLITS,
        GROUP,
        ROWS,
        HEAD_DIM,
    )
    _merge_if_last(
        partial_ptr,
        highest_ptr,
        total_ptr,
        finished_ptr,
        out_ptr,
        pair,
        SPLITS,
        GROUP,
        HEAD_DIM,
        COLUMNS,
        MERGE,
    )


def fp8_decode(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    codes: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    length: Tensor,
    workspace: SplitWorkspace,
    *,
    scale: float,
    block_n: int,
    num_warps: int,
    num_stages: int,
) -> Tensor:
    """Round and write row `length`, and attend to `length + 1` rows.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D]; codes of keys and of values, e4m3
    [B,Hkv,capacity,D]; what a code of 1 is worth there, float32 [B,Hkv]. Returns a fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    kv_heads, capacity = codes[0].shape[1:3]
    group = heads // kv_heads
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    fp8_decode_kernel[(workspace.splits, batch * kv_heads)](
        q,
        k_new,
        v_new,
        *codes,
        *scales,
        length,
        out,
        *workspace.tensors(),
        scale * math.log2(math.e),
        capacity,
        *q.stride()[:2],
        *k_new.stride()[:2],
        *v_new.stride()[:2],
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK_N=block_n,
        SPLITS=workspace.splits,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out
