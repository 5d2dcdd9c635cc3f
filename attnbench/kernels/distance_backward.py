"""Gradients of causal attention with a bias by distance, weights recomputed from their sums.

One kernel goes over keys and adds up the gradients of keys and values, a KV head's query heads one
after another; the other goes over queries and adds up those of queries and, where heads learn, of
their slope, curvature and gain. Nothing is added atomically: the same inputs give the same bits.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.distance_bias import (
    LOG2E,
    BiasForm,
    HeadNumbers,
    _base,
    _logarithm,
)
from attnbench.kernels.distance_forward import FullLaunch, _key_tiles, _tile_bias

LEARNED = 3  # numbers of a head: slope, curvature, gain


def backward_launch(head_dim: int, item_bytes: int) -> FullLaunch:
    """What fits in 99 KiB of shared memory."""
    if head_dim * item_bytes <= 128:
        return FullLaunch(64, 64, 4, 2)
    if head_dim * item_bytes <= 256:
        return FullLaunch(32, 64, 4, 2)
    return FullLaunch(32, 32, 4, 1)


@triton.jit
def _key_gradients(
    dk,
    dv,
    k,
    v,
    keys,
    q_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    q_row,
    dout_row,
    table_ptr,
    slope,
    curvature,
    gain,
    reach,
    growth,
    exponent,
    constant,
    length,
    first,
    end,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KIND: tl.constexpr,
    CURVED: tl.constexpr,
    BOUNDED: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
    NEAR: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Query tiles `first` up to `end` of one head for one tile of keys."""
    dims = tl.arange(0, HEAD_DIM)
    for tile in tl.range(first, end, num_stages=STAGES):
        queries = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        there = queries < length
        place = queries[:, None].to(tl.int64)
        q = tl.load(q_ptr + place * q_row + dims[None, :], mask=there[:, None], other=0.0)
        dout = tl.load(dout_ptr + place * dout_row + dims[None, :], mask=there[:, None], other=0.0)
        lse = tl.load(lse_ptr + queries, mask=there, other=float("inf"))
        delta = tl.load(delta_ptr + queries, mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * gain
        scores += _tile_bias(
            queries,
            keys,
            table_ptr,
            slope,
            curvature,
            reach,
            growth,
            exponent,
            constant,
            KIND,
            CURVED,
            BOUNDED,
            SHIFT,
            LAST,
            NEAR,
        )
        weights = tl.exp2(scores - lse[:, None])
        dv += tl.dot(tl.trans(weights).to(dout.dtype), dout, input_precision=PRECISION)
        dweights = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dscores = weights * (dweights - delta[:, None]) * gain
        dk += tl.dot(tl.trans(dscores).to(q.dtype), q, input_precision=PRECISION)
    return dk, dv


@triton.jit
def distance_keys_backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    slope_ptr,
    curvature_ptr,
    gain_ptr,
    reach_ptr,
    table_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    scale_log2,
    growth,
    exponent,
    constant,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    dout_batch,
    dout_head,
    dout_row,
    dk_batch,
    dk_head,
    dk_row,
    dv_batch,
    dv_head,
    dv_row,
    length,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KIND: tl.constexpr,
    CURVED: tl.constexpr,
    BOUNDED: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of keys, batch * KV heads)."""
    start = tl.program_id(0) * BLOCK_N
    pair = tl.program_id(1)
    kv_head = (pair % KV_HEADS).to(tl.int64)
    batch = (pair // KV_HEADS).to(tl.int64)
    keys = start + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, HEAD_DIM)
    there = (keys < length)[:, None]
    place = keys[:, None].to(tl.int64)
    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    k = tl.load(k_ptr + place * k_row + dims[None, :], mask=there, other=0.0)
    v = tl.load(v_ptr + place * v_row + dims[None, :], mask=there, other=0.0)
    dk = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_N, HEAD_DIM], tl.float32)
    first = start // BLOCK_M
    for member in range(GROUP):
        head = kv_head * GROUP + member
        slope = tl.load(slope_ptr + head) * LOG2E
        curvature = tl.load(curvature_ptr + head) * LOG2E
        gain = tl.load(gain_ptr + head) * scale_log2
        reach = tl.load(reach_ptr + head)
        end = tl.cdiv(length, BLOCK_M)
        if BOUNDED:
            # in 64 bits: a reach may be all that 32 hold
            last = tl.minimum(start + BLOCK_N + reach.to(tl.int64), length).to(tl.int32)
            end = tl.cdiv(last, BLOCK_M)
        far = tl.minimum(tl.cdiv(start + BLOCK_N + SHIFT + LAST, BLOCK_M), end)
        row = (batch * KV_HEADS * GROUP + head) * length
        for near in tl.static_range(2):
            dk, dv = _key_gradients(
                dk,
                dv,
                k,
                v,
                keys,
                q_ptr + batch * q_batch + head * q_head,
                dout_ptr + batch * dout_batch + head * dout_head,
                lse_ptr + row,
                delta_ptr + row,
                q_row,
                dout_row,
                table_ptr,
                slope,
                curvature,
                gain,
                reach,
                growth,
                exponent,
                constant,
                length,
                first if near else far,
                far if near else end,
                HEAD_DIM,
                BLOCK_M,
                KIND,
                CURVED,
                BOUNDED,
                SHIFT,
                LAST,
                near == 1,
                1 if near else STAGES,
                PRECISION,
            )
    dk = (dk / LOG2E).to(dk_ptr.dtype.element_ty)
    dk_ptr += batch * dk_batch + kv_head * dk_head
    dv_ptr += batch * dv_batch + kv_head * dv_head
    tl.store(dk_ptr + place * dk_row + dims[None, :], dk, mask=there)
    dv = dv.to(dv_ptr.dtype.element_ty)
    tl.store(dv_ptr + place * dv_row + dims[None, :], dv, mask=there)


@triton.jit
def _query_gradients(
    dq,
    dslope,
    dcurvature,
    dgain,
    q,
    dout,
    lse,
    delta,
    queries,
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
    length,
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
    LEARNS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Key tiles `first` up to `end` for one tile of queries."""
    dims = tl.arange(0, HEAD_DIM)
    for tile in tl.range(first, end, num_stages=STAGES):
        keys = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        there = (keys < length)[:, None]
        k_place = k_ptr + keys[:, None].to(tl.int64) * k_row + dims[None, :]
        v_place = v_ptr + keys[:, None].to(tl.int64) * v_row + dims[None, :]
        k = tl.load(k_place, mask=there, other=0.0)
        v = tl.load(v_place, mask=there, other=0.0)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = products * gain + _tile_bias(
            queries,
            keys,
            table_ptr,
            slope,
            curvature,
            reach,
            growth,
            exponent,
            constant,
            KIND,
            CURVED,
            BOUNDED,
            SHIFT,
            LAST,
            NEAR,
        )
        weights = tl.exp2(scores - lse[:, None])
        dweights = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        dscores = weights * (dweights - delta[:, None])
        dq += tl.dot(dscores.to(k.dtype), k, input_precision=PRECISION)
        if LEARNS:
            distance = tl.maximum(queries[:, None] - keys[None, :], 0)
            base = _base(distance, table_ptr, growth, exponent, constant, KIND, SHIFT, LAST, NEAR)
            dslope -= tl.sum(dscores * base, 1)
            dgain += tl.sum(dscores * products, 1)
            if CURVED:
                dcurvature += tl.sum(dscores * _logarithm(distance, SHIFT), 1)
    return dq, dslope, dcurvature, dgain


