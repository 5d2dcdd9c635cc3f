"""The product of a few rows with a weight matrix, at the speed at which the matrix can be read.

A decode step multiplies one row a sequence with every weight of the model: nothing to compute, all
to read. Each program owns some rows of the weights [N, K] and streams them past all rows of x; a
grid of as many programs as fit at once walks over the rest. A warp multiplies a stretch of the
depth of its own, and the stretches are added up at the end of a tile.

In a CUDA graph it may be launched as a programmatic dependent of the kernel before it (compute
capability 9.0): what a program will read first of its weights, which no kernel writes, is on its
way into L2 while that kernel ends; x is read only then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from attnbench.kernels.product_launch import ProductLaunch

LINE = tl.constexpr(128)  # bytes that one prefetch brings


@triton.jit
def _mean_square(x, rows, x_row, PADDED: tl.constexpr, DEPTH: tl.constexpr, SPAN: tl.constexpr):
    """Of every row of x [PADDED]."""
    row = tl.arange(0, PADDED)
    total = tl.zeros([PADDED, SPAN], tl.float32)
    for begin in tl.static_range(0, DEPTH, SPAN):
        depth = begin + tl.arange(0, SPAN)
        there = (row < rows)[:, None] & (depth < DEPTH)[None, :]
        part = tl.load(x + row[:, None] * x_row + depth[None, :], mask=there, other=0.0)
        total += part.to(tl.float32) * part.to(tl.float32)
    return tl.sum(total, 1) / DEPTH


@triton.jit
def _gated(gate, up, dtype: tl.constexpr):
    """silu(gate) * up, of values as a product would have stored them."""
    gate = gate.to(dtype).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up.to(dtype).to(tl.float32)


@triton.jit
def skinny_product_kernel(
    x,
    weights,
    bias,
    residual,
    norm,
    out,
    epsilon,
    rows,
    columns,
    x_row,
    weights_row,
    residual_row,
    out_row,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STRETCHES: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    DEPENDENT: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (PROGRAMS,): tiles PROGRAMS apart. x [rows, DEPTH], out [rows, columns].

    The weights are [columns, DEPTH], or with GATED those of the gate and below them of up. AHEAD:
    columns of a program's first tile that are asked for before the kernel in front has ended.
    """
    DEEP: tl.constexpr = BLOCK_K // STRETCHES
    first = tl.program_id(0)
    if DEPENDENT:
        if AHEAD > 0:
            lines: tl.constexpr = AHEAD * weights.dtype.element_ty.primitive_bitwidth // 8 // LINE
            each: tl.constexpr = LINE * 8 // weights.dtype.element_ty.primitive_bitwidth
            soon = tl.minimum(first * BLOCK_N + tl.arange(0, BLOCK_N), columns - 1).to(tl.int64)
            piece = tl.minimum(tl.arange(0, lines) * each, DEPTH - 1)
            line = weights + soon[None, :] * weights_row + piece[:, None]
            _prefetch(line)
            if GATED:
                _prefetch(line + columns.to(tl.int64) * weights_row)
        gdc_wait()
        gdc_launch_dependents()
    row = tl.arange(0, PADDED)
    real = row < rows
    if NORMED:
        SPAN: tl.constexpr = 1024
        shrink = tl.rsqrt(_mean_square(x, rows, x_row, PADDED, DEPTH, SPAN) + epsilon)
    stretch = tl.arange(0, STRETCHES)
    deep = tl.arange(0, DEEP)
    tiles = tl.cdiv(columns, BLOCK_N)
    for tile in range(first, tiles, PROGRAMS):
        column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = column < columns
        acc = tl.zeros([STRETCHES, BLOCK_N, PADDED], tl.float32)
        up_acc = tl.zeros([STRETCHES, BLOCK_N, PADDED], tl.float32)
        offset = column.to(tl.int64)[None, :, None] * weights_row
        for begin in tl.range(0, DEPTH, BLOCK_K, num_stages=STAGES):
            depth = begin + stretch[:, None, None] * DEEP + deep[None, None, :]
            there = inside[None, :, None]
            x_depth = begin + stretch[:, None, None] * DEEP + deep[None, :, None]
            x_there = real[None, None, :]
            if DEPTH % BLOCK_K != 0:
                there &= depth < DEPTH
                x_there &= x_depth < DEPTH
            w = tl.load(weights + offset + depth, mask=there, other=0.0)
            part = tl.load(x + row[None, None, :] * x_row + x_depth, mask=x_there, other=0.0)
            if NORMED:
                scale = tl.load(norm + x_depth, mask=x_depth < DEPTH, other=0.0).to(tl.float32)
                normed = (part.to(tl.float32) * shrink[None, None, :]).to(part.dtype)
                part = (normed.to(tl.float32) * scale).to(part.dtype)
            acc = tl.dot(w, part, acc, input_precision=PRECISION)
            if GATED:
                up = tl.load(
                    weights + columns.to(tl.int64) * weights_row + offset + depth,
                    mask=there,
                    other=0.0,
                )
                up_acc = tl.dot(up, part, up_acc, input_precision=PRECISION)
        result = tl.sum(acc, 0)
        if HAS_BIAS:
            result += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[:, None]
        if GATED:
            above = tl.sum(up_acc, 0)
            if HAS_BIAS:
                up_bias = tl.load(bias + columns + column, mask=inside, other=0.0)
                above += up_bias.to(tl.float32)[:, None]
            result = _gated(result, above, out.dtype.element_ty)
        keep = inside[:, None] & real[None, :]
        if HAS_RESIDUAL:
            place = row[None, :] * residual_row + column[:, None]
            result += tl.load(residual + place, mask=keep, other=0.0).to(tl.float32)
        place = row[None, :] * out_row + column[:, None]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=keep)


@triton.jit
def _prefetch(line):
    """Have the lines at these addresses brought into L2."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [line.to(tl.int64, bitcast=True)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def skinny_product(
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
    dependent: bool = False,
) -> Tensor:
    """The product of `products.product`; `dependent`: started before the kernel in front ends."""
    rows, depth = x.shape
    columns = weights.shape[0] // (2 if gated else 1)
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    programs = min(programs, triton.cdiv(columns, launch.block_n))
    skinny_product_kernel[(programs,)](
        x,
        weights,
        weights if bias is None else bias,
        x if residual is None else residual,
        x if norm is None else norm,
        out,
        epsilon,
        rows,
        columns,
        x.stride(0),
        weights.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        DEPTH=depth,
        PADDED=8 if rows <= 8 else 16,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        NORMED=norm is not None,
        GATED=gated,
        BLOCK_N=launch.block_n,
        BLOCK_K=launch.block_k,
        STRETCHES=launch.num_warps,
        STAGES=launch.tiles,
        AHEAD=launch.ahead if dependent else 0,
        DEPENDENT=dependent,
        PROGRAMS=programs,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=launch.num_warps,
        **({"launch_pdl": True} if dependent else {}),
    )
    return out
