"""Writes the new token's key and value of every head into the cache, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["row"])
def append_kernel(
    k,
    v,
    keys,
    values,
    row,
    k_batch,
    k_head,
    k_column,
    v_batch,
    v_head,
    v_column,
    cache_batch,
    cache_head,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One sequence's KV head: k and v [HEAD_DIM] into row `row` of keys and values."""
    batch = (tl.program_id(0) // KV_HEADS).to(tl.int64)
    head = tl.program_id(0) % KV_HEADS
    column = tl.arange(0, COLUMNS)
    inside = column < HEAD_DIM
    place = batch * cache_batch + head * cache_head + row * HEAD_DIM + column
    new_k = tl.load(k + batch * k_batch + head * k_head + column * k_column, mask=inside)
    new_v = tl.load(v + batch * v_batch + head * v_head + column * v_column, mask=inside)
    tl.store(keys + place, new_k, mask=inside)
    tl.store(values + place, new_v, mask=inside)


def append_row(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, row: int) -> None:
    """k, v [B,Hkv,1,D], strided, into row `row` of keys and values [B,Hkv,capacity,D], which are
    contiguous and alike."""
    batch, kv_heads, _, head_dim = keys.shape
    append_kernel[(batch * kv_heads,)](
        k,
        v,
        keys,
        values,
        row,
        k.stride(0),
        k.stride(1),
        k.stride(3),
        v.stride(0),
        v.stride(1),
        v.stride(3),
        keys.stride(0),
        keys.stride(1),
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        COLUMNS=triton.next_power_of_2(head_dim),
        num_warps=1,
    )
