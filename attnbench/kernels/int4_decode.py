"""Split-KV decode over a four-bit cache, dequantised in registers so that little more than a
quarter of a 16-bit cache's bytes is read.

A row is HALF = D / 2 bytes, the first half of its channels in the low bits, so that a tile is two
tiles of codes that are multiplied apart. Codes are whole numbers from 0 to 15 and stay so: a key
channel's scale is folded into the query, a token's scale into its scores or weights, and zeros come
to one number a query head for each group, or for each token. What is multiplied becomes WIDE
(float16 for 16-bit inputs), of queries and weights that were divided by their largest factor first,
so that it neither overflows nor underflows.

The last split attends to the residual and to the newest row as they are. Where the newest row fills
a group, that program makes codes of it, which no step reads before the next one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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

LARGEST_CODE = tl.constexpr(15.0)
LARGEST_SCALE = tl.constexpr(65504.0)  # of float16


@dataclass(frozen=True)
class Int4Rows:
    """Keys or values as codes: `pairs` uint8 [B,H,G,group,D/2]; `scale` and `zero` float16
    [B,H,G,1,D] by channel or [B,H,G,group,1] by token; `residual` [B,H,group,D]."""

    pairs: Tensor
    scale: Tensor
    zero: Tensor
    residual: Tensor


@triton.jit
def _units(rows):
    """Rows [M,N] over their largest magnitude, and that [M]; 1 for rows of zeros."""
    largest = tl.max(tl.abs(rows), 1)
    largest = tl.where(largest > 0.0, largest, 1.0)
    return rows / largest[:, None], largest


@triton.jit
def _two_dots(low, high, k_low, k_high, PRECISION: tl.constexpr):
    """Query halves [M,HALF] times key halves [N,HALF], transposed: [M,N]."""
    scores = tl.dot(low, tl.trans(k_low), input_precision=PRECISION)
    return tl.dot(high, tl.trans(k_high), scores, input_precision=PRECISION)


@triton.jit
def _products(low, high, pairs, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """Halves [M,HALF] in float32 times codes [N,HALF] that share bytes, transposed: [M,N]."""
    largest = tl.maximum(tl.max(tl.abs(low), 1), tl.max(tl.abs(high), 1))
    largest = tl.where(largest > 0.0, largest, 1.0)
    low = (low / largest[:, None]).to(WIDE)
    high = (high / largest[:, None]).to(WIDE)
    found = _two_dots(low, high, (pairs & 15).to(WIDE), (pairs >> 4).to(WIDE), PRECISION)
    return found * largest[:, None]


@triton.jit
def _channel_scores(
    q_low,
    q_high,
    pairs,
    scale_at,
    zero_at,
    HALF: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dot products [M,N] of q_low and q_high, float32 [M,HALF], with codes of one group, whose
    scales and zeros lie at `scale_at` and `zero_at` [HALF] for the lower channels."""
    low = q_low * tl.load(scale_at).to(tl.float32)[None, :]
    high = q_high * tl.load(scale_at + HALF).to(tl.float32)[None, :]
    offset = tl.sum(q_low * tl.load(zero_at).to(tl.float32)[None, :], 1)
    offset += tl.sum(q_high * tl.load(zero_at + HALF).to(tl.float32)[None, :], 1)
    return _products(low, high, pairs, WIDE, PRECISION) + offset[:, None]


@triton.jit
def _token_scores(
    q_low, q_high, pairs, scale_at, zero_at, keep, WIDE: tl.constexpr, PRECISION: tl.constexpr
):
    """The same with codes whose scales and zeros lie at `scale_at` and `zero_at` [N]."""
    scale = tl.load(scale_at, mask=keep, other=0.0).to(tl.float32)
    zero = tl.load(zero_at, mask=keep, other=0.0).to(tl.float32)
    summed = tl.sum(q_low, 1) + tl.sum(q_high, 1)
    products = _products(q_low, q_high, pairs, WIDE, PRECISION)
    return products * scale[None, :] + summed[:, None] * zero[None, :]