@triton.jit
def distance_queries_backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    slope_ptr,
    curvature_ptr,
    gain_ptr,
    reach_ptr,
    table_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    dnumbers_ptr,
    scale_log2,
    growth,
    exponent,
    constant,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    dout_batch,
    dout_head,
    dout_row,
    dq_batch,
    dq_head,
    dq_row,
    length,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KIND: tl.constexpr,
    CURVED: tl.constexpr,
    BOUNDED: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
    STAGES: tl.constexpr,
    LEARNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of queries, batch * heads). Each program has its own place for the gradients of
    its head's numbers: [batch * heads, 3, tiles]."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    pair = tl.program_id(1)
    head = pair % HEADS
    batch = (pair // HEADS).to(tl.int64)
    wide = head.to(tl.int64)
    start = tile * BLOCK_M
    queries = start + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM)
    there = queries < length
    place = queries[:, None].to(tl.int64)
    q_ptr += batch * q_batch + wide * q_head
    dout_ptr += batch * dout_batch + wide * dout_head
    k_ptr += batch * k_batch + (wide // GROUP) * k_head
    v_ptr += batch * v_batch + (wide // GROUP) * v_head
    row = pair.to(tl.int64) * length
    q = tl.load(q_ptr + place * q_row + dims[None, :], mask=there[:, None], other=0.0)
    dout = tl.load(dout_ptr + place * dout_row + dims[None, :], mask=there[:, None], other=0.0)
    lse = tl.load(lse_ptr + row + queries, mask=there, other=float("inf"))
    delta = tl.load(delta_ptr + row + queries, mask=there, other=0.0)
    slope = tl.load(slope_ptr + head) * LOG2E
    curvature = tl.load(curvature_ptr + head) * LOG2E
    gain = tl.load(gain_ptr + head) * scale_log2
    reach = tl.load(reach_ptr + head)
    dq = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    dslope = tl.zeros([BLOCK_M], tl.float32)
    dcurvature = tl.zeros([BLOCK_M], tl.float32)
    dgain = tl.zeros([BLOCK_M], tl.float32)
    first, far_end, end = _key_tiles(start, reach, length, BLOCK_M, BLOCK_N, BOUNDED, SHIFT, LAST)
    for near in tl.static_range(2):
        dq, dslope, dcurvature, dgain = _query_gradients(
            dq,
            dslope,
            dcurvature,
            dgain,
            q,
            dout,
            lse,
            delta,
            queries,
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
            length,
            far_end if near else first,
            end if near else far_end,
            HEAD_DIM,
            BLOCK_N,
            KIND,
            CURVED,
            BOUNDED,
            SHIFT,
            LAST,
            near == 1,
            LEARNS,
            1 if near else STAGES,
            PRECISION,
        )
    dq_ptr += batch * dq_batch + wide * dq_head
    dq = (dq * (gain / LOG2E)).to(dq_ptr.dtype.element_ty)
    tl.store(dq_ptr + place * dq_row + dims[None, :], dq, mask=there[:, None])
    if LEARNS:
        tiles = tl.num_programs(0)
        dnumbers_ptr += pair.to(tl.int64) * 3 * tiles + tile
        tl.store(dnumbers_ptr, tl.sum(dslope, 0))
        tl.store(dnumbers_ptr + tiles, tl.sum(dcurvature, 0))
        tl.store(dnumbers_ptr + 2 * tiles, tl.sum(dgain, 0) * (scale_log2 / LOG2E))


def distance_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    form: BiasForm,
    numbers: HeadNumbers,
    table: Tensor,
    scale: float,
    *,
    learns: bool,
    launch: FullLaunch | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each laid out as what it is of, and float32 [3,H]: of slope,
    curvature and gain, zero unless `learns`. `dout` as `out`, last dimension contiguous."""
    batch, heads, length, head_dim = q.shape
    kv_heads = k.shape[1]
    chosen = launch or backward_launch(head_dim, q.element_size())
    delta = torch.linalg.vecdot(dout.float(), out.float())
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    tiles = triton.cdiv(length, chosen.block_m)
    dnumbers = torch.zeros((batch, heads, LEARNED, tiles), dtype=torch.float32, device=q.device)
    scale_log2 = scale * math.log2(math.e)
    rows = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dout.stride()[:3])
    inputs = (q, k, v, dout, *numbers.tensors(), table, lse, delta)
    constants = {
        "GROUP": heads // kv_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        **form.compiled(),
        "STAGES": chosen.num_stages,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "num_warps": chosen.num_warps,
    }
    distance_keys_backward_kernel[(triton.cdiv(length, chosen.block_n), batch * kv_heads)](
        *inputs,
        dk,
        dv,
        scale_log2,
        *form.tail(),
        *rows,
        *dk.stride()[:3],
        *dv.stride()[:3],
        length,
        KV_HEADS=kv_heads,
        **constants,
    )
    distance_queries_backward_kernel[(tiles, batch * heads)](
        *inputs,
        dq,
        dnumbers,
        scale_log2,
        *form.tail(),
        *rows,
        *dq.stride()[:3],
        length,
        HEADS=heads,
        LEARNS=learns,
        **constants,
    )
    return dq, dk, dv, dnumbers.sum(dim=(0, 3)).T.contiguous()
