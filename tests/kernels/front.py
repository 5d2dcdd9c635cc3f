"""A kernel that lets the next one start at once, and only later writes what that one reads."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, globaltimer


@triton.jit(do_not_specialize=["tokens", "wait_ns"])
def _write_late(length, tokens, rows, late, wait_ns, SIZE: tl.constexpr):
    gdc_launch_dependents()
    values = tl.load(late + tl.arange(0, SIZE))
    began = globaltimer()
    while globaltimer() - began < wait_ns:
        pass
    tl.store(length, tokens)
    tl.store(rows + tl.arange(0, SIZE), values)


def write_late(length: Tensor, tokens: int, row: Tensor, late: Tensor, wait_ns: int) -> None:
    """After so long `length` [1] becomes `tokens`, and a cached row [D] becomes `late` [D]."""
    _write_late[(1,)](length, tokens, row, late, wait_ns, SIZE=row.numel())
