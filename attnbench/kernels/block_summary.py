"""What is kept of the block of keys that is still being filled, computed anew from its rows.

Sums are in float64, as `attnbench.methods.aether_bounds` has them, so that a radius which was
rounded up is no less than the distance of any key; of one block a step this costs little anywhere.
A key that is no number shows in the mean and in the radius.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEAST_NORM = tl.constexpr(1e-12)  # of a key or a mean that is divided by its length
LEAST_CONCENTRATION = tl.constexpr(0.1)


@triton.jit
def _block_rows(
    k_ptr,
    k_row,
    newest,
    begin,
    cached,
    first,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Rows from `first` on of the block that begins at row `begin`, the last of them from
    registers: keys [TILE,D], zero where there is none, and where there are."""
    place = first + tl.arange(0, TILE)
    row = begin + place
    there = (place < BLOCK) & (row <= cached)
    at = k_ptr + row.to(tl.int64)[:, None] * k_row + tl.arange(0, HEAD_DIM)[None, :]
    keys = tl.load(at, mask=(there & (row < cached))[:, None], other=0.0)
    return tl.where((there & (row == cached))[:, None], newest[None, :], keys), there


@triton.jit
def _wide(keys):
    """In float64."""
    return keys.to(tl.float32).to(tl.float64)


@triton.jit
def _unit_keys(keys):
    """Rows of length one, in float64; a row of zeros stays."""
    wide = _wide(keys)
    return wide / tl.maximum(tl.sqrt(tl.sum(wide * wide, 1)), LEAST_NORM)[:, None]


@triton.jit
def _greatest(values, there):
    """The greatest of those that are there [N], none being negative; NaN where one is."""
    found = tl.max(tl.where(there, values, 0.0), 0)
    strange = tl.max((there & (values != values)).to(tl.int32), 0)
    return tl.where(strange > 0, float("nan"), found)


@triton.jit
def _rounded_up(exact):
    """The least float32 that is not below a float64, which is not negative."""
    near = exact.to(tl.float32)
    bits = near.to(tl.int32, bitcast=True)
    bits = tl.where(near.to(tl.float64) < exact, bits + 1, bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _ball(
    k_ptr,
    k_row,
    newest,
    begin,
    cached,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """The mean [D], and the radius about it as it is kept."""
    total = tl.zeros([HEAD_DIM], tl.float64)
    for first in range(0, BLOCK, TILE):
        keys, _ = _block_rows(k_ptr, k_row, newest, begin, cached, first, TILE, BLOCK, HEAD_DIM)
        total += tl.sum(_wide(keys), 0)
    centre = (total / (cached - begin + 1).to(tl.float64)).to(tl.float32)
    far = tl.full([], 0.0, tl.float64)
    for first in range(0, BLOCK, TILE):
        keys, there = _block_rows(k_ptr, k_row, newest, begin, cached, first, TILE, BLOCK, HEAD_DIM)
        off = _wide(keys) - centre.to(tl.float64)[None, :]
        apart = _greatest(tl.sum(off * off, 1), there)
        far = tl.where(apart <= far, far, apart)
    return centre, _rounded_up(tl.sqrt(far))


@triton.jit
def _directions(
    k_ptr,
    k_row,
    newest,
    begin,
    cached,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """The mean direction [D], and of the unit keys the radius about it, the mean squared distance,
    the concentration, and the least cosine."""
    held = (cached - begin + 1).to(tl.float64)
    total = tl.zeros([HEAD_DIM], tl.float64)
    for first in range(0, BLOCK, TILE):
        keys, _ = _block_rows(k_ptr, k_row, newest, begin, cached, first, TILE, BLOCK, HEAD_DIM)
        total += tl.sum(_unit_keys(keys), 0)
    mean = total / held
    centre = mean / tl.maximum(tl.sqrt(tl.sum(mean * mean, 0)), LEAST_NORM)
    far = tl.full([], 0.0, tl.float64)
    squares = tl.full([], 0.0, tl.float64)
    cosines = tl.full([], 0.0, tl.float64)
    least = tl.full([], 2.0, tl.float64)
    for first in range(0, BLOCK, TILE):
        keys, there = _block_rows(k_ptr, k_row, newest, begin, cached, first, TILE, BLOCK, HEAD_DIM)
        unit = _unit_keys(keys)
        off = unit - centre[None, :]
        square = tl.sum(off * off, 1)
        cosine = tl.sum(unit * centre[None, :], 1)
        apart = _greatest(square, there)
        far = tl.where(apart <= far, far, apart)
        squares += tl.sum(tl.where(there, square, 0.0), 0)
        cosines += tl.sum(tl.where(there, cosine, 0.0), 0)
        least = tl.minimum(least, tl.min(tl.where(there, cosine, 2.0), 0))
    concentration = tl.minimum(tl.maximum(cosines / held, LEAST_CONCENTRATION), 1.0)
    return (
        centre.to(tl.float32),
        tl.sqrt(far).to(tl.float32),
        (squares / held).to(tl.float32),
        concentration.to(tl.float32),
        least.to(tl.float32),
    )


@triton.jit
def _ends(
    k_ptr,
    k_row,
    newest,
    begin,
    cached,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """The least and the greatest of every channel, float32 [D]; NaN where a key is none."""
    low = tl.full([HEAD_DIM], float("inf"), tl.float32)
    high = tl.full([HEAD_DIM], float("-inf"), tl.float32)
    strange = tl.zeros([HEAD_DIM], tl.int32)
    for first in range(0, BLOCK, TILE):
        keys, there = _block_rows(k_ptr, k_row, newest, begin, cached, first, TILE, BLOCK, HEAD_DIM)
        keys = keys.to(tl.float32)
        low = tl.minimum(low, tl.min(tl.where(there[:, None], keys, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(there[:, None], keys, float("-inf")), 0))
        strange = tl.maximum(strange, tl.max((keys != keys).to(tl.int32), 0))
    low = tl.where(strange > 0, float("nan"), low)
    return low, tl.where(strange > 0, float("nan"), high)
