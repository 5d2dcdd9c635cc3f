"""Bounds of all blocks of keys and the choice among them, in one launch; appends as well.

A program serves one KV group and some blocks: it reads their summaries once, for all query heads.
The one that holds the newest block first writes the new row into the cache and summarises that
block anew, as no other changes. The last program of a group to finish chooses: a list of the kept
blocks and its length stay on the device, for `kept_decode`.

A step of a layer is two launches. This one reads B·Hkv·N/block summaries, of D float32 numbers and
1 to 3 more in AETHER, of 2D numbers in the cache's dtype in Quest; writes and reads G float32
scores of each; and reads the rows of the newest block. At Llama-3.2-1B's shape, N = 32000, B = 4
and blocks of 64 these are 4.2 MB of summaries, .3 MB of scores twice, in the L2 cache, and .3 MB of
rows. The other reads the kept rows alone: 39 MB where they are 15 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.block_choice import _keep_blocks
from attnbench.kernels.block_summary import _ball, _directions, _ends
from attnbench.kernels.split_decode import LEAST_ROWS

TILE_ELEMENTS = 4096  # of the blocks that a program bounds, and of the rows that it summarises
LEAST_TILE = 16  # blocks, the least that a product takes
HELD_SCORES = 8192  # that are chosen among at a time
THREAD_SCORES = 32  # of them that a thread holds, as more would not fit in its registers
MOST_BLOCKS = 1 << 14  # of one sequence: a program holds a score of each
MOST_GROUP = 32  # query heads, as each has a bit
RECORD = 4  # what a choice says of itself: blocks kept, heads without any (a bit each), tokens
# How each formula summarises a block.
SUMMARIES = {
    "raw": "ball",
    "scaled": "ball",
    "rust": "ball",
    "cone": "cone",
    "trt": "directions",
    "trt_docs": "directions",
    "trt_basic": "directions",
    "trt_backend": "directions",
    "quest": "ends",
}
KERNEL_FLOOR = tl.constexpr(0.3)
AGE_GAIN = tl.constexpr(0.05)


@dataclass(frozen=True)
class Rule:
    """What is kept, by which scores: `formula` as AETHER's variants are named, or quest.

    `rule`: absolute, relative, mass or share. A share is `numerator` of `denominator` of the
    blocks, to the nearest, or `of_tokens` of so many tokens, up. The first `sinks` and last `local`
    blocks are always kept, and all of them below `dense_below` tokens.
    """

    formula: str
    rule: str
    block: int
    value: float = 0.0
    numerator: int = 1
    denominator: int = 1
    of_tokens: bool = False
    sinks: int = 0
    local: int = 0
    dense_below: int = 0


@dataclass(frozen=True)
class Choice:
    """What a step found out: P = batch * KV heads, G query heads of each, W blocks at most."""

    scores: Tensor  # float32 [P,G,W]
    chosen: Tensor  # int32 [P,W]: the kept blocks first, ascending
    owners: Tensor  # int32 [P,W]: bit h is set where head h of the group keeps that block
    record: Tensor  # int32 [P,RECORD]
    finished: Tensor  # int32 [P], programs that have scored; every launch leaves it zero

    @staticmethod
    def allocate(pairs: int, group: int, blocks: int, device: torch.device) -> Choice:
        """Fresh memory; nothing is chosen yet."""
        width = max(LEAST_TILE, triton.next_power_of_2(blocks))

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        return Choice(
            scores=torch.zeros((pairs, group, width), device=device),
            chosen=zeros(pairs, width),
            owners=zeros(pairs, width),
            record=zeros(pairs, RECORD),
            finished=zeros(pairs),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return (self.scores, self.chosen, self.owners, self.record, self.finished)


@triton.jit
def _block_scores(
    along, length, centre_length, f0, f1, f2, place, count, scale, FORMULA: tl.constexpr
):
    """Scores [G,N] of blocks: `along` is q·μ [G,N], `length` |q| [G], and figures are [N]."""
    if FORMULA == "rust":
        score = length[:, None] * (centre_length + f0)[None, :]
    elif FORMULA == "cone":
        sine = tl.sqrt(tl.maximum(1.0 - f0 * f0, 0.0))
        score = along + length[:, None] * sine[None, :]
    elif (FORMULA == "trt") | (FORMULA == "trt_docs"):
        factor = f2
        if FORMULA == "trt":
            factor = KERNEL_FLOOR + (1.0 - KERNEL_FLOOR) * f2
        age = 1.0 + AGE_GAIN * (1.0 - place.to(tl.float32) / count)
        reach = f0 * (1.0 + tl.sqrt(f1))
        score = (along + length[:, None] * reach[None, :]) * scale * (factor * age)[None, :]
    else:
        score = along + length[:, None] * f0[None, :]
        if FORMULA != "raw":
            score = score * scale
        if FORMULA == "trt_backend":
            score = score / (1.0 + f1)[None, :]
    return score


@triton.jit
def choose_blocks_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    first_ptr,
    second_ptr,
    length_ptr,
    scores_ptr,
    chosen_ptr,
    owners_ptr,
    record_ptr,
    finished_ptr,
    value,
    scale,
    to_log2,
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
    room,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    FIGURES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    FORMULA: tl.constexpr,
    SUMMARY: tl.constexpr,
    RULE: tl.constexpr,
    NUMERATOR: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    OF_TOKENS: tl.constexpr,
    SINKS: tl.constexpr,
    LOCAL: tl.constexpr,
    DENSE_BELOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (TILES, batch * KV heads). Strides in elements; the last dimension is contiguous, and
    summaries are contiguous: [B,Hkv,room,D], and figures [B,Hkv,room,F] or the same again."""
    tile = tl.program_id(0)
    pair = tl.program_id(1)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    cached = tl.load(length_ptr)
    tokens = cached + 1
    last = cached // BLOCK
    count = last + 1
    dims = tl.arange(0, HEAD_DIM)
    heads = tl.arange(0, ROWS)
    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    scores_ptr += pair.to(tl.int64) * GROUP * WIDTH
    first_ptr += pair.to(tl.int64) * room * HEAD_DIM
    second_ptr += pair.to(tl.int64) * room * FIGURES

    if tile * TILE < count:
        place = tile * TILE + tl.arange(0, TILE)
        whole = place < last
        at = place[:, None] * HEAD_DIM + dims[None, :]
        q = tl.load(
            q_ptr + heads[:, None] * q_head + dims[None, :],
            mask=(heads < GROUP)[:, None],
            other=0.0,
        )
        first = tl.load(first_ptr + at, mask=whole[:, None], other=0.0)
        f0 = tl.zeros([TILE], tl.float32)
        f1, f2 = f0, f0
        second = first
        if SUMMARY == "ends":
            second = tl.load(second_ptr + at, mask=whole[:, None], other=0.0)
        else:
            f0 = tl.load(second_ptr + place * FIGURES, mask=whole, other=0.0)
            if SUMMARY == "directions":
                f1 = tl.load(second_ptr + place * FIGURES + 1, mask=whole, other=0.0)
                f2 = tl.load(second_ptr + place * FIGURES + 2, mask=whole, other=0.0)

        if tile == last // TILE:  # the newest row, and the block that it is in
            k_ptr += batch * k_batch + kv_head * k_head
            v_ptr += batch * v_batch + kv_head * v_head
            k_newest = tl.load(k_new_ptr + batch * k_new_batch + kv_head * k_new_head + dims)
            v_newest = tl.load(v_new_ptr + batch * v_new_batch + kv_head * v_new_head + dims)
            slot = cached.to(tl.int64)
            tl.store(k_ptr + slot * k_row + dims, k_newest)
            tl.store(v_ptr + slot * v_row + dims, v_newest)
            begin = last * BLOCK
            newest = (place == last)[:, None]
            own = place == last
            if SUMMARY == "ends":
                low, high = _ends(
                    k_ptr, k_row, k_newest, begin, cached, BLOCK_ROWS, BLOCK, HEAD_DIM
                )
                low, high = low.to(first.dtype), high.to(first.dtype)
                tl.store(first_ptr + last * HEAD_DIM + dims, low)
                tl.store(second_ptr + last * HEAD_DIM + dims, high)
                first = tl.where(newest, low[None, :], first)
                second = tl.where(newest, high[None, :], second)
            elif SUMMARY == "ball":
                centre, radius = _ball(
                    k_ptr, k_row, k_newest, begin, cached, BLOCK_ROWS, BLOCK, HEAD_DIM
                )
                tl.store(first_ptr + last * HEAD_DIM + dims, centre)
                tl.store(second_ptr + last, radius)
                first = tl.where(newest, centre[None, :], first)
                f0 = tl.where(own, radius, f0)
            else:
                centre, radius, spread, concentration, least = _directions(
                    k_ptr, k_row, k_newest, begin, cached, BLOCK_ROWS, BLOCK, HEAD_DIM
                )
                tl.store(first_ptr + last * HEAD_DIM + dims, centre)
                first = tl.where(newest, centre[None, :], first)
                if SUMMARY == "cone":
                    tl.store(second_ptr + last, least)
                    f0 = tl.where(own, least, f0)
                else:
                    tl.store(second_ptr + last * FIGURES, radius)
                    tl.store(second_ptr + last * FIGURES + 1, spread)
                    tl.store(second_ptr + last * FIGURES + 2, concentration)
                    f0 = tl.where(own, radius, f0)
                    f1 = tl.where(own, spread, f1)
                    f2 = tl.where(own, concentration, f2)

        if SUMMARY == "ends":
            over = tl.where(q > 0, q, 0.0).to(q.dtype)
            under = tl.where(q < 0, q, 0.0).to(q.dtype)
            score = tl.dot(over, tl.trans(second), input_precision=PRECISION)
            score = tl.dot(under, tl.trans(first), score, input_precision=PRECISION)
        else:
            asked = q.to(tl.float32)
            length = tl.sqrt(tl.sum(asked * asked, 1))
            centre_length = f0
            if FORMULA == "rust":
                centre_length = tl.sqrt(tl.sum(first * first, 1))
            along = tl.dot(asked, tl.trans(first), input_precision=PRECISION)
            score = _block_scores(
                along, length, centre_length, f0, f1, f2, place, count, scale, FORMULA
            )
        tl.store(
            scores_ptr + heads[:, None] * WIDTH + place[None, :],
            score,
            mask=(heads < GROUP)[:, None] & (place <= last)[None, :],
        )

    tl.debug_barrier()  # every thread has stored its scores before one thread says so
    if tl.atomic_add(finished_ptr + pair, 1, sem="acq_rel") == TILES - 1:
        tl.debug_barrier()
        block = tl.arange(0, WIDTH)
        there = block < count
        pinned = there & ((block < SINKS) | (block >= count - LOCAL))
        held = tl.minimum(tl.maximum(tokens - block * BLOCK, 1), BLOCK)
        owners = tl.zeros([WIDTH], tl.int32)
        without = tl.full([], 0, tl.int32)
        for begin_head in tl.static_range(0, GROUP, AT_ONCE):
            head = begin_head + tl.arange(0, AT_ONCE)
            real = head < GROUP
            found = tl.load(
                scores_ptr + head[:, None] * WIDTH + block[None, :],
                mask=real[:, None] & there[None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            keep = _keep_blocks(
                found,
                there,
                pinned,
                held,
                count,
                tokens,
                value,
                to_log2,
                RULE,
                NUMERATOR,
                DENOMINATOR,
                OF_TOKENS,
            )
            keep = (keep | pinned[None, :] | (tokens < DENSE_BELOW)) & there[None, :]
            none = tl.max(keep.to(tl.int32), 1) == 0
            keep = (keep | (none[:, None] & (block == last)[None, :])) & real[:, None]
            owners |= tl.sum(keep.to(tl.int32) << head[:, None], 0)
            without |= tl.sum((none & real).to(tl.int32) << head, 0)
        is_kept = owners != 0
        kept = is_kept.to(tl.int32)
        chosen_place = pair.to(tl.int64) * WIDTH + tl.cumsum(kept, 0) - kept
        tl.store(chosen_ptr + chosen_place, block, mask=is_kept)
        tl.store(owners_ptr + chosen_place, owners, mask=is_kept)
        tl.store(record_ptr + pair * 4, tl.sum(kept, 0))
        tl.store(record_ptr + pair * 4 + 1, without)
        tl.store(record_ptr + pair * 4 + 2, tokens)
        tl.store(finished_ptr + pair, 0)


def choose_blocks(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    v: Tensor,
    summaries: tuple[Tensor, Tensor],
    length: Tensor,
    choice: Choice,
    *,
    rule: Rule,
    scale: float,
) -> None:
    """Write row `length` of the caches, summarise its block, and choose among all blocks.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D], k and v [B,Hkv,capacity,D] of one dtype; `summaries`
    of every block there is room for, [B,Hkv,C,D] and [B,Hkv,C,F], contiguous: float32, or for quest
    least and greatest of every channel in the cache's dtype; length int32 [1] on the device.
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    first, second = summaries
    room, width = first.shape[2], choice.chosen.shape[1]
    if room > width or group > MOST_GROUP or not (first.is_contiguous() and second.is_contiguous()):
        raise ValueError("summaries must be contiguous, of no more blocks than there is room for")
    tile = max(LEAST_TILE, TILE_ELEMENTS // head_dim)
    tiles = triton.cdiv(room, tile)
    at_once = max(1, min(triton.next_power_of_2(group), HELD_SCORES // width))
    summary = SUMMARIES[rule.formula]
    narrow = q.dtype != torch.float32
    exact_products = "tf32" if summary == "ends" else "tf32x3"
    logit_scale = 1.0 if rule.formula == "scaled" or rule.formula.startswith("trt") else scale
    choose_blocks_kernel[(tiles, batch * kv_heads)](
        q,
        k_new,
        v_new,
        k,
        v,
        first,
        second,
        length,
        *choice.tensors(),
        rule.value,
        scale,
        logit_scale * math.log2(math.e),
        *q.stride()[:2],
        *k_new.stride()[:2],
        *v_new.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        room,
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        FIGURES=second.shape[3],
        BLOCK=rule.block,
        BLOCK_ROWS=min(TILE_ELEMENTS // head_dim, triton.next_power_of_2(rule.block)),
        TILE=tile,
        TILES=tiles,
        WIDTH=width,
        AT_ONCE=at_once,
        FORMULA=rule.formula,
        SUMMARY=summary,
        RULE=rule.rule,
        NUMERATOR=rule.numerator,
        DENOMINATOR=rule.denominator,
        OF_TOKENS=rule.of_tokens,
        SINKS=rule.sinks,
        LOCAL=rule.local,
        DENSE_BELOW=rule.dense_below,
        PRECISION=exact_products if narrow else "ieee",
        num_warps=max(4, min(16, at_once * width // THREAD_SCORES // 32)),
    )
