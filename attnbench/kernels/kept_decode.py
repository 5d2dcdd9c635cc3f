"""Attention to the kept blocks of the exact cache, in place: split over them, merged at the end.

One program serves a whole KV group, so that a kept row is read once, whichever heads keep it; how
many blocks are kept is read on the device. Splits share the kept blocks of one sequence and KV head
evenly: where some keep far more than others, those take longer.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.choose_blocks import RECORD, Choice
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
def kept_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    chosen_ptr,
    owners_ptr,
    record_ptr,
    length_ptr,
    out_ptr,
    partial_ptr,
    highest_ptr,
    total_ptr,
    finished_ptr,
    scale_log2,
    q_batch,
    q_head,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    width,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    SPLITS: tl.constexpr,
    RECORD: tl.constexpr,
    OWN: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Grid (SPLITS, batch * KV heads). OWN: each head attends to the blocks that it keeps itself,
    and else to all that its group does. Strides in elements."""
    split = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    tokens = tl.load(length_ptr) + 1
    count = tl.load(record_ptr + pair * RECORD)
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    slots = tl.arange(0, BLOCK_N)
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    chosen_ptr += pair.to(tl.int64) * width
    owners_ptr += pair.to(tl.int64) * width
    q = tl.load(
        q_ptr + heads[:, None] * q_head + dims[None, :], mask=(heads < GROUP)[:, None], other=0.0
    )
    highest = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)

    tiles = tl.cdiv(count * BLOCK, BLOCK_N)
    first = tiles * split // SPLITS
    end = tiles * (split + 1) // SPLITS
    for tile in tl.range(first, end, num_stages=STAGES):
        place = tile * BLOCK_N + slots
        entry = place // BLOCK
        block = tl.load(chosen_ptr + entry, mask=entry < count, other=0)
        row = block * BLOCK + place % BLOCK
        there = (entry < count) & (row < tokens)
        k = tl.load(
            k_ptr + row.to(tl.int64)[:, None] * k_row + dims[None, :],
            mask=there[:, None],
            other=0.0,
            eviction_policy="evict_first",
        )
        v = tl.load(
            v_ptr + row.to(tl.int64)[:, None] * v_row + dims[None, :],
            mask=there[:, None],
            other=0.0,
            eviction_policy="evict_first",
        )
        attended = there[None, :]
        if OWN:
            owners = tl.load(owners_ptr + entry, mask=entry < count, other=0)
            attended = attended & ((owners[None, :] >> heads[:, None]) & 1 == 1)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        logits = tl.where(attended, logits, float("-inf"))
        weights, shrink, highest, total = _soften(logits, highest, total)
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


def kept_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    choice: Choice,
    length: Tensor,
    workspace: SplitWorkspace,
    *,
    block: int,
    own: bool,
    scale: float,
    block_n: int,
    num_warps: int,
    num_stages: int,
) -> Tensor:
    """Attend to the blocks of a choice among `length + 1` rows, the newest of which is cached.

    q [B,H,1,D], k and v [B,Hkv,capacity,D] of one dtype; length int32 [1] on the device. `own`:
    each head to those that it keeps itself. Returns a fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    kept_decode_kernel[(workspace.splits, batch * kv_heads)](
        q,
        k,
        v,
        choice.chosen,
        choice.owners,
        choice.record,
        length,
        out,
        *workspace.tensors(),
        scale * math.log2(math.e),
        *q.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        choice.chosen.shape[1],
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK=block,
        BLOCK_N=block_n,
        STAGES=num_stages,
        SPLITS=workspace.splits,
        RECORD=RECORD,
        OWN=own,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
    )
    return out
