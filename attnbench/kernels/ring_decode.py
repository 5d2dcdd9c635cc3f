"""Split-KV decode whose tiles are asked for before the kernel in front of it has ended.

The same result as `split_decode`, for compute capability 9.0 and 16-bit caches. Each
program keeps a ring of tiles that the copy engine (TMA) fills, so that bytes in flight cost no
registers. In a CUDA graph it is launched as a programmatic dependent of the kernel before it: it
asks for its first tiles at once, and waits for that kernel only then, to read the length and q.

What the kernel right before it may still write: the length, q and the new row of k and v, and the
newest cached row, which is therefore not asked for early. Where the length moved meanwhile, the
tiles asked for are dropped. All else of the cache has to be written before that. Outside a graph
nobody knows what runs in front, and nothing is asked for early.

Gluon is not interpreted, so this kernel needs a GPU (or only a compiler).
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from attnbench.errors import Unsupported
from attnbench.kernels.splits import SplitWorkspace, merge_block

# Rows that a tensor core's multiply takes: a group of query heads, padded.
ROWS = gl.constexpr(16)
MOST_HEADS = 16
LOWEST = gl.constexpr(-1.0e30)  # less than any score, and finite
# Tiles before its end at which a program lets the next kernel start: late enough that its copies
# do not crowd out this kernel's own, early enough that they are under way when this one ends.
TRIGGER = gl.constexpr(6)
# Gluon is experimental: Triton 3.9 renamed these two.
copy_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def _larger(a, b):
    return gl.maximum(a, b)


@gluon.jit
def _added(a, b):
    return a + b


@gluon.jit
def _length(length_ptr, WARPS: gl.constexpr):
    """The length as one value for the whole program, also while another kernel writes it: threads
    that read it at different moments must not go different ways."""
    everyone: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    lane = gl.arange(0, 32 * WARPS, layout=everyone)
    return gl.reduce(gl.load(length_ptr + lane * 0, volatile=True), 0, _larger)


@gluon.jit
def _span(cached, split, SPLITS: gl.constexpr, BLOCK: gl.constexpr):
    """This split's first tile and number of tiles; the last one of the cache may be ragged."""
    tiles = (cached + BLOCK - 1) // BLOCK
    first = tiles * split // SPLITS
    return first, tiles * (split + 1) // SPLITS - first


@gluon.jit
def _ask(k_desc, v_desc, k_row, v_row, bar, k_tile, v_tile, wanted):
    """Have one tile of keys and values copied, if it is wanted; `bar` turns when both are there."""
    SIZE: gl.constexpr = 2 * k_tile.shape[0] * k_tile.shape[1] * 2  # bytes, of 16 bits a number
    mbarrier.expect(bar, SIZE, pred=wanted)
    copy_tile(k_desc, [k_row, 0], bar, k_tile, pred=wanted)
    copy_tile(v_desc, [v_row, 0], bar, v_tile, pred=wanted)


