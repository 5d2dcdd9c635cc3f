"""What split-KV decode kernels share: online softmax, and merging the splits in the same launch.

Flash-Decoding (Dao, Haziza, Massa, Sizov 2023): programs share the cached rows of one sequence and
KV head, each keeps an unnormalised output with its running maximum and sum, and the partial results
are merged by their maxima. Here the last program to finish merges, so that a layer is one launch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# Less than any score, and finite: a difference of two of them is 0, where infinities give NaN.
LOWEST = tl.constexpr(-1.0e30)
# Elements of partial output that a merging program holds at a time: 32 registers a thread.
MERGE_ELEMENTS = 4096


@dataclass(frozen=True)
class SplitWorkspace:
    """Partial results of every split: P = batch * KV heads programs' rows, S splits, G heads."""

    partial: Tensor  # float32 [P,S,G,D], unnormalised outputs
    highest: Tensor  # float32 [P,S,G], running maxima in base-2 logits
    total: Tensor  # float32 [P,S,G], running sums
    finished: Tensor  # int32 [P], splits that have published; every launch leaves it zero

    @staticmethod
    def allocate(
        pairs: int, splits: int, group: int, head_dim: int, device: torch.device
    ) -> SplitWorkspace:
        """Fresh workspaces for `pairs` sequences and KV heads."""
        rows = (pairs, splits, group)
        return SplitWorkspace(
            partial=torch.empty((*rows, head_dim), dtype=torch.float32, device=device),
            highest=torch.empty(rows, dtype=torch.float32, device=device),
            total=torch.empty(rows, dtype=torch.float32, device=device),
            finished=torch.zeros(pairs, dtype=torch.int32, device=device),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (self.partial, self.highest, self.total, self.finished)

    @property
    def splits(self) -> int:
        """Programs that share one sequence and KV head."""
        return self.partial.shape[1]


def merge_block(splits: int, group: int, head_dim: int) -> int:
    """Splits that a merging program reads at a time: a power of two."""
    columns = triton.next_power_of_2(group * head_dim)
    return max(1, int(min(triton.next_power_of_2(splits), MERGE_ELEMENTS // columns)))


@triton.jit
def _span(cached, split, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr):
    """The first row of the attended range, and this split's tiles: first, end, end of full ones."""
    start = 0
    if WINDOW > 0:
        start = tl.maximum(cached + 1 - WINDOW, 0)
    tiles = tl.cdiv(cached - start, BLOCK_N)
    first = tiles * split // SPLITS
    end = tiles * (split + 1) // SPLITS
    full_end = tl.minimum(end, (cached - start) // BLOCK_N)
    return start, first, end, full_end


@triton.jit
def _soften(scores, highest, total):
    """One step of the online softmax: scores [M,N] in base-2 logits, highest and total [M]."""
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    shrink = tl.exp2(highest - new_highest)
    weights = tl.exp2(scores - new_highest[:, None])
    return weights, shrink, new_highest, total * shrink + tl.sum(weights, 1)


@triton.jit
def _publish(
    acc,
    highest,
    total,
    partial_ptr,
    highest_ptr,
    total_ptr,
    pair,
    split,
    SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Store a split's acc [ROWS,D], highest and total [ROWS], of which GROUP rows are real."""
    heads = tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD_DIM)
    row = (pair * SPLITS + split) * GROUP + heads
    real = heads < GROUP
    tl.store(highest_ptr + row, highest, mask=real)
    tl.store(total_ptr + row, total, mask=real)
    tl.store(partial_ptr + row[:, None] * HEAD_DIM + dims[None, :], acc, mask=real[:, None])


@triton.jit
def _merge_if_last(
    partial_ptr,
    highest_ptr,
    total_ptr,
    finished_ptr,
    out_ptr,
    pair,
    SPLITS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    MERGE: tl.constexpr,
):
    """The last program of a pair merges all splits into out [B,H,1,D] and clears the counter.

    Reads past the first-level cache, which may hold what another program wrote over.
    """
    tl.debug_barrier()  # every thread has stored its part before one thread says so
    if tl.atomic_add(finished_ptr + pair, 1, sem="acq_rel") == SPLITS - 1:
        tl.debug_barrier()
        column = tl.arange(0, COLUMNS)
        real = column < GROUP * HEAD_DIM
        highest = tl.full([COLUMNS], LOWEST, tl.float32)
        total = tl.zeros([COLUMNS], tl.float32)
        acc = tl.zeros([COLUMNS], tl.float32)
        for block in tl.static_range(0, SPLITS, MERGE):
            split = block + tl.arange(0, MERGE)
            keep = (split < SPLITS)[:, None] & real[None, :]
            row = (pair * SPLITS + split)[:, None] * GROUP + (column // HEAD_DIM)[None, :]
            cell = row * HEAD_DIM + (column % HEAD_DIM)[None, :]
            peak = tl.load(highest_ptr + row, mask=keep, other=LOWEST, cache_modifier=".cg")
            mass = tl.load(total_ptr + row, mask=keep, other=0.0, cache_modifier=".cg")
            part = tl.load(partial_ptr + cell, mask=keep, other=0.0, cache_modifier=".cg")
            new_highest = tl.maximum(highest, tl.max(peak, 0))
            shrink = tl.exp2(highest - new_highest)
            weight = tl.exp2(peak - new_highest[None, :])
            total = total * shrink + tl.sum(mass * weight, 0)
            acc = acc * shrink + tl.sum(part * weight, 0)
            highest = new_highest
        merged = (acc / tl.where(real, total, 1.0)).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + pair * GROUP * HEAD_DIM + column, merged, mask=real)
        tl.store(finished_ptr + pair, 0)