@triton.jit
def _codes(values, scale, zero):
    """Codes of float32 values, halves upwards, saturating; scale and zero as float16 holds them."""
    steps = tl.floor(tl.div_rn(values - zero, scale) + 0.5)
    return tl.minimum(tl.maximum(steps, 0.0), LARGEST_CODE)


@triton.jit
def _scale_of(least, most):
    """Scale and zero in float16, from the least and the largest of what shares them."""
    zero = tl.minimum(tl.maximum(least, -LARGEST_SCALE), LARGEST_SCALE).to(tl.float16)
    step = tl.div_rn(most - zero.to(tl.float32), LARGEST_CODE)
    scale = tl.minimum(tl.maximum(step, 0.0), LARGEST_SCALE).to(tl.float16)
    return tl.where(scale > 0.0, scale, 1.0).to(tl.float16), zero


@triton.jit
def _filled(residual_ptr, newest_low, newest_high, row, rows, place, columns, HALF: tl.constexpr):
    """Rows from `row` on of a group whose last is the newest one, which lies in registers: two
    float32 [N,HALF], and which rows there are."""
    here = row + rows
    keep = (here < place)[:, None]
    at = residual_ptr + here[:, None] * (2 * HALF) + columns[None, :]
    low = tl.load(at, mask=keep, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=keep, other=0.0).to(tl.float32)
    is_newest = (here == place)[:, None]
    low = tl.where(is_newest, newest_low[None, :], low)
    high = tl.where(is_newest, newest_high[None, :], high)
    return low, high, here <= place


@triton.jit
def _flush(
    pairs_ptr,
    scale_ptr,
    zero_ptr,
    residual_ptr,
    newest_low,
    newest_high,
    group,
    place,
    GROUP_TOKENS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
):
    """Make codes of a full residual, as group `group`; its last row lies in registers."""
    rows = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, HALF)
    pairs_ptr += group * GROUP_TOKENS * HALF
    if BY_CHANNEL:
        scale_ptr += group * 2 * HALF
        zero_ptr += group * 2 * HALF
        least_low, least_high = newest_low, newest_high
        most_low, most_high = newest_low, newest_high
        for row in tl.range(0, GROUP_TOKENS, BLOCK_N, num_stages=1):
            low, high, there = _filled(
                residual_ptr, newest_low, newest_high, row, rows, place, columns, HALF
            )
            least_low = tl.minimum(
                least_low, tl.min(tl.where(there[:, None], low, float("inf")), 0)
            )
            least_high = tl.minimum(
                least_high, tl.min(tl.where(there[:, None], high, float("inf")), 0)
            )
            most_low = tl.maximum(most_low, tl.max(tl.where(there[:, None], low, float("-inf")), 0))
            most_high = tl.maximum(
                most_high, tl.max(tl.where(there[:, None], high, float("-inf")), 0)
            )
        scale_low, zero_low = _scale_of(least_low, most_low)
        scale_high, zero_high = _scale_of(least_high, most_high)
        tl.store(scale_ptr + columns, scale_low)
        tl.store(scale_ptr + HALF + columns, scale_high)
        tl.store(zero_ptr + columns, zero_low)
        tl.store(zero_ptr + HALF + columns, zero_high)
        for row in tl.range(0, GROUP_TOKENS, BLOCK_N, num_stages=1):
            low, high, there = _filled(
                residual_ptr, newest_low, newest_high, row, rows, place, columns, HALF
            )
            low = _codes(low, scale_low.to(tl.float32)[None, :], zero_low.to(tl.float32)[None, :])
            high = _codes(
                high, scale_high.to(tl.float32)[None, :], zero_high.to(tl.float32)[None, :]
            )
            both = low.to(tl.uint8) | (high.to(tl.uint8) << 4)
            at = (row + rows)[:, None] * HALF + columns[None, :]
            tl.store(pairs_ptr + at, both, mask=there[:, None])
    else:
        scale_ptr += group * GROUP_TOKENS
        zero_ptr += group * GROUP_TOKENS
        for row in tl.range(0, GROUP_TOKENS, BLOCK_N, num_stages=1):
            low, high, there = _filled(
                residual_ptr, newest_low, newest_high, row, rows, place, columns, HALF
            )
            least = tl.minimum(tl.min(low, 1), tl.min(high, 1))
            most = tl.maximum(tl.max(low, 1), tl.max(high, 1))
            scale, zero = _scale_of(least, most)
            tl.store(scale_ptr + row + rows, scale, mask=there)
            tl.store(zero_ptr + row + rows, zero, mask=there)
            low = _codes(low, scale.to(tl.float32)[:, None], zero.to(tl.float32)[:, None])
            high = _codes(high, scale.to(tl.float32)[:, None], zero.to(tl.float32)[:, None])
            both = low.to(tl.uint8) | (high.to(tl.uint8) << 4)
            at = (row + rows)[:, None] * HALF + columns[None, :]
            tl.store(pairs_ptr + at, both, mask=there[:, None])


