"""Split-KV decode over an exact cache: grouped-query native, and appends in the same launch.

One program serves a whole KV group, so that every cached row is read once. The newest row goes from
registers into the softmax and into the cache; no program reads it back. With SINKS and WINDOW the
program attends to the first rows and the last ones only (Xiao et al. 2023, arXiv 2309.17453).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.splits import (
    LOWEST,
    SplitWorkspace,
    _merge_if_last,
    _publish,
    _soften,
    _span,
    merge_block,
)

# The least rows that a tensor core's multiply takes; a smaller group is padded.
LEAST_ROWS = 16


@triton.jit
def split_decode_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    length_ptr,
    out_ptr,
    partial_ptr,
    highest_ptr,
    total_ptr,
    finished_ptr,
    scale_log2,
    q_batch,
    q_head,
    k_new_batch,
    k_new_head,
    v_new_batch,
    v_new_head,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Grid (SPLITS, batch * KV heads). Strides in elements; the last dimension is contiguous."""
    split = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    cached = tl.load(length_ptr)
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    rows = tl.arange(0, BLOCK_N)
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    q = tl.load(
        q_ptr + heads[:, None] * q_head + dims[None, :], mask=(heads < GROUP)[:, None], other=0.0
    )

    newest = split == SPLITS - 1
    k_newest = tl.load(k_new_ptr + batch * k_new_batch + kv_head * k_new_head + dims)
    v_newest = tl.load(v_new_ptr + batch * v_new_batch + kv_head * v_new_head + dims)
    if newest:
        tl.store(k_ptr + cached.to(tl.int64) * k_row + dims, k_newest)
        tl.store(v_ptr + cached.to(tl.int64) * v_row + dims, v_newest)
    score = tl.sum(q.to(tl.float32) * k_newest.to(tl.float32)[None, :], 1) * scale_log2
    highest = tl.where(newest, score, LOWEST)
    total = tl.where(newest, tl.full([ROWS], 1.0, tl.float32), 0.0)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    acc += tl.where(newest, v_newest.to(tl.float32), 0.0)[None, :]

    start, first, end, full_end = _span(cached, split, SPLITS, BLOCK_N, WINDOW)
    k_tile = k_ptr + rows[:, None] * k_row + dims[None, :]
    v_tile = v_ptr + rows[:, None] * v_row + dims[None, :]
    for tile in range(first, full_end):
        row = (start + tile * BLOCK_N).to(tl.int64)
        k = tl.load(k_tile + row * k_row, eviction_policy="evict_first")
        v = tl.load(v_tile + row * v_row, eviction_policy="evict_first")
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        weights, shrink, highest, total = _soften(scores, highest, total)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)

    if end > full_end:  # the ragged tile at the end of the cache, in the last split alone
        row = (start + full_end * BLOCK_N).to(tl.int64)
        keep = row + rows < cached
        k = tl.load(k_tile + row * k_row, mask=keep[:, None], other=0.0)
        v = tl.load(v_tile + row * v_row, mask=keep[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        scores = tl.where(keep[None, :], scores, float("-inf"))
        weights, shrink, highest, total = _soften(scores, highest, total)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)

    if SINKS > 0:
        # Sinks inside the window are already attended; the first split alone takes the others.
        sinks = tl.where(split == 0, tl.minimum(start, SINKS), 0)
        for row in range(0, sinks, BLOCK_N):
            keep = row + rows < sinks
            k = tl.load(k_tile + row * k_row, mask=keep[:, None], other=0.0)
            v = tl.load(v_tile + row * v_row, mask=keep[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
            scores = tl.where(keep[None, :], scores, float("-inf"))
            weights, shrink, highest, total = _soften(scores, highest, total)
            acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)

    _publish(
        acc,
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


def split_decode(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    v: Tensor,
    length: Tensor,
    workspace: SplitWorkspace,
    *,
    scale: float,
    block_n: int,
    num_warps: int,
    num_stages: int,
    sinks: int = 0,
    window: int = 0,
) -> Tensor:
    """Write row `length` of the caches and attend to `length + 1` rows.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D], k and v [B,Hkv,capacity,D] of one dtype; length int32
    [1] on the device. `window` 0 attends to all rows. Returns a fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    split_decode_kernel[(workspace.splits, batch * kv_heads)](
        q,
        k_new,
        v_new,
        k,
        v,
        length,
        out,
        *workspace.tensors(),
        scale * math.log2(math.e),
        *q.stride()[:2],
        *k_new.stride()[:2],
        *v_new.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK_N=block_n,
        SPLITS=workspace.splits,
        SINKS=sinks,
        WINDOW=window,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out
