"""Which products of few rows there are, and how a kernel of the project's own is launched for one.

Data alone: records and tables hold it, in processes that import neither torch nor triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MOST_ROWS = 16  # what the kernels take
PLAIN = "plain"


@dataclass(frozen=True)
class ProductShape:
    """x [rows, depth] times weights [columns, depth] transposed.

    `form`: "plain", or what the kernel does besides, joined by "+": "norm" (x is RMS-normalised as
    it is read), "gate" (the upper half of the columns goes through SiLU and is multiplied with the
    lower one), "residual" (added to the result). A bias may be added in each.
    """

    rows: int
    columns: int
    depth: int
    form: str = PLAIN


@dataclass(frozen=True)
class ProductLaunch:
    """A kernel and its launch parameters.

    A tile is `block_n` rows of weights deep in `num_warps` stretches, one a warp; `on_an_sm`
    programs a multiprocessor walk over all tiles. Of `ring`: `tiles` in flight, and the next kernel
    may start `let_go` tiles before the end (0: when all are asked for). Of `triton`: stretches
    together are `block_k` deep, `tiles` stages, and `ahead` columns are prefetched.
    """

    kernel: Literal["ring", "triton"]
    block_n: int
    num_warps: int
    on_an_sm: int
    tiles: int
    let_go: int = 0
    block_k: int = 0
    ahead: int = 0


def form_of(*, norm: bool, gated: bool, residual: bool) -> str:
    """The `form` of a product with these parts."""
    parts = (("norm", norm), ("gate", gated), ("residual", residual))
    return "+".join(name for name, there in parts if there) or PLAIN


@dataclass(frozen=True)
class ChosenProduct:
    """A product of a model's step, and the launch that was the fastest for it there."""

    shape: ProductShape
    launch: ProductLaunch