@triton.jit
def int4_decode_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_pairs_ptr,
    k_scale_ptr,
    k_zero_ptr,
    k_residual_ptr,
    v_pairs_ptr,
    v_scale_ptr,
    v_zero_ptr,
    v_residual_ptr,
    length_ptr,
    out_ptr,
    partial_ptr,
    highest_ptr,
    total_ptr,
    finished_ptr,
    scale_log2,
    groups,
    v_rows,
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
    HALF: tl.constexpr,
    GROUP_TOKENS: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    EXACT_VALUES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Grid (SPLITS, batch * KV heads); codes, scales and residuals are contiguous. With
    EXACT_VALUES `v_residual_ptr` is the exact cache [B,Hkv,v_rows,D], else v_rows is the group."""
    split = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    cached = tl.load(length_ptr)
    coded = cached // GROUP_TOKENS * GROUP_TOKENS
    place = cached - coded
    heads = tl.arange(0, ROWS)
    columns = tl.arange(0, HALF)
    rows = tl.arange(0, BLOCK_N)
    token = pair.to(tl.int64) * groups * GROUP_TOKENS
    k_pairs_ptr += token * HALF
    if BY_CHANNEL:
        k_scale_ptr += pair.to(tl.int64) * groups * HEAD_DIM
        k_zero_ptr += pair.to(tl.int64) * groups * HEAD_DIM
    else:
        k_scale_ptr += token
        k_zero_ptr += token
    k_residual_ptr += pair.to(tl.int64) * GROUP_TOKENS * HEAD_DIM
    v_residual_ptr += pair.to(tl.int64) * v_rows * HEAD_DIM
    if not EXACT_VALUES:
        v_pairs_ptr += token * HALF
        v_scale_ptr += token
        v_zero_ptr += token

    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    q_at = q_ptr + heads[:, None] * q_head + columns[None, :]
    real = (heads < GROUP)[:, None]
    q_low = tl.load(q_at, mask=real, other=0.0)
    q_high = tl.load(q_at + HALF, mask=real, other=0.0)
    wide_low = q_low.to(tl.float32)
    wide_high = q_high.to(tl.float32)

    # The newest row and the residual are the last split's.
    newest = split == SPLITS - 1
    k_new_ptr += batch * k_new_batch + kv_head * k_new_head
    v_new_ptr += batch * v_new_batch + kv_head * v_new_head
    k_new_low = tl.load(k_new_ptr + columns)
    k_new_high = tl.load(k_new_ptr + HALF + columns)
    v_new_low = tl.load(v_new_ptr + columns)
    v_new_high = tl.load(v_new_ptr + HALF + columns)
    if newest:
        at = k_residual_ptr + place * HEAD_DIM + columns
        tl.store(at, k_new_low)
        tl.store(at + HALF, k_new_high)
        v_place = place
        if EXACT_VALUES:
            v_place = cached
        at = v_residual_ptr + v_place.to(tl.int64) * HEAD_DIM + columns
        tl.store(at, v_new_low)
        tl.store(at + HALF, v_new_high)
    score = tl.sum(wide_low * k_new_low.to(tl.float32)[None, :], 1)
    score += tl.sum(wide_high * k_new_high.to(tl.float32)[None, :], 1)
    highest = tl.where(newest, score * scale_log2, LOWEST)
    total = tl.where(newest, tl.full([ROWS], 1.0, tl.float32), 0.0)
    acc_low = tl.zeros([ROWS, HALF], tl.float32)
    acc_high = tl.zeros([ROWS, HALF], tl.float32)
    acc_low += tl.where(newest, v_new_low.to(tl.float32), 0.0)[None, :]
    acc_high += tl.where(newest, v_new_high.to(tl.float32), 0.0)[None, :]
    zeros = tl.zeros([ROWS], tl.float32)  # what the values' zeros add to every channel

    _, first, end, _ = _span(coded, split, SPLITS, BLOCK_N, 0)
    pairs_at = rows[:, None] * HALF + columns[None, :]
    exact_at = rows[:, None] * HEAD_DIM + columns[None, :]
    for tile in range(first, end):
        row = tile * BLOCK_N
        keep = row + rows < coded
        start = row.to(tl.int64)
        k_pairs = tl.load(
            k_pairs_ptr + start * HALF + pairs_at,
            mask=keep[:, None],
            other=0,
            eviction_policy="evict_first",
        )
        if BY_CHANNEL:
            at = start // GROUP_TOKENS * HEAD_DIM + columns
            scores = _channel_scores(
                wide_low,
                wide_high,
                k_pairs,
                k_scale_ptr + at,
                k_zero_ptr + at,
                HALF,
                WIDE,
                PRECISION,
            )
        else:
            at = start + rows
            scores = _token_scores(
                wide_low,
                wide_high,
                k_pairs,
                k_scale_ptr + at,
                k_zero_ptr + at,
                keep,
                WIDE,
                PRECISION,
            )
        scores = tl.where(keep[None, :], scores * scale_log2, float("-inf"))
        weights, shrink, highest, total = _soften(scores, highest, total)
        acc_low *= shrink[:, None]
        acc_high *= shrink[:, None]
        zeros *= shrink
        if EXACT_VALUES:
            v_at = v_residual_ptr + start * HEAD_DIM + exact_at
            v_low = tl.load(v_at, mask=keep[:, None], other=0.0, eviction_policy="evict_first")
            v_high = tl.load(
                v_at + HALF, mask=keep[:, None], other=0.0, eviction_policy="evict_first"
            )
            own = weights.to(v_low.dtype)
            acc_low = tl.dot(own, v_low, acc_low, input_precision=PRECISION)
            acc_high = tl.dot(own, v_high, acc_high, input_precision=PRECISION)
        else:
            v_pairs = tl.load(
                v_pairs_ptr + start * HALF + pairs_at,
                mask=keep[:, None],
                other=0,
                eviction_policy="evict_first",
            )
            v_scale = tl.load(v_scale_ptr + start + rows, mask=keep, other=0.0).to(tl.float32)
            v_zero = tl.load(v_zero_ptr + start + rows, mask=keep, other=0.0).to(tl.float32)
            zeros += tl.sum(weights * v_zero[None, :], 1)
            own, unit = _units(weights * v_scale[None, :])
            own = own.to(WIDE)
            low = tl.dot(own, (v_pairs & 15).to(WIDE), input_precision=PRECISION)
            high = tl.dot(own, (v_pairs >> 4).to(WIDE), input_precision=PRECISION)
            acc_low += low * unit[:, None]
            acc_high += high * unit[:, None]

    if newest:
        for row in tl.range(0, place, BLOCK_N, num_stages=1):  # exact tiles are large
            keep = row + rows < place
            start = row
            v_start = row
            if EXACT_VALUES:
                v_start = coded + row
            k_at = k_residual_ptr + start * HEAD_DIM + exact_at
            k_low = tl.load(k_at, mask=keep[:, None], other=0.0)
            k_high = tl.load(k_at + HALF, mask=keep[:, None], other=0.0)
            v_at = v_residual_ptr + v_start.to(tl.int64) * HEAD_DIM + exact_at
            v_low = tl.load(v_at, mask=keep[:, None], other=0.0)
            v_high = tl.load(v_at + HALF, mask=keep[:, None], other=0.0)
            scores = _two_dots(q_low, q_high, k_low, k_high, PRECISION) * scale_log2
            scores = tl.where(keep[None, :], scores, float("-inf"))
            weights, shrink, highest, total = _soften(scores, highest, total)
            zeros *= shrink
            own = weights.to(v_low.dtype)
            acc_low = tl.dot(own, v_low, acc_low * shrink[:, None], input_precision=PRECISION)
            acc_high = tl.dot(own, v_high, acc_high * shrink[:, None], input_precision=PRECISION)
        if place == GROUP_TOKENS - 1:
            _flush(
                k_pairs_ptr,
                k_scale_ptr,
                k_zero_ptr,
                k_residual_ptr,
                k_new_low.to(tl.float32),
                k_new_high.to(tl.float32),
                (cached // GROUP_TOKENS).to(tl.int64),
                place,
                GROUP_TOKENS,
                HALF,
                BLOCK_N,
                BY_CHANNEL,
            )
            if not EXACT_VALUES:
                _flush(
                    v_pairs_ptr,
                    v_scale_ptr,
                    v_zero_ptr,
                    v_residual_ptr,
                    v_new_low.to(tl.float32),
                    v_new_high.to(tl.float32),
                    (cached // GROUP_TOKENS).to(tl.int64),
                    place,
                    GROUP_TOKENS,
                    HALF,
                    BLOCK_N,
                    False,
                )

    both = tl.join(acc_low + zeros[:, None], acc_high + zeros[:, None])
    acc = tl.reshape(tl.permute(both, (0, 2, 1)), (ROWS, HEAD_DIM))
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


def int4_decode(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    keys: Int4Rows,
    values: Int4Rows | Tensor,
    length: Tensor,
    workspace: SplitWorkspace,
    *,
    scale: float,
    block_n: int,
    num_warps: int,
    num_stages: int,
) -> Tensor:
    """Write the newest row, attend to `length + 1` rows, and make codes of a group that is full.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D]; `values` as codes by token, or the exact cache
    [B,Hkv,capacity,D]. A group whose keys share scales by channel holds whole tiles of `block_n`
    tokens. Returns a fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    kv_heads, groups, group_tokens = keys.pairs.shape[1:4]
    group = heads // kv_heads
    exact = isinstance(values, Tensor)
    held = values if isinstance(values, Int4Rows) else replace(keys, residual=values)
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    single = q.dtype == torch.float32
    int4_decode_kernel[(workspace.splits, batch * kv_heads)](
        q,
        k_new,
        v_new,
        keys.pairs,
        keys.scale,
        keys.zero,
        keys.residual,
        held.pairs,
        held.scale,
        held.zero,
        held.residual,
        length,
        out,
        *workspace.tensors(),
        scale * math.log2(math.e),
        groups,
        held.residual.shape[2],
        *q.stride()[:2],
        *k_new.stride()[:2],
        *v_new.stride()[:2],
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        HALF=head_dim // 2,
        GROUP_TOKENS=group_tokens,
        BY_CHANNEL=keys.scale.shape[3] == 1,
        EXACT_VALUES=exact,
        BLOCK_N=block_n,
        SPLITS=workspace.splits,
        WIDE=tl.float32 if single else tl.float16,
        PRECISION="ieee" if single else "tf32",
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out
