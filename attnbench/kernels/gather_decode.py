"""Attention to chosen rows of the exact cache, in place: split over the chosen, merged at the end.

Where a KV group shares its choice one program serves all of its query heads, so that a chosen row
is read once; else each query head has programs of its own. The query is the original one.
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
from attnbench.kernels.topk_select import Budget, _kept


@triton.jit
def gather_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    chosen_ptr,
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
    chosen_row,
    CHOICES: tl.constexpr,
    SHARING: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    NUMERATOR: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    LEAST: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Grid (SPLITS, batch * CHOICES): CHOICES a sequence, each of GROUP query heads; SHARING of
    them read one KV head."""
    split = tl.program_id(0)
    choice = tl.program_id(1)
    batch = (choice // CHOICES).to(tl.int64)
    first_head = (choice % CHOICES).to(tl.int64) * GROUP
    kv_head = (choice % CHOICES // SHARING).to(tl.int64)
    kept = _kept(tl.load(length_ptr) + 1, NUMERATOR, DENOMINATOR, LEAST, MULTIPLE)
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    places = tl.arange(0, BLOCK_N)
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    q_ptr += batch * q_batch + first_head * q_head
    chosen_ptr += choice.to(tl.int64) * chosen_row
    q = tl.load(
        q_ptr + heads[:, None] * q_head + dims[None, :], mask=(heads < GROUP)[:, None], other=0.0
    )
    highest = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)

    _, first, end, full_end = _span(kept, split, SPLITS, BLOCK_N, 0)
    for tile in range(first, full_end):
        row = tl.load(chosen_ptr + tile * BLOCK_N + places).to(tl.int64)
        k = tl.load(k_ptr + row[:, None] * k_row + dims[None, :])
        v = tl.load(v_ptr + row[:, None] * v_row + dims[None, :])
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        weights, shrink, highest, total = _soften(scores, highest, total)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)

    if end > full_end:  # the ragged tile at the end of the chosen, in the last split alone
        keep = full_end * BLOCK_N + places < kept
        row = tl.load(chosen_ptr + full_end * BLOCK_N + places, mask=keep, other=0).to(tl.int64)
        k = tl.load(k_ptr + row[:, None] * k_row + dims[None, :], mask=keep[:, None], other=0.0)
        v = tl.load(v_ptr + row[:, None] * v_row + dims[None, :], mask=keep[:, None], other=0.0)
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
        choice,
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
        choice,
        SPLITS,
        GROUP,
        HEAD_DIM,
        COLUMNS,
        MERGE,
    )


def gather_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    length: Tensor,
    budget: Budget,
    workspace: SplitWorkspace,
    *,
    scale: float,
    block_n: int,
    num_warps: int,
    num_stages: int,
) -> Tensor:
    """Attend to the first K chosen rows, K being what `budget` keeps of `length + 1` tokens.

    q [B,H,1,D], k and v [B,Hkv,capacity,D] of one dtype; chosen int32 [B·H, at least K], or
    [B·Hkv, at least K] where a group shares its choice; length int32 [1] on the device. The
    workspace is of as many pairs as there are choices. Returns a fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    choices = chosen.shape[0] // batch
    group = heads // choices
    numerator, denominator, least, multiple = budget
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    gather_decode_kernel[(workspace.splits, chosen.shape[0])](
        q,
        k,
        v,
        chosen,
        length,
        out,
        *workspace.tensors(),
        scale * math.log2(math.e),
        *q.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        chosen.stride(0),
        CHOICES=choices,
        SHARING=choices // k.shape[1],
        GROUP=group,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK_N=block_n,
        SPLITS=workspace.splits,
        NUMERATOR=numerator,
        DENOMINATOR=denominator,
        LEAST=least,
        MULTIPLE=multiple,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out
