"""A product of few rows by the kernel that a table names for it, and what may be tried."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.kernels.product_launch import MOST_ROWS, ProductLaunch, ProductShape, form_of

RING_CAPABILITY = 9
STRETCH = 64  # columns of weights in a row of a ring's tile
ASSUMED_SMS = 132  # where no GPU can be asked
# What a program may take on every GPU of compute capability 8.0 to 9.0, and on one with a copy
# engine; an SM keeps 1 KiB of each program for itself.
SHARED_BYTES, RING_SHARED_BYTES = 99 * 1024, 227 * 1024
SCRATCH_BYTES = 8 * 1024  # sums of warps, and x of the tiles in flight
AT_ONCE = 1 << 20  # tiles before the end: the next kernel may start as soon as this one has read x
# (rows of a tile, warps, KiB in flight on an SM, programs on it, when the next may start), the most
# promising first: enough in flight to fill the time that a read takes, and half of an SM's memory
# left to the kernel behind.
RING_CANDIDATES = (
    (16, 4, 64, 1, 0),
    (16, 8, 64, 1, 0),
    (32, 4, 64, 1, 0),
    (16, 4, 96, 1, 0),
    (32, 4, 96, 1, 0),
    (16, 8, 96, 1, 0),
    (16, 4, 64, 1, AT_ONCE),
    (32, 4, 64, 1, AT_ONCE),
    (16, 8, 64, 1, AT_ONCE),
    (32, 4, 96, 1, AT_ONCE),
    (16, 4, 96, 2, 0),
    (32, 4, 96, 2, 0),
    (32, 4, 128, 2, 0),
    (64, 4, 96, 1, 0),
    (64, 4, 128, 1, 0),
    (64, 4, 192, 1, 0),
    (32, 8, 128, 1, 0),
    (16, 2, 128, 4, 0),
)
# (rows of a tile, depth, stages, warps, programs on an SM, columns prefetched)
TRITON_CANDIDATES = (
    (16, 256, 5, 4, 2, 1024),
    (32, 256, 4, 4, 2, 1024),
    (16, 256, 4, 4, 4, 1024),
    (16, 512, 4, 8, 2, 2048),
    (32, 256, 4, 4, 2, 0),
    (16, 512, 4, 4, 1, 2048),
    (64, 256, 3, 4, 1, 512),
    (16, 128, 6, 4, 4, 1024),
)


def product(
    x: Tensor,
    weights: Tensor,
    *,
    launch: ProductLaunch,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    gated: bool = False,
) -> Tensor:
    """x [M,K] times weights [N,K] transposed, of one dtype: a fresh [M,N], summed in float32.

    With `norm` [K] x is RMS-normalised first; `bias` [N] is added; with `gated` the result is
    silu(left half) * right half [M,N/2]; `residual`, as large as the result, is added last. In a
    CUDA graph on compute capability 9.0 it may start before the kernel in front has ended, which
    must not write the weights. Raises `Unsupported` for what the kernel does not take.
    """
    rows, depth = x.shape
    form = form_of(norm=norm is not None, gated=gated, residual=residual is not None)
    refuse(ProductShape(rows, weights.shape[0], depth, form), launch, weights)
    programs = multiprocessors(x.device) * launch.on_an_sm
    x = x if x.stride(1) == 1 else x.contiguous()
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    parts: dict[str, Any] = {
        "bias": bias,
        "residual": residual,
        "norm": norm,
        "epsilon": epsilon,
        "gated": gated,
    }
    if launch.kernel == "ring":
        from attnbench.kernels.ring_product import ring_product

        return ring_product(x, weights, **parts, launch=launch, programs=programs, early=capturing)
    from attnbench.kernels.skinny_product import skinny_product

    dependent = capturing and torch.cuda.get_device_capability(x.device)[0] == RING_CAPABILITY
    return skinny_product(
        x, weights, **parts, launch=launch, programs=programs, dependent=dependent
    )


def refuse(shape: ProductShape, launch: ProductLaunch, weights: Tensor) -> None:
    """Raise `Unsupported` where a kernel cannot compute this product of these weights."""
    why = ""
    capability = _capability(weights)
    if shape.rows > MOST_ROWS:
        why = f"it takes at most {MOST_ROWS} rows"
    elif weights.stride(1) != 1:
        why = "a row of weights does not lie in one piece"
    elif launch.kernel == "triton" and not weights.is_cuda and not _interpreted():
        why = "it needs a CUDA GPU, or Triton's interpreter"
    elif launch.kernel == "ring" and capability != RING_CAPABILITY:
        why = "it needs a GPU of compute capability 9.0"
    elif launch.kernel == "ring" and weights.element_size() != 2:
        why = f"it takes weights of 16 bits, and these are {weights.dtype}"
    elif launch.kernel == "ring" and (
        shape.depth % STRETCH or weights.stride(0) % 8 or weights.data_ptr() % 16
    ):
        why = f"the copy engine needs a depth of whole {STRETCH}s and rows that begin at 16 bytes"
    if why:
        raise Unsupported(
            f"the {launch.kernel} kernel cannot compute a product {shape}: {why}",
            hint="take its entry out of the table of products",
        )


def _capability(weights: Tensor) -> int:
    return torch.cuda.get_device_capability(weights.device)[0] if weights.is_cuda else 0


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; `ASSUMED_SMS` for anything else."""
    if device.type != "cuda":
        return ASSUMED_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def ring_launches(shape: ProductShape) -> tuple[ProductLaunch, ...]:
    """What to try of the ring kernel for 16-bit weights, the most promising first."""
    found = []
    for block_n, warps, kib, on_an_sm, let_go in RING_CANDIDATES:
        tile_bytes = block_n * warps * STRETCH * 2 * (2 if "gate" in shape.form else 1)
        tiles = kib * 1024 // on_an_sm // tile_bytes
        room = RING_SHARED_BYTES // on_an_sm - SCRATCH_BYTES
        if tiles >= 2 and tiles * tile_bytes <= room and shape.depth % STRETCH == 0:
            found.append(ProductLaunch("ring", block_n, warps, on_an_sm, tiles, let_go=let_go))
    return tuple(dict.fromkeys(found))


def triton_launches(shape: ProductShape, element_size: int = 2) -> tuple[ProductLaunch, ...]:
    """What to try of the Triton kernel, the most promising first."""
    found = []
    for block_n, block_k, stages, warps, on_an_sm, ahead in TRITON_CANDIDATES:
        weight_rows = block_n * (2 if "gate" in shape.form else 1)
        x_rows = 8 if shape.rows <= 8 else 16
        tile_bytes = (weight_rows + x_rows) * block_k * element_size
        stages = min(stages, 1 + (SHARED_BYTES - SCRATCH_BYTES) // tile_bytes)
        if stages >= 2:
            found.append(
                ProductLaunch(
                    "triton", block_n, warps, on_an_sm, stages, block_k=block_k, ahead=ahead
                )
            )
    return tuple(dict.fromkeys(found))
