"""Selection by coded keys and exact attention to what it keeps, in one launch; appends as well.

A program serves one KV group and a part of its tokens, in three phases. It finds the threshold on
a sample, which is the same in every program of the group, so that they need not wait for each
other; it scans the codes of its own tokens and writes down which to keep; it gathers those rows,
exact ones or of eight bits. What the rule is, and why every implementation finds the same tokens,
is said in `attnbench.methods.coded_topk` and `coded_keys`.

Codes never leave their bytes: a plane of them, one of each byte, meets the query's digits in an
integer product. Where a token takes fewer than the 32 bytes of such a product, it goes over several
tokens at once, with the digits repeated beside each other in a matrix that is zero elsewhere.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.int8_decode import _codes, _digits, _scores
from attnbench.kernels.split_decode import LEAST_ROWS
from attnbench.kernels.splits import (
    LOWEST,
    SplitWorkspace,
    _merge_if_last,
    _publish,
    _soften,
    merge_block,
)

PRODUCT_BYTES = 32  # the least depth of a product of bytes
LEAST_COLUMNS = 8  # of a product
WALK_BYTES = 16 * 1024  # of kept rows, keys and values, gathered at a time
MOST_WALKED, LEAST_WALKED = 64, 16
# Registers a thread, so that four programs of four warps run on an SM at a time; more where the
# sample's codes alone would fill them.
FEW_REGISTERS, MOST_REGISTERS = 128, 255
FEW_SAMPLE_BYTES = 16 * 1024
NO_SCORE = tl.constexpr(-(1 << 30))  # less than any product
NO_STEP = tl.constexpr(0x7FFF)  # the upper half of no finite distance
INVERSE_DIGIT = tl.constexpr(1 / 127)
SHARE_STEPS = tl.constexpr(1 << 16)


@dataclass(frozen=True)
class Scratch:
    """What programs write down for themselves: P pairs, S splits, G' padded query heads."""

    digits: Tensor  # int8 [P,S,G',D]
    worth: Tensor  # float32 [P,S,G']
    chosen: Tensor  # int32 [P,capacity], each program's from its first token on

    @staticmethod
    def allocate(
        pairs: int, splits: int, heads: int, head_dim: int, capacity: int, device: torch.device
    ) -> Scratch:
        """Fresh memory; `heads` as `padded_heads` says."""
        rows = (pairs, splits, heads)
        return Scratch(
            digits=torch.empty((*rows, head_dim), dtype=torch.int8, device=device),
            worth=torch.empty(rows, dtype=torch.float32, device=device),
            chosen=torch.empty((pairs, capacity), dtype=torch.int32, device=device),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return (self.digits, self.worth, self.chosen)


def tokens_a_row(head_dim: int, bits: int) -> int:
    """Tokens that one row of a product holds."""
    return max(1, PRODUCT_BYTES // (head_dim * bits // 8))


def padded_heads(group: int, row_tokens: int) -> int:
    """Query heads of a group as a product takes them."""
    return int(max(triton.next_power_of_2(group), LEAST_COLUMNS // row_tokens))


def walked(head_dim: int, dtype: torch.dtype) -> int:
    """Kept rows that are gathered at a time."""
    rows = WALK_BYTES // (2 * head_dim * dtype.itemsize)
    return min(max(rows, LEAST_WALKED), MOST_WALKED)


@triton.jit
def _rotated(x, ROWS: tl.constexpr, DIM: tl.constexpr, STAGES: tl.constexpr):
    """Rows [ROWS,DIM] of float32 times the Hadamard matrix; sums in the order of `coded_keys`."""
    for _ in tl.static_range(STAGES):
        even, odd = tl.split(tl.reshape(x, (ROWS, DIM // 2, 2)))
        x = tl.reshape(tl.permute(tl.join(even + odd, even - odd), (0, 2, 1)), (ROWS, DIM))
    return x


@triton.jit
def _query_digits(x):
    """Rows [M,D] of float32 as whole numbers of at most 127, and what one of each row is worth."""
    largest = tl.max(tl.abs(x), 1)
    unit = tl.where(largest > 0.0, largest * INVERSE_DIGIT, 1.0)
    return tl.floor(tl.div_rn(x, unit[:, None]) + 0.5), unit


@triton.jit
def _plane(joined, PLACE: tl.constexpr, BITS: tl.constexpr, PACKED: tl.constexpr):
    """One code of every byte: uint8 in, int8 out. `PACKED` goes over four bytes at once, which
    Triton's interpreter cannot."""
    MASK: tl.constexpr = (1 << BITS) - 1
    if PACKED:
        SHIFT: tl.constexpr = PLACE * BITS
        WIDE: tl.constexpr = MASK * 0x01010101
        return tl.inline_asm_elementwise(
            f"shr.b32 $0, $1, {SHIFT}; and.b32 $0, $0, {WIDE};",
            "=r,r",
            [joined],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )
    return ((joined >> (PLACE * BITS)) & MASK).to(tl.int8)


@triton.jit
def _weights_of_plane(
    digits_ptr,
    PLACE: tl.constexpr,
    BYTES: tl.constexpr,
    DEPTH: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """The digits that meet one plane: int8 [DEPTH,COLUMNS]; column c is head c % HEADS of the
    (c // HEADS)-th token of a row."""
    byte = tl.arange(0, DEPTH)
    column = tl.arange(0, COLUMNS)
    channel = PLACE * BYTES + byte % BYTES
    own = (byte // BYTES)[:, None] == (column // HEADS)[None, :]
    place = (column % HEADS)[None, :] * HEAD_DIM + channel[:, None]
    return tl.load(digits_ptr + place, mask=own, other=0)


@triton.jit
def _code_products(
    joined, w0, w1, w2, w3, w4, w5, w6, w7, BITS: tl.constexpr, PACKED: tl.constexpr
):
    """Products of codes [N,DEPTH] with digits, exact: int32 [N,COLUMNS]."""
    found = tl.dot(_plane(joined, 0, BITS, PACKED), w0, out_dtype=tl.int32)
    found = tl.dot(_plane(joined, 1, BITS, PACKED), w1, found, out_dtype=tl.int32)
    if BITS <= 2:
        found = tl.dot(_plane(joined, 2, BITS, PACKED), w2, found, out_dtype=tl.int32)
        found = tl.dot(_plane(joined, 3, BITS, PACKED), w3, found, out_dtype=tl.int32)
    if BITS == 1:
        found = tl.dot(_plane(joined, 4, BITS, PACKED), w4, found, out_dtype=tl.int32)
        found = tl.dot(_plane(joined, 5, BITS, PACKED), w5, found, out_dtype=tl.int32)
        found = tl.dot(_plane(joined, 6, BITS, PACKED), w6, found, out_dtype=tl.int32)
        found = tl.dot(_plane(joined, 7, BITS, PACKED), w7, found, out_dtype=tl.int32)
    return found


@triton.jit
def _distances(scores, best, worth, real):
    """How far tokens are from the best, of the head that is nearest: [N,T,HEADS] -> float32 [N,T];
    best, worth and real [HEADS]."""
    distance = (best[None, None, :] - scores).to(tl.float32) * worth[None, None, :]
    return tl.min(tl.where(real[None, None, :], distance, float("inf")), 2)


@triton.jit
def _smallest(steps, rank, DIGITS: tl.constexpr):
    """The `rank`-th smallest of steps [M], which are below 8^DIGITS, three bits at a time."""
    low = rank * 0
    for digit in tl.static_range(DIGITS):
        one = 1 << 3 * (DIGITS - 1 - digit)
        candidate = low + (tl.arange(0, 8) + 1) * one
        # The sign of a difference is -1 where a step is smaller, in fewer instructions than asking.
        below = -tl.sum((steps[:, None] - candidate[None, :]) >> 31, 0)
        low += tl.sum((below < rank).to(tl.int32), 0) * one
    return low


@triton.jit
def coded_decode_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    codes_ptr,
    base_ptr,
    step_ptr,
    k_worth_ptr,
    v_worth_ptr,
    length_ptr,
    out_ptr,
    counts_ptr,
    digits_ptr,
    worth_ptr,
    chosen_ptr,
    partial_ptr,
    highest_ptr,
    total_ptr,
    finished_ptr,
    scale_log2,
    logit_unit,
    share,
    capacity,
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
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    STAGES: tl.constexpr,
    BITS: tl.constexpr,
    ROW_TOKENS: tl.constexpr,
    SAMPLE: tl.constexpr,
    UNIT: tl.constexpr,
    SINKS: tl.constexpr,
    RECENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WALK: tl.constexpr,
    WALK_STAGES: tl.constexpr,
    SPLITS: tl.constexpr,
    PACKED: tl.constexpr,
    ROUNDED: tl.constexpr,
    DIGITS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """Grid (SPLITS, batch * KV heads). Strides in elements; the last dimension is contiguous. Codes
    are contiguous [B,Hkv,capacity,D·BITS/8], capacity a multiple of BLOCK_N. Where rows are
    ROUNDED, they are int8 and each channel's code is worth what [B,Hkv,D] say."""
    BYTES: tl.constexpr = HEAD_DIM * BITS // 8
    DEPTH: tl.constexpr = BYTES * ROW_TOKENS
    WIDTH: tl.constexpr = ROW_TOKENS * HEADS
    UNIT_ROWS: tl.constexpr = UNIT // ROW_TOKENS
    SAMPLE_ROWS: tl.constexpr = SAMPLE // ROW_TOKENS
    TILE_ROWS: tl.constexpr = BLOCK_N // ROW_TOKENS
    FIRST: tl.constexpr = (SINKS + UNIT - 1) // UNIT
    ALWAYS: tl.constexpr = SINKS + RECENT
    PLANES: tl.constexpr = 8 // BITS
    split = tl.program_id(0)
    pair = tl.program_id(1)
    program = pair * SPLITS + split
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    cached = tl.load(length_ptr)
    dims = tl.arange(0, HEAD_DIM)
    q_ptr += batch * q_batch + kv_head * GROUP * q_head
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    codes_ptr += pair.to(tl.int64) * capacity * BYTES
    chosen_ptr += pair.to(tl.int64) * capacity

    # The sample of so many tokens, as `coded_topk.CodedTopK.quota` has it; its codes are asked for
    # before anything has to be waited for. Where it is full, what divides is a power of two.
    FULL: tl.constexpr = SAMPLE // UNIT
    depth = tl.arange(0, DEPTH)
    sampled = tl.arange(0, SAMPLE_ROWS)
    units = tl.maximum((cached - RECENT) // UNIT - FIRST, 0)
    taken = tl.minimum(units, FULL)
    spread = (2 * (sampled // UNIT_ROWS) + 1) * units // (2 * FULL)
    place = FIRST + tl.where(units > FULL, spread, sampled // UNIT_ROWS)
    row = place * UNIT_ROWS + sampled % UNIT_ROWS
    valid = sampled // UNIT_ROWS < taken
    joined = tl.load(
        codes_ptr + row[:, None] * DEPTH + depth[None, :], mask=valid[:, None], other=0
    )

    # What is wanted of them.
    tokens = cached.to(tl.int64)
    budget = (share * tokens + SHARE_STEPS // 2) // SHARE_STEPS
    wanted = tl.maximum(tl.maximum(budget - ALWAYS, (budget + 1) // 2), 1)
    others = tl.maximum(tokens - ALWAYS, 0)
    everything = (wanted >= others) | (taken == 0)
    rank = (wanted * taken * UNIT + others // 2) // tl.maximum(others, 1)
    rank = tl.minimum(tl.maximum(rank, 1), tl.maximum(taken * UNIT, 1)).to(tl.int32)

    # The query in digits, which go through memory to stand as a product takes them.
    padded = tl.arange(0, HEADS)
    real = padded < GROUP
    step = tl.load(step_ptr + pair * HEAD_DIM + dims)
    raw = tl.load(
        q_ptr + padded[:, None] * q_head + dims[None, :], mask=real[:, None], other=0.0
    ).to(tl.float32)
    digits, unit = _query_digits(_rotated(raw, HEADS, HEAD_DIM, STAGES) * step[None, :])
    digits_ptr += program * HEADS * HEAD_DIM
    worth_ptr += program * HEADS
    tl.store(digits_ptr + padded[:, None] * HEAD_DIM + dims[None, :], digits.to(tl.int8))
    tl.store(worth_ptr + padded, unit * logit_unit)
    tl.debug_barrier()
    worth = tl.load(worth_ptr + padded)
    w0 = _weights_of_plane(digits_ptr, 0, BYTES, DEPTH, HEADS, WIDTH, HEAD_DIM)
    w1 = _weights_of_plane(digits_ptr, 1, BYTES, DEPTH, HEADS, WIDTH, HEAD_DIM)
    w2, w3, w4, w5, w6, w7 = w0, w0, w0, w0, w0, w0
    if PLANES >= 4:
        w2 = _weights_of_plane(digits_ptr, 2, BYTES, DEPTH, HEADS, WIDTH, HEAD_DIM)
        w3 = _weights_of_plane(digits_ptr, 3, BYTES, DEPTH, HEADS, WIDTH, HEAD_DIM)
    if PLANES == 8:
        w4 = _weights_of_plane(digits_ptr, 4, BYTES, DEPTH, HEADS, WIDTH, HEAD_DIM)
        w5 = _weights_of_plane(digits_ptr, 5, BYTES, DEPTH, HEADS, WIDTH, HEAD_DIM)
        w6 = _weights_of_plane(digits_ptr, 6, BYTES, DEPTH, HEADS, WIDTH, HEAD_DIM)
        w7 = _weights_of_plane(digits_ptr, 7, BYTES, DEPTH, HEADS, WIDTH, HEAD_DIM)

    # The threshold, on the sample.
    scores = _code_products(joined, w0, w1, w2, w3, w4, w5, w6, w7, BITS, PACKED)
    scores = tl.reshape(scores, (SAMPLE_ROWS, ROW_TOKENS, HEADS))
    among = tl.where(valid[:, None, None], scores, NO_SCORE)
    best = tl.max(tl.max(among, 0), 0)
    distance = _distances(scores, best, worth, real)
    steps = tl.where(valid[:, None], distance.to(tl.int32, bitcast=True) >> 16, NO_STEP)
    last = _smallest(tl.reshape(steps, (SAMPLE,)), rank, 5)
    limit = ((last + 1) << 16).to(tl.float32, bitcast=True)
    limit = tl.where(everything, float("inf"), limit)

    # The scan of this program's own tokens.
    tiles = tl.cdiv(cached, BLOCK_N)
    first = tiles * split // SPLITS
    end = tiles * (split + 1) // SPLITS
    chosen_ptr += first * BLOCK_N
    tile_rows = tl.arange(0, TILE_ROWS)
    tile_ptr = codes_ptr + first.to(tl.int64) * (BLOCK_N * BYTES)
    tile_ptr += tile_rows[:, None] * DEPTH + depth[None, :]
    within = tl.arange(0, BLOCK_N)
    count = cached * 0
    for tile in tl.range(first, end, num_stages=3):
        scanned = tl.load(
            tile_ptr + (tile - first).to(tl.int64) * (BLOCK_N * BYTES),
            eviction_policy="evict_first",
        )
        found = _code_products(scanned, w0, w1, w2, w3, w4, w5, w6, w7, BITS, PACKED)
        found = tl.reshape(found, (TILE_ROWS, ROW_TOKENS, HEADS))
        apart = tl.reshape(_distances(found, best, worth, real), (BLOCK_N,))
        token = tile * BLOCK_N + within
        keep = (apart < limit) | (token < SINKS) | (token >= cached - RECENT)
        keep &= token < cached
        kept = keep.to(tl.int32)
        tl.store(chosen_ptr + count + tl.cumsum(kept, 0) - kept, token, mask=keep)
        count += tl.sum(kept, 0)

    # The newest row, from registers; the last program appends it, and its code.
    newest = split == SPLITS - 1
    heads = tl.arange(0, ROWS)
    q = tl.load(
        q_ptr + heads[:, None] * q_head + dims[None, :], mask=(heads < GROUP)[:, None], other=0.0
    )
    k_newest = tl.load(k_new_ptr + batch * k_new_batch + kv_head * k_new_head + dims)
    v_newest = tl.load(v_new_ptr + batch * v_new_batch + kv_head * v_new_head + dims)
    # As rows hold them: the query takes what a key's code is worth, the output what a value's is.
    q_wide, k_held, v_held = q.to(tl.float32), k_newest.to(tl.float32), v_newest.to(tl.float32)
    if ROUNDED:
        k_worth = tl.load(k_worth_ptr + pair * HEAD_DIM + dims)
        v_worth = tl.load(v_worth_ptr + pair * HEAD_DIM + dims)
        q_wide *= k_worth[None, :]
        k_held, v_held = _codes(k_held, k_worth), _codes(v_held, v_worth)
        high, low, least, q_unit = _digits(q_wide)
        q_unit = q_unit * scale_log2
    tl.store(counts_ptr + program, count + newest.to(tl.int32))
    if newest:
        slot = cached.to(tl.int64)
        tl.store(k_ptr + slot * k_row + dims, k_held.to(k_ptr.dtype.element_ty))
        tl.store(v_ptr + slot * v_row + dims, v_held.to(v_ptr.dtype.element_ty))
        base = tl.load(base_ptr + pair * HEAD_DIM + dims)
        turned = _rotated(tl.reshape(k_newest.to(tl.float32), (1, HEAD_DIM)), 1, HEAD_DIM, STAGES)
        code = tl.floor(tl.div_rn(tl.reshape(turned, (HEAD_DIM,)) - base, step))
        code = tl.minimum(tl.maximum(code, 0.0), (1 << BITS) - 1.0).to(tl.int32)
        shift = tl.arange(0, PLANES) * BITS
        byte = tl.sum(tl.reshape(code, (PLANES, BYTES)) << shift[:, None], 0)
        tl.store(codes_ptr + slot * BYTES + tl.arange(0, BYTES), byte.to(tl.uint8))
    score = tl.sum(q_wide * k_held[None, :], 1) * scale_log2
    highest = tl.where(newest, score, LOWEST)
    total = tl.where(newest, tl.full([ROWS], 1.0, tl.float32), 0.0)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    acc += tl.where(newest, v_held, 0.0)[None, :]

    # Attention to the kept rows.
    tl.debug_barrier()  # every thread has written down what it keeps
    slots = tl.arange(0, WALK)
    for begin in tl.range(0, count, WALK, num_stages=WALK_STAGES):
        there = begin + slots < count
        at = tl.load(chosen_ptr + begin + slots, mask=there, other=0).to(tl.int64)
        k = tl.load(
            k_ptr + at[:, None] * k_row + dims[None, :],
            mask=there[:, None],
            other=0,
            eviction_policy="evict_first",
        )
        v = tl.load(
            v_ptr + at[:, None] * v_row + dims[None, :],
            mask=there[:, None],
            other=0,
            eviction_policy="evict_first",
        )
        if ROUNDED:
            logits = _scores(high, low, least, k, q_unit, DIGITS)
        else:
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        logits = tl.where(there[None, :], logits, float("-inf"))
        weights, shrink, highest, total = _soften(logits, highest, total)
        v = v.to(WIDE)
        acc = tl.dot(weights.to(WIDE), v, acc * shrink[:, None], input_precision=PRECISION)

    if ROUNDED:
        acc *= v_worth[None, :]
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


WIDE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def _wide(queries: torch.dtype, rows: torch.dtype) -> tl.dtype:
    """What weights and values are multiplied in; float16 holds every code of eight bits."""
    if rows != torch.int8:
        return WIDE[rows]
    return tl.float32 if queries == torch.float32 else tl.float16


@dataclass(frozen=True)
class Rule:
    """What is kept: `share` in whole steps of 1/65536, the sample's tokens and how many of them
    stand together, and what is kept whatever it is."""

    share: int
    bits: int
    sample: int
    unit: int
    sinks: int
    recent: int


def coded_decode(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    rows: tuple[Tensor, Tensor],
    worth: tuple[Tensor, Tensor] | None,
    coded: tuple[Tensor, Tensor, Tensor],
    length: Tensor,
    counts: Tensor,
    scratch: Scratch,
    workspace: SplitWorkspace,
    *,
    rule: Rule,
    scale: float,
    logit_unit: float,
    block_n: int,
    num_warps: int,
    num_stages: int,
) -> Tensor:
    """Write row `length` of the caches and its code, and attend to what the rule keeps, and to it.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D] and `rows`, keys and values [B,Hkv,capacity,D], are of
    one dtype; or rows are int8, and `worth` says what a code is worth, float32 [B,Hkv,D] of keys
    and of values. `coded`: codes, uint8 [B,Hkv,C,D·bits/8] with C a multiple of `block_n`, and
    where code 0 begins and how wide a code is, float32 [B,Hkv,D]; length int32 [1] on the device;
    counts int32 [B·Hkv,S], which tells what was kept. Returns a fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    k, v = rows
    kv_heads = k.shape[1]
    group = heads // kv_heads
    row_tokens = tokens_a_row(head_dim, rule.bits)
    sample_bytes = rule.sample * head_dim * rule.bits // 8
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    coded_decode_kernel[(workspace.splits, batch * kv_heads)](
        q,
        k_new,
        v_new,
        k,
        v,
        *coded,
        *(worth or coded[1:]),
        length,
        out,
        counts,
        *scratch.tensors(),
        *workspace.tensors(),
        scale * math.log2(math.e),
        logit_unit,
        rule.share,
        coded[0].shape[2],
        *q.stride()[:2],
        *k_new.stride()[:2],
        *v_new.stride()[:2],
        *k.stride()[:3],
        *v.stride()[:3],
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        HEADS=padded_heads(group, row_tokens),
        HEAD_DIM=head_dim,
        STAGES=head_dim.bit_length() - 1,
        BITS=rule.bits,
        ROW_TOKENS=row_tokens,
        SAMPLE=rule.sample,
        UNIT=rule.unit,
        SINKS=rule.sinks,
        RECENT=rule.recent,
        BLOCK_N=block_n,
        WALK=walked(head_dim, k.dtype),
        WALK_STAGES=num_stages,
        SPLITS=workspace.splits,
        PACKED=os.environ.get("TRITON_INTERPRET") != "1",
        ROUNDED=worth is not None,
        DIGITS=3 if q.dtype == torch.float32 else 2,
        WIDE=_wide(q.dtype, k.dtype),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
        maxnreg=FEW_REGISTERS if sample_bytes <= FEW_SAMPLE_BYTES else MOST_REGISTERS,
    )
    return out
