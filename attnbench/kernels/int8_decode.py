"""Split-KV decode over an INT8 cache, dequantised in registers so that half the bytes are read.

Keys have one scale for each channel, folded into the query; values have one for each token, folded
into the weights (the axes of KIVI, Liu et al. 2024, arXiv 2402.02750, at eight bits). Key codes are
never widened: the scaled query is split into eight-bit digits (two; three for float32), which are
multiplied with them as integers. Value codes become WIDE (float16 for 16-bit inputs, which holds
each code exactly) and stand in pages of BLOCK_N tokens, transposed, so that a thread reads four
tokens in one word.
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

# Codes are symmetric: -127 to 127.
LARGEST_CODE = tl.constexpr(127.0)
# A query in digits is high * 128 + low + least / 128; its largest value becomes 127 * 128.
DIGIT = tl.constexpr(128.0)
LARGEST_QUERY = tl.constexpr(16256.0)


@triton.jit
def _codes(values, scales):
    """Nearest codes, halves upwards, saturating; float32 in, float32 out."""
    codes = tl.floor(tl.div_rn(values, scales) + 0.5)
    return tl.minimum(tl.maximum(codes, -LARGEST_CODE), LARGEST_CODE)


@triton.jit
def _digits(q):
    """Rows [M,D] of float32 as three int8 digits, and what one step of the middle one is worth.

    Two resolve 1/32512 of a row's largest value, which is finer than float16 does there.
    """
    unit = tl.max(tl.abs(q), 1)
    unit = tl.where(unit > 0.0, unit, 1.0) / LARGEST_QUERY
    steps = q / unit[:, None]
    high = tl.floor(steps / DIGIT + 0.5)
    steps -= high * DIGIT
    low = tl.floor(steps + 0.5)
    least = tl.floor((steps - low) * DIGIT + 0.5)
    return high.to(tl.int8), low.to(tl.int8), least.to(tl.int8), unit


@triton.jit
def _scores(high, low, least, k, unit, DIGITS: tl.constexpr):
    """Products of the query's digits with key codes [N,D], exact in int32, as logits [M,N]."""
    k = tl.trans(k)
    coarse = tl.dot(high, k, out_dtype=tl.int32)
    fine = tl.dot(low, k, out_dtype=tl.int32)
    scores = (coarse * 128 + fine).to(tl.float32)
    if DIGITS == 3:
        scores += tl.dot(least, k, out_dtype=tl.int32).to(tl.float32) / DIGIT
    return scores * unit[:, None]