@gluon.jit(do_not_specialize=["early"])
def ring_decode_kernel(
    q_ptr,
    k_new_ptr,
    v_new_ptr,
    k_ptr,
    v_ptr,
    k_desc,
    v_desc,
    length_ptr,
    out_ptr,
    partial_ptr,
    highest_ptr,
    total_ptr,
    finished_ptr,
    scale_log2,
    early,
    q_batch,
    q_head,
    k_new_batch,
    k_new_head,
    v_new_batch,
    v_new_head,
    k_batch_rows,
    k_head_rows,
    k_row,
    v_batch_rows,
    v_head_rows,
    v_row,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SPLITS: gl.constexpr,
    TILES: gl.constexpr,
    COLUMNS: gl.constexpr,
    MERGE: gl.constexpr,
    num_warps: gl.constexpr,
):
    """Grid (SPLITS, batch * KV heads). Strides in elements, but in rows between a cache's heads.

    With `early` 0 nothing is asked for before the kernel in front has ended.
    """
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[1, num_warps], instr_shape=[16, 8]
    )
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 2)
    by_head: gl.constexpr = gl.SliceLayout(1, mma)
    by_column: gl.constexpr = gl.SliceLayout(0, mma)
    split = gl.program_id(0)
    pair = gl.program_id(1)
    batch = pair // KV_HEADS
    kv_head = pair % KV_HEADS
    k_rows = batch * k_batch_rows + kv_head * k_head_rows
    v_rows = batch * v_batch_rows + kv_head * v_head_rows
    k_ring = gl.allocate_shared_memory(k_desc.dtype, [TILES, BLOCK_N, HEAD_DIM], k_desc.layout)
    v_ring = gl.allocate_shared_memory(v_desc.dtype, [TILES, BLOCK_N, HEAD_DIM], v_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [TILES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(TILES):
        mbarrier.init(full.index(s), count=1)
    fence_async_shared()

    if early == 0:
        gdc_wait()
    cached = _length(length_ptr, num_warps)
    first, count = _span(cached, split, SPLITS, BLOCK_N)
    phase = 0
    for s in gl.static_range(TILES):
        row = (first + s) * BLOCK_N
        settled = (s < count) & (row + BLOCK_N < cached)
        _ask(k_desc, v_desc, k_rows + row, v_rows + row, full.index(s), k_ring.index(s),
             v_ring.index(s), settled)  # fmt: skip
    asked = gl.minimum(count, gl.maximum((cached - 1) // BLOCK_N - first, 0))
    gdc_wait()
    gl.inline_asm_elementwise(
        "fence.proxy.async; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
    now = _length(length_ptr, num_warps)
    if now != cached:  # let what was asked for land, turn every barrier once, and ask again
        for s in gl.static_range(TILES):
            mbarrier.arrive(full.index(s), count=1, pred=s >= asked)
            mbarrier.wait(full.index(s), 0)
        cached = now
        first, count = _span(cached, split, SPLITS, BLOCK_N)
        asked = 0
        phase = 1
        meet()
    for s in gl.static_range(TILES):
        row = (first + s) * BLOCK_N
        _ask(k_desc, v_desc, k_rows + row, v_rows + row, full.index(s), k_ring.index(s),
             v_ring.index(s), (s >= asked) & (s < count))  # fmt: skip

    q_ptr += batch.to(gl.int64) * q_batch + kv_head.to(gl.int64) * GROUP * q_head
    q_heads = gl.arange(0, ROWS, layout=gl.SliceLayout(1, left))
    q_dims = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, left))
    q = gl.load(
        q_ptr + q_heads[:, None] * q_head + q_dims[None, :],
        mask=(q_heads < GROUP)[:, None],
        other=0.0,
    )
    heads = gl.arange(0, ROWS, layout=by_head)
    dims = gl.arange(0, HEAD_DIM, layout=by_column)
    columns = gl.arange(0, BLOCK_N, layout=by_column)
    tile_rows = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, right))
    highest = gl.full([ROWS], LOWEST, gl.float32, layout=by_head)
    total = gl.full([ROWS], 0.0, gl.float32, layout=by_head)
    acc = gl.full([ROWS, HEAD_DIM], 0.0, gl.float32, layout=mma)
    none = gl.full([ROWS, BLOCK_N], 0.0, gl.float32, layout=mma)
    let_go = gl.maximum(count - TRIGGER, 0)
    stage = 0
    for tile in range(count):
        if tile == let_go:
            gdc_launch_dependents()
        bar = full.index(stage)
        mbarrier.wait(bar, phase)
        k = k_ring.index(stage).permute((1, 0)).load(right)
        v = v_ring.index(stage).load(right)
        meet()
        later = (first + tile + TILES) * BLOCK_N
        _ask(k_desc, v_desc, k_rows + later, v_rows + later, bar, k_ring.index(stage),
             v_ring.index(stage), tile + TILES < count)  # fmt: skip
        scores = mma_v2(q, k, none) * scale_log2
        left_over = cached - (first + tile) * BLOCK_N
        if left_over < BLOCK_N:  # rows beyond the cache may hold anything, also no number
            scores = gl.where((columns < left_over)[None, :], scores, float("-inf"))
            v = gl.where((tile_rows < left_over)[:, None], v, 0.0)
        new_highest = gl.maximum(highest, gl.reduce(scores, 1, _larger))
        shrink = gl.exp2(highest - new_highest)
        weights = gl.exp2(scores - new_highest[:, None])
        total = total * shrink + gl.reduce(weights, 1, _added)
        highest = new_highest
        acc = mma_v2(gl.convert_layout(weights.to(v.dtype), left), v, acc * shrink[:, None])
        stage += 1
        if stage == TILES:
            stage = 0
            phase ^= 1

    if split == SPLITS - 1:
        k_newest = gl.load(
            k_new_ptr + batch.to(gl.int64) * k_new_batch + kv_head.to(gl.int64) * k_new_head + dims
        )
        v_newest = gl.load(
            v_new_ptr + batch.to(gl.int64) * v_new_batch + kv_head.to(gl.int64) * v_new_head + dims
        )
        gl.store(k_ptr + (k_rows + cached).to(gl.int64) * k_row + dims, k_newest)
        gl.store(v_ptr + (v_rows + cached).to(gl.int64) * v_row + dims, v_newest)
        again = gl.load(
            q_ptr + heads[:, None] * q_head + dims[None, :],
            mask=(heads < GROUP)[:, None],
            other=0.0,
        )
        products = again.to(gl.float32) * k_newest.to(gl.float32)[None, :]
        score = gl.reduce(products, 1, _added) * scale_log2
        new_highest = gl.maximum(highest, score)
        shrink = gl.exp2(highest - new_highest)
        weight = gl.exp2(score - new_highest)
        highest = new_highest
        total = total * shrink + weight
        acc = acc * shrink[:, None] + weight[:, None] * v_newest.to(gl.float32)[None, :]

    slot = (pair * SPLITS + split) * GROUP + heads
    real = heads < GROUP
    gl.store(highest_ptr + slot, highest, mask=real)
    gl.store(total_ptr + slot, total, mask=real)
    gl.store(partial_ptr + slot[:, None] * HEAD_DIM + dims[None, :], acc, mask=real[:, None])
    meet()  # every thread has stored its part before one thread says so
    if gl.atomic_add(finished_ptr + pair, 1, sem="acq_rel") == SPLITS - 1:
        meet()
        _merge(partial_ptr, highest_ptr, total_ptr, out_ptr, pair, SPLITS, GROUP, HEAD_DIM, COLUMNS,
               MERGE, num_warps)  # fmt: skip
        gl.store(finished_ptr + pair, 0)


@gluon.jit
def _merge(
    partial_ptr,
    highest_ptr,
    total_ptr,
    out_ptr,
    pair,
    SPLITS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    COLUMNS: gl.constexpr,
    MERGE: gl.constexpr,
    WARPS: gl.constexpr,
):
    """All splits of a pair into out [B,H,1,D], past the first-level cache."""
    EACH: gl.constexpr = max(1, COLUMNS // (32 * WARPS))
    block: gl.constexpr = gl.BlockedLayout([1, EACH], [1, 32], [1, WARPS], [1, 0])
    flat: gl.constexpr = gl.SliceLayout(0, block)
    column = gl.arange(0, COLUMNS, layout=flat)
    real = column < GROUP * HEAD_DIM
    highest = gl.full([COLUMNS], LOWEST, gl.float32, layout=flat)
    total = gl.full([COLUMNS], 0.0, gl.float32, layout=flat)
    acc = gl.full([COLUMNS], 0.0, gl.float32, layout=flat)
    for begin in gl.static_range(0, SPLITS, MERGE):
        split = begin + gl.arange(0, MERGE, layout=gl.SliceLayout(1, block))
        keep = (split < SPLITS)[:, None] & real[None, :]
        row = (pair * SPLITS + split)[:, None] * GROUP + (column // HEAD_DIM)[None, :]
        cell = row * HEAD_DIM + (column % HEAD_DIM)[None, :]
        peak = gl.load(highest_ptr + row, mask=keep, other=LOWEST, cache_modifier=".cg")
        mass = gl.load(total_ptr + row, mask=keep, other=0.0, cache_modifier=".cg")
        part = gl.load(partial_ptr + cell, mask=keep, other=0.0, cache_modifier=".cg")
        new_highest = gl.maximum(highest, gl.reduce(peak, 0, _larger))
        shrink = gl.exp2(highest - new_highest)
        weight = gl.exp2(peak - new_highest[None, :])
        total = total * shrink + gl.reduce(mass * weight, 0, _added)
        acc = acc * shrink + gl.reduce(part * weight, 0, _added)
        highest = new_highest
    merged = (acc / gl.where(real, total, 1.0)).to(out_ptr.dtype.element_ty)
    gl.store(out_ptr + pair * GROUP * HEAD_DIM + column, merged, mask=real)


def descriptor(rows: Tensor, block_n: int) -> TensorDescriptor:
    """For the copy engine: a cache [B,Hkv,capacity,D] as one column of rows, in tiles of `block_n`.

    Raises `Unsupported` where a sequence's or a head's rows do not lie whole rows apart.
    """
    head_dim, (batch, head, row) = rows.shape[3], rows.stride()[:3]
    if row < head_dim or batch % row or head % row:
        raise Unsupported(
            f"the copy engine cannot address a cache with strides {rows.stride()}",
            hint="lay it out as [batch, KV heads, capacity, head dimension]",
        )
    last = sum((size - 1) * stride for size, stride in zip(rows.shape, rows.stride(), strict=True))
    column = rows.as_strided(((last - head_dim + 1) // row + 1, head_dim), (row, 1))
    layout = gl.NVMMASharedLayout(
        swizzle_byte_width=128, element_bitwidth=8 * rows.element_size(), rank=2
    )
    return TensorDescriptor.from_tensor(column, [block_n, head_dim], layout)


def ring_decode(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: tuple[TensorDescriptor, TensorDescriptor],
    length: Tensor,
    workspace: SplitWorkspace,
    *,
    scale: float,
    block_n: int,
    ring: int,
    num_warps: int,
) -> Tensor:
    """Write row `length` of the caches and attend to `length + 1` rows.

    q [B,H,1,D], k_new and v_new [B,Hkv,1,D], k and v [B,Hkv,capacity,D] of one 16-bit dtype, with
    the `descriptor` of each; `ring` tiles are in flight; length int32 [1] on the device. Returns a
    fresh [B,H,1,D].
    """
    batch, heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    out = torch.empty((batch, heads, 1, head_dim), dtype=q.dtype, device=q.device)
    ring_decode_kernel[(workspace.splits, batch * kv_heads)](
        q,
        k_new,
        v_new,
        k,
        v,
        *tiles,
        length,
        out,
        *workspace.tensors(),
        scale * math.log2(math.e),
        int(q.is_cuda and torch.cuda.is_current_stream_capturing()),
        *q.stride()[:2],
        *k_new.stride()[:2],
        *v_new.stride()[:2],
        *(stride // k.stride(2) for stride in k.stride()[:2]),
        k.stride(2),
        *(stride // v.stride(2) for stride in v.stride()[:2]),
        v.stride(2),
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_N=block_n,
        SPLITS=workspace.splits,
        TILES=ring,
        COLUMNS=triton.next_power_of_2(group * head_dim),
        MERGE=merge_block(workspace.splits, group, head_dim),
        num_warps=num_warps,
        launch_pdl=True,
    )
    return out
