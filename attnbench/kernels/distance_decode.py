"""Split-KV decode with a bias by distance that is made in registers, grouped-query native.

As `split_decode`, which has no bias: a program serves a KV group, appends the newest row and goes
through its part of the cache once, from the newest row to the oldest, so that a recurrence in the
distance can run along. Rows beyond the reach of all heads of a group are not read, nor is the table
for tiles beyond it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.distance_bias import (
    LOG2E,
    RECURRENCE,
    BiasForm,
    HeadNumbers,
    _after_table,
    _base,
    _logarithm,
    _recurred,
)
from attnbench.kernels.split_decode import LEAST_ROWS
from attnbench.kernels.splits import (
    LOWEST,
    SplitWorkspace,
    _merge_if_last,
    _publish,
    _soften,
    merge_block,
)


@triton.jit
def _recurring_base(
    distance,
    nearest,
    table_ptr,
    term,
    log,
    ratio,
    before,
    before_that,
    BLOCK_N: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
):
    """base of a tile's distances, the least of which is `nearest`: the recurrence goes on from
    `term` and stops at each distance beyond the table."""
    rest = tl.maximum(distance - SHIFT, 0)
    within = rest <= LAST
    base = tl.load(table_ptr + rest, mask=within, other=0.0)
    first = tl.maximum(nearest - SHIFT, LAST + 1)
    for n in range(first, nearest - SHIFT + BLOCK_N):
        log, ratio, before, before_that = _recurred(term, n, log, ratio, before, before_that)
        term = n
        base = tl.where(rest == n, log, base)
    return base, term, log, ratio, before, before_that


@triton.jit
def _decode_tiles(
    acc,
    highest,
    total,
    q,
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
    cached,
    start,
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
    """Tiles of rows, the last one first. Unless NEAR, all their rows are cached and beyond the
    table."""
    dims = tl.arange(0, HEAD_DIM)
    rows = tl.arange(0, BLOCK_N)
    k_tile = k_ptr + rows[:, None] * k_row + dims[None, :]
    v_tile = v_ptr + rows[:, None] * v_row + dims[None, :]
    term = cached * 0 + LAST
    log, ratio, before, before_that = 0.0, 0.0, 0.0, 0.0
    if KIND == RECURRENCE:
        log, ratio, before, before_that = _after_table(table_ptr, LAST)
    for step in tl.range(0, end - first, num_stages=STAGES):
        place = start + (end - 1 - step) * BLOCK_N
        row = place.to(tl.int64)
        distance = cached - place - rows
        if NEAR:
            there = (distance > 0)[:, None]
            k = tl.load(k_tile + row * k_row, mask=there, other=0.0)
            v = tl.load(v_tile + row * v_row, mask=there, other=0.0)
        else:
            k = tl.load(k_tile + row * k_row, eviction_policy="evict_first")
            v = tl.load(v_tile + row * v_row, eviction_policy="evict_first")
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * gain[:, None]
        known = tl.maximum(distance, 0) if NEAR else distance
        if KIND == RECURRENCE:
            nearest = cached - place - BLOCK_N + 1
            base, term, log, ratio, before, before_that = _recurring_base(
                known,
                nearest,
                table_ptr,
                term,
                log,
                ratio,
                before,
                before_that,
                BLOCK_N,
                SHIFT,
                LAST,
            )
        else:
            base = _base(known, table_ptr, growth, exponent, constant, KIND, SHIFT, LAST, NEAR)
        scores -= slope[:, None] * base[None, :]
        if CURVED:
            scores += curvature[:, None] * _logarithm(known, SHIFT)[None, :]
        if BOUNDED:
            scores = tl.where(distance[None, :] < reach[:, None], scores, float("-inf"))
        if NEAR:
            scores = tl.where((distance > 0)[None, :], scores, float("-inf"))
        weights, shrink, highest, total = _soften(scores, highest, total)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, highest, total


@triton.jit
def distance_decode_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    length_ptr,
    slope_ptr,
    curvature_ptr,
    gain_ptr,
    reach_ptr,
    table_ptr,
    out_ptr,
    partial_ptr,
    highest_ptr,
    total_ptr,
    finished_ptr,
    scale_log2,
    growth,
    exponent,
    constant,
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
    KIND: tl.constexpr,
    CURVED: tl.constexpr,
    BOUNDED: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
    STAGES: tl.constexpr,
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
    real = heads < GROUP
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    q = tl.load(q_ptr + heads[:, None] * q_head + dims[None, :], mask=real[:, None], other=0.0)
    number = kv_head * GROUP + heads
    slope = tl.load(slope_ptr + number, mask=real, other=0.0) * LOG2E
    curvature = tl.load(curvature_ptr + number, mask=real, other=0.0) * LOG2E
    gain = tl.load(gain_ptr + number, mask=real, other=1.0) * scale_log2
    reach = tl.load(reach_ptr + number, mask=real, other=1)

    newest = split == SPLITS - 1
    k_newest = tl.load(k_new_ptr + batch * k_new_batch + kv_head * k_new_head + dims)
    v_newest = tl.load(v_new_ptr + batch * v_new_batch + kv_head * v_new_head + dims)
    if newest:
        tl.store(k_ptr + cached.to(tl.int64) * k_row + dims, k_newest)
        tl.store(v_ptr + cached.to(tl.int64) * v_row + dims, v_newest)
    score = tl.sum(q.to(tl.float32) * k_newest.to(tl.float32)[None, :], 1) * gain
    highest = tl.where(newest, score, LOWEST)
    total = tl.where(newest, tl.full([ROWS], 1.0, tl.float32), 0.0)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    acc += tl.where(newest, v_newest.to(tl.float32), 0.0)[None, :]

    start = cached * 0
    if BOUNDED:
        start = tl.maximum(cached + 1 - tl.max(reach, 0), 0)
    tiles = tl.cdiv(cached - start, BLOCK_N)
    first = tiles * split // SPLITS
    end = tiles * (split + 1) // SPLITS
    far_end = first  # a recurrence goes through all of them
    if KIND != RECURRENCE:
        beyond = tl.maximum(cached - start - SHIFT - LAST, 0) // BLOCK_N
        far_end = tl.minimum(tl.maximum(beyond, first), end)
    for far in tl.static_range(2):
        acc, highest, total = _decode_tiles(
            acc,
            highest,
            total,
            q,
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
            cached,
            start,
            first if far else far_end,
            far_end if far else end,
            HEAD_DIM,
            BLOCK_N,
            KIND,
            CURVED,
            BOUNDED,
            SHIFT,
            LAST,
            far == 0,
            STAGES if far else 1,
            PRECISION,
        )
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


def distance_decode(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    v: Tensor,
    length: Tensor,
    form: BiasForm,
    numbers: HeadNumbers,
    table: Tensor,
    workspace: SplitWorkspace,
    *,
    scale: float,
    block_n: int,
    num_warps: int,
    num_stages: int,
) -> Tensor:
    """Write row `length` of the caches and attend to `length + 1` rows with the bias.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D], k and v [B,Hkv,capacity,D] of one dtype; length int32
    [1] on the device; table float32 [last + 1]. Returns a fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    distance_decode_kernel[(workspace.splits, batch * kv_heads)](
        q,
        k_new,
        v_new,
        k,
        v,
        length,
        *numbers.tensors(),
        table,
        out,
        *workspace.tensors(),
        scale * math.log2(math.e),
        *form.tail(),
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
        **form.compiled(),
        STAGES=num_stages,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
    )
    return out
