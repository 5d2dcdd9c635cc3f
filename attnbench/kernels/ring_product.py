"""The product of a few rows with a weight matrix, its weights asked for before the kernel in front
has ended.

The same results as `skinny_product`, for compute capability 9.0 and 16-bit weights. Each program
keeps a ring of tiles that the copy engine (TMA) fills, over all its rows of weights without a
break, so that bytes in flight cost no registers and no tile waits for the one before. No kernel
writes weights: in a CUDA graph the first tiles are asked for at once, and only then does a program
wait for the kernel before it, to read x. Outside a graph nobody knows what runs in front, and
nothing is asked for early. A program lets the next kernel start after it has waited itself, never
before: so whatever starts early finds every kernel ended but the one right in front of it, and
memory that is used again in a graph is not written while somebody reads it.

A warp multiplies a stretch of the depth of its own, so that no two read the same part of x, and
the stretches are added up at the end of a tile.

Gluon is not interpreted, so this kernel needs a GPU (or only a compiler).
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from attnbench.kernels.product_launch import ProductLaunch
from attnbench.kernels.products import STRETCH

# Columns of weights in one row of a tile: 128 bytes, the widest that the copy engine swizzles.
DEEP = gl.constexpr(STRETCH)
# Gluon is experimental: Triton 3.9 renamed these two.
copy_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def _added(a, b):
    return a + b


@gluon.jit
def _ask(
    w_desc,
    step,
    first,
    up_row,
    bar,
    tile,
    up_tile,
    wanted,
    STEPS: gl.constexpr,
    PROGRAMS: gl.constexpr,
    GATED: gl.constexpr,
):
    """Have the tile of this step copied, if it is wanted; `bar` turns when it is there."""
    WARPS: gl.constexpr = tile.shape[0]
    BLOCK_N: gl.constexpr = tile.shape[1]
    SIZE: gl.constexpr = (2 if GATED else 1) * WARPS * BLOCK_N * DEEP * 2
    row = (first + step // STEPS * PROGRAMS) * BLOCK_N
    stretch = step % STEPS * WARPS
    mbarrier.expect(bar, SIZE, pred=wanted)
    copy_tile(w_desc, [stretch, row, 0], bar, tile, pred=wanted)
    if GATED:
        copy_tile(w_desc, [stretch, up_row + row, 0], bar, up_tile, pred=wanted)


@gluon.jit
def _squares(x, rows, x_row, PADDED: gl.constexpr, DEPTH: gl.constexpr, WARPS: gl.constexpr):
    """The mean square of every row of x [PADDED]."""
    SPAN: gl.constexpr = 32 * WARPS * 8 // PADDED
    lanes: gl.constexpr = gl.BlockedLayout(
        [1, 8], [1, 32], [PADDED // 8, 8 * WARPS // PADDED], [1, 0]
    )
    row = gl.arange(0, PADDED, layout=gl.SliceLayout(1, lanes))
    column = gl.arange(0, SPAN * 8, layout=gl.SliceLayout(0, lanes))
    total = gl.full([PADDED, SPAN * 8], 0.0, gl.float32, layout=lanes)
    for begin in gl.static_range(0, DEPTH, SPAN * 8):
        depth = begin + column
        part = gl.load(
            x + row[:, None] * x_row + depth[None, :],
            mask=(row < rows)[:, None] & (depth < DEPTH)[None, :],
            other=0.0,
        ).to(gl.float32)
        total += part * part
    return gl.reduce(total, 1, _added) / DEPTH


@gluon.jit
def _part(
    x,
    norm,
    shrink,
    rows,
    x_row,
    step,
    PADDED: gl.constexpr,
    DEPTH: gl.constexpr,
    WARPS: gl.constexpr,
    NORMED: gl.constexpr,
    right: gl.constexpr,
):
    """What this step multiplies of x, transposed: [WARPS, DEEP, PADDED]."""
    by_row: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, right))
    by_warp: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, right))
    by_depth: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, right))
    row = gl.arange(0, PADDED, layout=by_row)
    warp = gl.arange(0, WARPS, layout=by_warp)
    deep = gl.arange(0, DEEP, layout=by_depth)
    depth = step * (WARPS * DEEP) + warp[:, None, None] * DEEP + deep[None, :, None]
    real = (row < rows)[None, None, :]
    if DEPTH % (WARPS * DEEP) != 0:
        real &= depth < DEPTH
    part = gl.load(x + row[None, None, :] * x_row + depth, mask=real, other=0.0)
    if NORMED:
        weight = gl.load(norm + depth, mask=depth < DEPTH, other=0.0)
        scaled = (part.to(gl.float32) * shrink[None, None, :]).to(part.dtype)
        part = (scaled.to(gl.float32) * weight.to(gl.float32)).to(part.dtype)
    return part


@gluon.jit(do_not_specialize=["early"])
def ring_product_kernel(
    x,
    w_desc,
    bias,
    residual,
    norm,
    out,
    epsilon,
    early,
    rows,
    columns,
    x_row,
    residual_row,
    out_row,
    DEPTH: gl.constexpr,
    PADDED: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    NORMED: gl.constexpr,
    GATED: gl.constexpr,
    BLOCK_N: gl.constexpr,
    RING: gl.constexpr,
    LET_GO: gl.constexpr,
    PROGRAMS: gl.constexpr,
    num_warps: gl.constexpr,
):
    """Grid (PROGRAMS,): tiles PROGRAMS apart. x [rows, DEPTH], out [rows, columns].

    The weights are [columns, DEPTH], or with GATED those of the gate and below them of up. With
    `early` 0 nothing is asked for before the kernel in front has ended. The next kernel may start
    LET_GO steps before the end.
    """
    mma: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[num_warps, 1, 1], instr_shape=[1, 16, 8]
    )
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, mma, 2)
    flat: gl.constexpr = gl.SliceLayout(0, mma)
    by_row: gl.constexpr = gl.SliceLayout(0, flat)
    by_column: gl.constexpr = gl.SliceLayout(1, flat)
    STEPS: gl.constexpr = (DEPTH + num_warps * DEEP - 1) // (num_warps * DEEP)
    SHAPE: gl.constexpr = [RING, num_warps, BLOCK_N, DEEP]
    first = gl.program_id(0)
    tiles = (columns + BLOCK_N - 1) // BLOCK_N
    count = (tiles - first + PROGRAMS - 1) // PROGRAMS * STEPS
    ring = gl.allocate_shared_memory(w_desc.dtype, SHAPE, w_desc.layout)
    up_ring = gl.allocate_shared_memory(w_desc.dtype, SHAPE, w_desc.layout) if GATED else ring
    full = gl.allocate_shared_memory(gl.int64, [RING, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(RING):
        mbarrier.init(full.index(s), count=1)
    fence_async_shared()
    if early == 0:
        gdc_wait()
    for s in gl.static_range(RING):
        _ask(w_desc, s, first, columns, full.index(s), ring.index(s), up_ring.index(s), s < count,
             STEPS, PROGRAMS, GATED)  # fmt: skip
    gdc_wait()

    row = gl.arange(0, PADDED, layout=by_row)
    row_there = (row < rows)[None, :]
    shrink = gl.full([PADDED], 1.0, gl.float32, layout=gl.SliceLayout(0, gl.SliceLayout(1, right)))
    if NORMED:
        squares = _squares(x, rows, x_row, PADDED, DEPTH, num_warps)
        shrink = gl.convert_layout(gl.rsqrt(squares + epsilon), shrink.type.layout)
    acc = gl.full([num_warps, BLOCK_N, PADDED], 0.0, gl.float32, layout=mma)
    up_acc = acc
    part = _part(x, norm, shrink, rows, x_row, 0, PADDED, DEPTH, num_warps, NORMED, right)
    # After waiting, never before: what runs behind may then rely on all but this kernel being done.
    let_go = gl.maximum(count - LET_GO, 0)
    stage = 0
    phase = 0
    for step in range(count):
        if step == let_go:
            gdc_launch_dependents()
        bar = full.index(stage)
        mbarrier.wait(bar, phase)
        w = ring.index(stage).load(left)
        if GATED:
            up = up_ring.index(stage).load(left)
        meet()
        _ask(w_desc, step + RING, first, columns, bar, ring.index(stage), up_ring.index(stage),
             step + RING < count, STEPS, PROGRAMS, GATED)  # fmt: skip
        ahead = _part(x, norm, shrink, rows, x_row, (step + 1) % STEPS, PADDED, DEPTH, num_warps,
                      NORMED, right)  # fmt: skip
        acc = mma_v2(w, part, acc)
        if GATED:
            up_acc = mma_v2(up, part, up_acc)
        part = ahead
        stage += 1
        if stage == RING:
            stage = 0
            phase ^= 1
        if step % STEPS == STEPS - 1:
            column = (first + step // STEPS * PROGRAMS) * BLOCK_N + gl.arange(
                0, BLOCK_N, layout=by_column
            )
            there = row_there & (column < columns)[:, None]
            result = gl.reduce(acc, 0, _added)
            if HAS_BIAS:
                result += gl.load(bias + column, mask=column < columns, other=0.0).to(gl.float32)[
                    :, None
                ]
            if GATED:
                above = gl.reduce(up_acc, 0, _added)
                if HAS_BIAS:
                    above += gl.load(bias + columns + column, mask=column < columns, other=0.0).to(
                        gl.float32
                    )[:, None]
                dtype: gl.constexpr = out.dtype.element_ty
                gate = result.to(dtype).to(gl.float32)
                result = gate / (1.0 + gl.exp(-gate)) * above.to(dtype).to(gl.float32)
            place = row[None, :] * residual_row + column[:, None]
            if HAS_RESIDUAL:
                result += gl.load(residual + place, mask=there, other=0.0).to(gl.float32)
            place = row[None, :] * out_row + column[:, None]
            gl.store(out + place, result.to(out.dtype.element_ty), mask=there)
            acc = gl.full([num_warps, BLOCK_N, PADDED], 0.0, gl.float32, layout=mma)
            up_acc = acc


def descriptor(weights: Tensor, block_n: int, num_warps: int) -> TensorDescriptor:
    """For the copy engine: weights [N,K] as K/64 stretches of N rows, in tiles of `num_warps`
    stretches of `block_n` rows."""
    columns, depth = weights.shape
    stretches = weights.as_strided(
        (depth // STRETCH, columns, STRETCH), (STRETCH, weights.stride(0), 1)
    )
    layout = gl.NVMMASharedLayout(
        swizzle_byte_width=128, element_bitwidth=8 * weights.element_size(), rank=3
    )
    return TensorDescriptor.from_tensor(stretches, [num_warps, block_n, STRETCH], layout)


def ring_product(
    x: Tensor,
    weights: Tensor,
    *,
    launch: ProductLaunch,
    programs: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    gated: bool = False,
    early: bool = False,
) -> Tensor:
    """The product of `products.product`; `early`: weights are asked for at once."""
    rows, depth = x.shape
    columns = weights.shape[0] // (2 if gated else 1)
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    programs = min(programs, triton.cdiv(columns, launch.block_n))
    ring_product_kernel[(programs,)](
        x,
        descriptor(weights, launch.block_n, launch.num_warps),
        weights if bias is None else bias,
        x if residual is None else residual,
        x if norm is None else norm,
        out,
        epsilon,
        int(early),
        rows,
        columns,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        DEPTH=depth,
        PADDED=8 if rows <= 8 else 16,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        NORMED=norm is not None,
        GATED=gated,
        BLOCK_N=launch.block_n,
        RING=launch.tiles,
        LET_GO=launch.let_go or launch.tiles,
        PROGRAMS=programs,
        num_warps=launch.num_warps,
        launch_pdl=True,
    )
    return out
