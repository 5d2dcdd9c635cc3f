"""Reads a buffer once and adds it up: how fast this GPU's memory can be read at best.

Nothing is written but one sum a program, and nothing is reused, so the time is the time of the
reads. Each program strides over the buffer, so that neighbouring programs read neighbouring tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class ReadConfig:
    """`tile` elements a load, `programs` of `num_warps` warps, each reading every `programs`-th."""

    tile: int
    programs: int
    num_warps: int


@triton.jit
def _read_kernel(
    buffer, sums, TILES_EACH: tl.constexpr, PROGRAMS: tl.constexpr, TILE: tl.constexpr
):
    program = tl.program_id(0)
    offsets = tl.arange(0, TILE)
    total = tl.zeros([TILE], dtype=tl.float32)
    for i in range(TILES_EACH):
        # 64 bits: a buffer of 2 GiB and more has offsets that do not fit in 32.
        tile = (i * PROGRAMS + program).to(tl.int64)
        total += tl.load(buffer + tile * TILE + offsets)
    tl.store(sums + program, tl.sum(total, axis=0))


def read(buffer: Tensor, sums: Tensor, config: ReadConfig) -> None:
    """Sum a float32 buffer of whole rounds of tiles into `sums` [programs], float32."""
    rounds, rest = divmod(buffer.numel(), config.tile * config.programs)
    if rest:
        raise ValueError(f"{buffer.numel()} elements are not whole rounds of {config}")
    _read_kernel[(config.programs,)](
        buffer,
        sums,
        TILES_EACH=rounds,
        PROGRAMS=config.programs,
        TILE=config.tile,
        num_warps=config.num_warps,
    )


def configurations(processors: int) -> tuple[ReadConfig, ...]:
    """Launches worth trying on a GPU with so many multiprocessors."""
    return tuple(
        ReadConfig(tile, processors * each, warps)
        for tile, each, warps in ((4096, 4, 8), (8192, 2, 8), (2048, 8, 4), (4096, 8, 4))
    )


def whole_rounds(elements: int, configs: tuple[ReadConfig, ...]) -> int:
    """The most elements, at most `elements`, that every configuration reads in whole rounds."""
    round_of_all = math.lcm(*(config.tile * config.programs for config in configs))
    return elements // round_of_all * round_of_all
