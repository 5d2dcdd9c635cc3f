"""The highest scores of each row, exactly and without sorting: a radix select in one launch.

A score becomes a whole number that orders as the score does; the greatest number which enough
scores reach is then found from its highest bit on, until just enough do. A row of up to HELD scores
stays in the registers of its program, where a bit costs one comparison a score: cheaper than a
digit, whose histogram is put together from votes of a warp for each of its bits and bins. Of a
longer row each eight-bit digit is one histogram and one pass over memory, mostly the L2 cache.

Of equal scores the one with the smaller index is taken. Zero equals minus zero. What is no number
is higher than all numbers, and one like the other, so that it shows in what is computed from it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HELD = 32768  # scores in the registers of 1024 threads
WRITTEN = 8192  # scores at a time when indices are written
# Bits of a score, widened to float32, that can be set: sign, exponent and significand.
BITS = {torch.bfloat16: 16, torch.float16: 19, torch.float32: 32}
ALIGNED = tl.constexpr(16)  # rows of scores begin at multiples of so many, and are as long
DIGIT_BITS = tl.constexpr(8)
DIGITS = tl.constexpr(256)
SIGN = tl.constexpr(-(2**31))

Budget = tuple[int, int, int, int]


@triton.jit
def _kept(
    tokens,
    NUMERATOR: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    LEAST: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """How many of so many tokens: a share, at least LEAST, up to a multiple, at most all."""
    share = tokens.to(tl.int64) * NUMERATOR // DENOMINATOR
    count = tl.maximum(share, LEAST)
    count = (count + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    return tl.minimum(count, tokens).to(tl.int32)


@triton.jit
def _ranks(row_ptr, token, tokens, BITS: tl.constexpr):
    """Scores as numbers of so many bits, uint32, that order as they do; 0 where there is none.

    A row is read up to a whole number of wide loads.
    """
    there = tl.cdiv(tokens, ALIGNED) * ALIGNED
    score = tl.load(row_ptr + token, mask=token < there, other=0.0).to(tl.float32)
    bits = tl.where(score == 0.0, 0, score.to(tl.int32, bitcast=True))
    bits = tl.where(bits < 0, ~bits, bits ^ SIGN)
    bits = tl.where(score != score, -1, bits)
    rank = bits.to(tl.uint32, bitcast=True) >> (32 - BITS)
    return tl.where(token < tokens, rank, 0)


@triton.jit
def _limit_of_held(row_ptr, tokens, keep, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """A rank that `keep` scores reach, or the highest that more do, where scores are equal; and how
    many are above it. All are held at once."""
    ranks = _ranks(row_ptr, tl.arange(0, BLOCK), tokens, BITS)
    limit = tl.full([], 0, tl.uint32)
    bit = tl.full([], 1 << (BITS - 1), tl.uint32)
    reached = tokens
    while (bit != 0) & (reached != keep):
        higher = limit | bit
        reach = tl.sum((ranks >= higher).to(tl.int32), 0)
        limit = tl.where(reach >= keep, higher, limit)
        reached = tl.where(reach >= keep, reach, reached)
        bit = bit >> 1
    return limit, tl.sum((ranks > limit).to(tl.int32), 0)


@triton.jit
def _limit_of_long(row_ptr, tokens, keep, BLOCK: tl.constexpr, BITS: tl.constexpr):
    """The same of a row of any length, digit by digit from the highest one on."""
    digit = tl.arange(0, DIGITS)
    limit = tl.full([], 0, tl.uint32)
    above = tl.full([], 0, tl.int32)
    first: tl.constexpr = (BITS - 1) // DIGIT_BITS * DIGIT_BITS
    for shift in tl.static_range(first, -1, -DIGIT_BITS):
        counts = tl.zeros([DIGITS], tl.int32)
        for start in range(0, tokens, BLOCK):
            token = start + tl.arange(0, BLOCK)
            ranks = _ranks(row_ptr, token, tokens, BITS) >> shift
            within = (ranks >> DIGIT_BITS) == (limit >> shift >> DIGIT_BITS)
            low = (ranks & (DIGITS - 1)).to(tl.int32)
            counts += tl.histogram(low, DIGITS, mask=within & (token < tokens))
        reach = above + tl.cumsum(counts, 0, reverse=True)
        found = tl.max(tl.where(reach >= keep, digit, 0), 0)
        above += tl.sum(tl.where(digit > found, counts, 0), 0)
        limit = limit | (found.to(tl.uint32) << shift)
    return limit, above


@triton.jit
def select_kernel(
    scores_ptr,
    length_ptr,
    chosen_ptr,
    score_row,
    chosen_row,
    NUMERATOR: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    LEAST: tl.constexpr,
    MULTIPLE: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HELD_AT_ONCE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (rows): one program finds the limit of its row and writes the indices, ascending."""
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.load(length_ptr) + 1
    keep = _kept(tokens, NUMERATOR, DENOMINATOR, LEAST, MULTIPLE)
    scores_ptr += row * score_row
    chosen_ptr += row * chosen_row
    if HELD_AT_ONCE:
        limit, above = _limit_of_held(scores_ptr, tokens, keep, BLOCK, BITS)
    else:
        limit, above = _limit_of_long(scores_ptr, tokens, keep, BLOCK, BITS)
    room = keep - above  # for scores at the limit

    higher_before = 0
    equal_before = 0
    for start in range(0, tokens, TILE):
        token = start + tl.arange(0, TILE)
        rank = _ranks(scores_ptr, token, tokens, BITS)
        higher = rank > limit
        equal = (rank == limit) & (token < tokens)
        # Both counts in one scan: a tile has fewer than 2^15 tokens.
        counts = higher.to(tl.int32) + (equal.to(tl.int32) << 16)
        before = tl.cumsum(counts, 0) - counts
        equals = equal_before + (before >> 16)
        place = higher_before + (before & 0xFFFF) + tl.minimum(equals, room)
        tl.store(chosen_ptr + place, token, mask=higher | (equal & (equals < room)))
        counted = tl.sum(counts, 0)
        higher_before += counted & 0xFFFF
        equal_before += counted >> 16


def row_width(tokens: int) -> int:
    """The width of a row of scores with room for so many tokens."""
    return int(triton.cdiv(tokens, ALIGNED.value) * ALIGNED.value)


def select_highest(scores: Tensor, length: Tensor, budget: Budget, most: int) -> Tensor:
    """Where the highest of `length + 1` scores of each row are: int32 [R, most], ascending.

    scores [R, W], contiguous, of 16 or 32 bits, W a multiple of ALIGNED; length int32 [1] on the
    device, below W. `budget` (n, d, least, multiple) keeps K = min(T, max(least, T * n // d) up to
    a multiple) of T; `most` is the most that K can be. What lies after the first K places of a row
    is anything.
    """
    rows, width = scores.shape
    if width % ALIGNED.value or not scores.is_contiguous():
        raise ValueError(f"rows of scores must be contiguous, and a multiple of {ALIGNED.value}")
    numerator, denominator, least, multiple = budget
    chosen = torch.empty((rows, most), dtype=torch.int32, device=scores.device)
    held = width <= HELD
    block = triton.next_power_of_2(width) if held else WRITTEN
    select_kernel[(rows,)](
        scores,
        length,
        chosen,
        width,
        most,
        NUMERATOR=numerator,
        DENOMINATOR=denominator,
        LEAST=least,
        MULTIPLE=multiple,
        BITS=BITS[scores.dtype],
        BLOCK=block,
        HELD_AT_ONCE=held,
        TILE=min(WRITTEN, block),
        num_warps=max(4, min(32, block // 1024)) if held else 32,
    )
    return chosen
