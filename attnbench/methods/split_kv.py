"""Launch parameters and workspaces of the split-KV kernels, by shape and number of SMs."""

from __future__ import annotations

import os

import torch

from attnbench.errors import Unsupported
from attnbench.kernels.splits import SplitWorkspace
from attnbench.methods.base import KernelConfig, LayerShape

# What one program may take on every GPU of compute capability 8.0 to 9.0 (8.6 and 8.9 have least).
SHARED_BYTES = 99 * 1024
# Room that the kernels need beside the tiles in flight: the weights' change of layout, reductions.
SCRATCH_BYTES = 12 * 1024
# SMs assumed where no GPU can be asked: an H100 SXM.
ASSUMED_SMS = 132
MOST_SPLITS = 128
# A tile holds this many bytes of keys and values, or half of it.
TILE_BYTES = 32 * 1024
LEAST_ROWS, MOST_ROWS = 16, 128
# (half tiles, warps, stages, programs on an SM), the default first.
Candidates = tuple[tuple[bool, int, int, int], ...]
EXACT_CANDIDATES: Candidates = (
    (False, 4, 3, 2),
    (True, 4, 4, 4),
    (True, 4, 3, 4),
    (True, 4, 4, 3),
    (False, 4, 3, 3),
    (False, 4, 2, 3),
    (False, 4, 3, 1),
    (True, 2, 4, 4),
    (True, 2, 3, 6),
    (True, 4, 3, 8),
    (False, 8, 3, 2),
    (True, 4, 4, 2),
)
# An INT8 tile is half as large and takes more instructions a byte: more stages, more programs.
INT8_CANDIDATES: Candidates = (
    (False, 4, 4, 3),
    (False, 4, 3, 3),
    (True, 4, 4, 4),
    (True, 4, 5, 4),
    (False, 4, 3, 4),
    (False, 8, 4, 2),
    (False, 4, 4, 2),
    (True, 4, 5, 5),
    (False, 4, 3, 2),
    (True, 2, 5, 6),
    (True, 4, 3, 6),
    (False, 8, 3, 3),
)
HEAD_DIMS = (32, 64, 128, 256)
# The ring kernel: its GPUs, what one program may take there, and its candidates: (half tiles,
# warps, tiles of the ring, programs on an SM), the default first.
RING_CAPABILITY = 9
RING_SHARED_BYTES = 227 * 1024
RING_SCRATCH_BYTES = 5 * 1024  # the weights' change of layout, barriers, and what an SM keeps
RING_HEAD_DIMS = (64, 128)
RING_MOST_GROUP = 16
RING_CANDIDATES: Candidates = (
    (False, 4, 3, 2),
    (True, 4, 6, 2),
    (False, 8, 3, 2),
    (False, 8, 6, 1),
)


def split_configurations(
    shape: LayerShape,
    row_bytes: int,
    candidates: Candidates = EXACT_CANDIDATES,
    most_rows: int | None = None,
) -> tuple[KernelConfig, ...]:
    """Launch parameters worth trying; `row_bytes` is one token's key and value of one KV head, and
    a tile holds `most_rows` at most."""
    found = (configuration(shape, row_bytes, *each, most_rows) for each in candidates)
    return tuple(dict.fromkeys(config for config in found if config is not None))


def configuration(
    shape: LayerShape,
    row_bytes: int,
    half: bool,
    warps: int,
    stages: int,
    on_an_sm: int,
    most_rows: int | None = None,
) -> KernelConfig | None:
    """One candidate for this shape; None where its tiles do not fit in shared memory."""
    block_n = rows_of(TILE_BYTES // 2 if half else TILE_BYTES, row_bytes)
    block_n = min(block_n, most_rows or block_n)
    if (stages - 1) * block_n * row_bytes + SCRATCH_BYTES > SHARED_BYTES:
        return None
    splits = whole_waves(
        pairs=shape.batch * shape.kv_heads,
        at_once=sm_count(shape.device) * on_an_sm,
        most=min(MOST_SPLITS, -(-shape.capacity // block_n)),
    )
    return KernelConfig(block_n=block_n, splits=splits, num_warps=warps, num_stages=stages)


def ring_configurations(shape: LayerShape, row_bytes: int) -> tuple[KernelConfig, ...]:
    """Launch parameters of the ring kernel worth trying, where it runs."""
    found = []
    for half, warps, tiles, on_an_sm in RING_CANDIDATES:
        block_n = rows_of(TILE_BYTES // 2 if half else TILE_BYTES, row_bytes)
        if tiles * block_n * row_bytes + RING_SCRATCH_BYTES > RING_SHARED_BYTES // on_an_sm:
            continue
        splits = whole_waves(
            pairs=shape.batch * shape.kv_heads,
            at_once=sm_count(shape.device) * on_an_sm,
            most=min(MOST_SPLITS, -(-shape.capacity // block_n)),
        )
        found.append(KernelConfig(block_n, splits, warps, num_stages=1, ring=tiles))
    return tuple(dict.fromkeys(found))


def has_ring(shape: LayerShape) -> bool:
    """Whether the ring kernel runs this layer: its GPU, 16 bits, its head dimensions and groups."""
    return (
        shape.device.type == "cuda"
        and torch.cuda.get_device_capability(shape.device)[0] == RING_CAPABILITY
        and shape.dtype.itemsize == 2
        and shape.head_dim in RING_HEAD_DIMS
        and shape.group <= RING_MOST_GROUP
    )


def rows_of(tile_bytes: int, row_bytes: int) -> int:
    """The largest power of two of rows that a tile holds, within what the kernels take."""
    rows = 1 << (tile_bytes // row_bytes).bit_length() - 1
    return min(max(rows, LEAST_ROWS), MOST_ROWS)


def whole_waves(pairs: int, at_once: int, most: int) -> int:
    """The fewest splits with which `pairs * splits` programs leave under 5 % of the GPU idle.

    Where no number up to `most` does, the one that leaves least idle.
    """

    def busy(splits: int) -> float:
        programs = pairs * splits
        return programs / (-(-programs // at_once) * at_once)

    choices = range(1, most + 1)
    return next((s for s in choices if busy(s) >= 0.95), max(choices, key=busy))


def sm_count(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; `ASSUMED_SMS` for anything else."""
    if device.type != "cuda":
        return ASSUMED_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def workspace(shape: LayerShape, config: KernelConfig) -> SplitWorkspace:
    """Fresh workspaces for one layer."""
    return SplitWorkspace.allocate(
        shape.batch * shape.kv_heads, config.splits, shape.group, shape.head_dim, shape.device
    )


def require_triton(name: str, shape: LayerShape) -> None:
    """Raise `Unsupported` where the project's Triton kernels cannot run."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if shape.device.type != "cuda" and not interpreted:
        raise Unsupported(
            f"{name} needs a CUDA GPU, and the device is {shape.device.type}",
            hint="`attnbench parity` runs it on a CPU under Triton's interpreter",
        )
    if shape.device.type == "cuda" and interpreted:
        raise Unsupported(f"{name} would be interpreted", hint="unset TRITON_INTERPRET")
    if shape.head_dim not in HEAD_DIMS:
        raise Unsupported(
            f"{name} has no kernel for head dimension {shape.head_dim}",
            hint=f"it has {', '.join(map(str, HEAD_DIMS))}",
        )
    dtypes = {torch.float16, torch.float32} | ({torch.bfloat16} if not interpreted else set())
    if shape.dtype not in dtypes:
        raise Unsupported(
            f"{name} does not run in {shape.dtype} here",
            hint="float16 and float32 run anywhere, bfloat16 on a GPU alone",
        )
