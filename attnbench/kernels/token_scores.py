"""How well each cached token points along the query: scores of all tokens, split over the GPU.

The score of a token is the product of its key with the query of length one. The division by the
query's length comes after the sum: products of 16-bit elements are exact on a tensor core, a query
of length one is no 16-bit number. One program serves a whole KV group, so that every key is read
once, and the program of the newest token writes its row into the cache.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.split_decode import LEAST_ROWS
from attnbench.kernels.splits import LOWEST, _soften, _span
from attnbench.kernels.topk_select import row_width

SHORTEST = tl.constexpr(1e-12)  # a query is divided by its length, or by this if that is less
GROUP_BLOCK = 1024  # tokens of a program that adds up a group's weights


@triton.jit
def _lengths(q):
    """The length of each row of q [M,D], float32 [M]."""
    wide = q.to(tl.float32)
    return tl.maximum(tl.sqrt_rn(tl.sum(wide * wide, 1)), SHORTEST)


@triton.jit
def score_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    length_ptr,
    scores_ptr,
    highest_ptr,
    total_ptr,
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
    score_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    WEIGH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (SPLITS, batch * KV heads). WEIGH: also each split's highest logit, and its weights'
    sum."""
    split = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    cached = tl.load(length_ptr)
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    rows = tl.arange(0, BLOCK_N)
    real = heads < GROUP
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    q = tl.load(q_ptr + heads[:, None] * q_head + dims[None, :], mask=real[:, None], other=0.0)
    length = _lengths(q)
    per_length = 1.0 / length
    to_logit = length * scale_log2
    out_ptr = scores_ptr + (pair.to(tl.int64) * GROUP + heads) * score_row
    kind = scores_ptr.dtype.element_ty

    newest = split == SPLITS - 1
    k_newest = tl.load(k_new_ptr + batch * k_new_batch + kv_head * k_new_head + dims)
    v_newest = tl.load(v_new_ptr + batch * v_new_batch + kv_head * v_new_head + dims)
    score = tl.sum(q.to(tl.float32) * k_newest.to(tl.float32)[None, :], 1) * per_length
    score = score.to(kind)
    if newest:
        tl.store(k_ptr + cached.to(tl.int64) * k_row + dims, k_newest)
        tl.store(v_ptr + cached.to(tl.int64) * v_row + dims, v_newest)
        tl.store(out_ptr + cached, score, mask=real)
    highest = tl.where(newest, score.to(tl.float32) * to_logit, LOWEST)
    total = tl.where(newest, tl.full([ROWS], 1.0, tl.float32), 0.0)

    start, first, end, full_end = _span(cached, split, SPLITS, BLOCK_N, 0)
    k_tile = k_ptr + rows[:, None] * k_row + dims[None, :]
    out_tile = out_ptr[:, None] + rows[None, :]
    for tile in range(first, full_end):
        row = (start + tile * BLOCK_N).to(tl.int64)
        k = tl.load(k_tile + row * k_row)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * per_length[:, None]
        scores = scores.to(kind)
        tl.store(out_tile + row, scores, mask=real[:, None])
        if WEIGH:
            logits = scores.to(tl.float32) * to_logit[:, None]
            _, _, highest, total = _soften(logits, highest, total)

    if end > full_end:  # the ragged tile at the end of the cache, in the last split alone
        row = (start + full_end * BLOCK_N).to(tl.int64)
        keep = row + rows < cached
        k = tl.load(k_tile + row * k_row, mask=keep[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * per_length[:, None]
        scores = scores.to(kind)
        tl.store(out_tile + row, scores, mask=real[:, None] & keep[None, :])
        if WEIGH:
            logits = scores.to(tl.float32) * to_logit[:, None]
            logits = tl.where(keep[None, :], logits, float("-inf"))
            _, _, highest, total = _soften(logits, highest, total)

    if WEIGH:
        part = (pair * SPLITS + split) * GROUP + heads
        tl.store(highest_ptr + part, highest, mask=real)
        tl.store(total_ptr + part, total, mask=real)


@triton.jit
def group_score_kernel(
    q_ptr,
    scores_ptr,
    highest_ptr,
    total_ptr,
    length_ptr,
    group_ptr,
    scale_log2,
    q_batch,
    q_head,
    score_row,
    group_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid (tiles of the capacity, batch * KV heads); PARTS is SPLITS up to a power of two."""
    pair = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cached = tl.load(length_ptr)
    if tl.program_id(0) * BLOCK_N <= cached:
        real = token <= cached
        parts = tl.arange(0, PARTS)
        dims = tl.arange(0, HEAD_DIM)
        q_ptr += (pair // KV_HEADS).to(tl.int64) * q_batch
        q_ptr += (pair % KV_HEADS).to(tl.int64) * GROUP * q_head
        scores_ptr += pair.to(tl.int64) * GROUP * score_row
        weights = tl.zeros([BLOCK_N], tl.float32)
        for head in tl.static_range(GROUP):
            part = (pair * SPLITS + parts) * GROUP + head
            peak = tl.load(highest_ptr + part, mask=parts < SPLITS, other=LOWEST)
            mass = tl.load(total_ptr + part, mask=parts < SPLITS, other=0.0)
            highest = tl.max(peak, 0)
            total = tl.sum(mass * tl.exp2(peak - highest), 0)
            q = tl.load(q_ptr + head * q_head + dims)
            to_logit = tl.sum(_lengths(q[None, :]), 0) * scale_log2
            score = tl.load(scores_ptr + head * score_row + token, mask=real, other=0.0)
            weights += tl.exp2(score.to(tl.float32) * to_logit - highest) / total
        tl.store(group_ptr + pair.to(tl.int64) * group_row + token, weights, mask=real)


def score_tokens(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    v: Tensor,
    length: Tensor,
    *,
    dtype: torch.dtype,
    block_n: int,
    splits: int,
    num_warps: int,
    num_stages: int,
    shared_scale: float | None = None,
) -> Tensor:
    """Write row `length` of the caches and score `length + 1` rows.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D], k and v [B,Hkv,capacity,D] of one dtype; length int32
    [1] on the device. Returns scores [B·H, row_width(capacity)] of `dtype`; where `shared_scale` is
    the scale of the logits, float32 [B·Hkv, row_width(capacity)]: of each KV group the sum of its
    heads' softmax weights. What lies after `length + 1` is anything.
    """
    batch, heads, _, head_dim = q.shape
    kv_heads, capacity = k.shape[1:3]
    group, pairs = heads // kv_heads, batch * kv_heads
    width = row_width(capacity)
    scores = torch.empty((batch * heads, width), dtype=dtype, device=q.device)
    shared = shared_scale is not None
    parts = (pairs, splits, group) if shared else (1,)
    highest, total = (torch.empty(parts, dtype=torch.float32, device=q.device) for _ in range(2))
    scale_log2 = (shared_scale or 1.0) * math.log2(math.e)
    score_kernel[(splits, pairs)](
        q,
        k_new,
        v_new,
        k,
        v,
        length,
        scores,
        highest,
        total,
        scale_log2,
        *q.stride()[:2],
        *k_new.stride()[:2],
        *v_new.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        width,
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK_N=block_n,
        SPLITS=splits,
        WEIGH=shared,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=num_warps,
        num_stages=num_stages,
    )
    if not shared:
        return scores
    summed = torch.empty((pairs, width), dtype=torch.float32, device=q.device)
    group_score_kernel[(triton.cdiv(capacity, GROUP_BLOCK), pairs)](
        q,
        scores,
        highest,
        total,
        length,
        summed,
        scale_log2,
        *q.stride()[:2],
        width,
        width,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        SPLITS=splits,
        PARTS=triton.next_power_of_2(splits),
        BLOCK_N=GROUP_BLOCK,
        num_warps=4,
    )
    return summed
