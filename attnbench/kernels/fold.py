"""Folds the rows of a tensor into one 64-bit number, in one pass at the speed of memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS_AT_ONCE = 4096  # of 64 bits, by one program
LEAST_WIDTH, MOST_WIDTH = 2, 256


@triton.jit
def fold_kernel(
    words,
    multipliers,
    total,
    rows,
    apart,
    skipped,
    PLACE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add ROWS rows of WIDTH words, each times its column's multiplier and its row's odd one;
    without every one that comes `skipped` rows after a multiple of `apart`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    counts = (row < rows) & (row % apart != skipped)
    word = tl.load(words + row[:, None] * WIDTH + column[None, :], mask=counts[:, None], other=0)
    by_row = tl.sum(word * tl.load(multipliers + column)[None, :], 1)
    tl.atomic_add(total, tl.sum(by_row * (2 * row + 1) * PLACE, 0), sem="relaxed")


def takes(words: Tensor) -> bool:
    """Whether `fold` can: int64 rows on a GPU, a power of two of words in each."""
    width = words.shape[-1]
    return (
        words.is_cuda
        and words.dtype is torch.int64
        and words.is_contiguous()
        and LEAST_WIDTH <= width <= MOST_WIDTH
        and width & (width - 1) == 0
    )


def fold(
    words: Tensor, multipliers: Tensor, total: Tensor, place: int, skipped: int | None = None
) -> None:
    """Add the sum over rows r and columns c of words[r,c] * multipliers[c] * (2r + 1) * place,
    modulo 2^64, to `total`. words int64 [..,M,W], counted as rows of W, without row `skipped` of
    every M; multipliers int64 [W]; total int64 with one element."""
    width = words.shape[-1]
    rows = words.numel() // width
    at_once = WORDS_AT_ONCE // width
    grid = (triton.cdiv(rows, at_once),)
    apart, left_out = words.shape[-2], -1 if skipped is None else skipped
    fold_kernel[grid](
        words, multipliers, total, rows, apart, left_out, PLACE=place, WIDTH=width, ROWS=at_once
    )