@triton.jit
def int8_decode_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    v_unit_ptr,
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
    DIGITS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Grid (SPLITS, batch * KV heads); key codes are contiguous [B,Hkv,capacity,D], value codes
    [B,Hkv,capacity / BLOCK_N,D,BLOCK_N]."""
    split = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    cached = tl.load(length_ptr)
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    rows = tl.arange(0, BLOCK_N)
    first_row = pair.to(tl.int64) * capacity
    k_ptr += first_row * HEAD_DIM
    v_ptr += first_row * HEAD_DIM
    v_scale_ptr += first_row

    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    q = tl.load(
        q_ptr + heads[:, None] * q_head + dims[None, :], mask=(heads < GROUP)[:, None], other=0.0
    ).to(tl.float32)
    k_scale = tl.load(k_scale_ptr + pair * HEAD_DIM + dims)
    q = q * k_scale[None, :]
    high, low, least, unit = _digits(q)
    unit = unit * scale_log2
    # Values' scales relative to a typical one: float16 then neither overflows nor underflows.
    v_unit = tl.load(v_unit_ptr + pair)
    v_per_unit = 1.0 / v_unit

    newest = split == SPLITS - 1
    k_newest = tl.load(k_new_ptr + batch * k_new_batch + kv_head * k_new_head + dims)
    v_newest = tl.load(v_new_ptr + batch * v_new_batch + kv_head * v_new_head + dims)
    v_newest = v_newest.to(tl.float32)
    v_largest = tl.max(tl.abs(v_newest), 0)
    v_scale = tl.where(v_largest > 0.0, tl.div_rn(v_largest, LARGEST_CODE), 1.0)
    k_newest = _codes(k_newest.to(tl.float32), k_scale)
    v_newest = _codes(v_newest, v_scale)
    if newest:
        tl.store(k_ptr + cached.to(tl.int64) * HEAD_DIM + dims, k_newest.to(tl.int8))
        page = v_ptr + (cached // BLOCK_N).to(tl.int64) * BLOCK_N * HEAD_DIM
        tl.store(page + dims * BLOCK_N + cached % BLOCK_N, v_newest.to(tl.int8))
        tl.store(v_scale_ptr + cached, v_scale)
    score = tl.sum(q * k_newest[None, :], 1) * scale_log2
    highest = tl.where(newest, score, LOWEST)
    total = tl.where(newest, tl.full([ROWS], 1.0, tl.float32), 0.0)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    acc += tl.where(newest, v_newest * (v_scale * v_per_unit), 0.0)[None, :]

    start, first, end, full_end = _span(cached, split, SPLITS, BLOCK_N, 0)
    k_tile = k_ptr + rows[:, None] * HEAD_DIM + dims[None, :]
    v_tile = v_ptr + dims[:, None] * BLOCK_N + rows[None, :]
    v_scale_tile = v_scale_ptr + rows
    for tile in range(first, full_end):
        row = (start + tile * BLOCK_N).to(tl.int64)
        k = tl.load(k_tile + row * HEAD_DIM, eviction_policy="evict_first")
        v = tl.load(v_tile + row * HEAD_DIM, eviction_policy="evict_first").to(WIDE)
        v_scales = tl.load(v_scale_tile + row, eviction_policy="evict_first") * v_per_unit
        scores = _scores(high, low, least, k, unit, DIGITS)
        weights, shrink, highest, total = _soften(scores, highest, total)
        weights = (weights * v_scales[None, :]).to(WIDE)
        acc = tl.dot(weights, tl.trans(v), acc * shrink[:, None], input_precision=PRECISION)

    if end > full_end:  # the ragged tile at the end of the cache, in the last split alone
        row = (start + full_end * BLOCK_N).to(tl.int64)
        keep = row + rows < cached
        k = tl.load(k_tile + row * HEAD_DIM, mask=keep[:, None], other=0)
        v = tl.load(v_tile + row * HEAD_DIM, mask=keep[None, :], other=0).to(WIDE)
        v_scales = tl.load(v_scale_tile + row, mask=keep, other=0.0) * v_per_unit
        scores = _scores(high, low, least, k, unit, DIGITS)
        scores = tl.where(keep[None, :], scores, float("-inf"))
        weights, shrink, highest, total = _soften(scores, highest, total)
        weights = (weights * v_scales[None, :]).to(WIDE)
        acc = tl.dot(weights, tl.trans(v), acc * shrink[:, None], input_precision=PRECISION)

    _publish(
        acc * v_unit,
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


def int8_decode(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    codes: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor, Tensor],
    length: Tensor,
    workspace: SplitWorkspace,
    *,
    scale: float,
    num_warps: int,
    num_stages: int,
) -> Tensor:
    """Quantise and write row `length`, and attend to `length + 1` rows.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D]; codes, int8: keys [B,Hkv,capacity,D], values in pages
    [B,Hkv,P,D,capacity / P]; scales, float32: of keys [B,Hkv,D], of values [B,Hkv,capacity], and a
    typical one of values [B,Hkv]. A program takes a page at a time. Returns a fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    kv_heads, capacity = codes[0].shape[1:3]
    group = heads // kv_heads
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    single = q.dtype == torch.float32
    int8_decode_kernel[(workspace.splits, batch * kv_heads)](
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
        BLOCK_N=codes[1].shape[-1],
        SPLITS=workspace.splits,
        DIGITS=3 if single else 2,
        WIDE=tl.float32 if single else tl.float16,
        PRECISION="ieee" if single else "tf32",
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out
