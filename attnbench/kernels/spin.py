"""Waits on the device for a given time and writes down how long it really waited.

Two clocks of the device are read, because neither does alone. `%clock64` counts the SM's cycles: it
ends the wait, and resolves a nanosecond, but its frequency must be found out. `%globaltimer` counts
nanoseconds and says how long the wait was, but on some GPUs it moves only every 1.024 µs. As the
wait does not end on one of its ticks, the differences are right on average, and their sum over
steps is what is kept: for 100 steps the mean is known to 0.05 µs on the coarsest timer.

Inline assembly cannot be interpreted, so these kernels need a GPU (or only a compiler).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Places of the record, int64.
CYCLES_PER_MS, STEPS, WAITED_NS = 0, 1, 2
RECORD_SIZE = 3
NS_PER_MS = tl.constexpr(1_000_000)
CALIBRATION_NS = tl.constexpr(500_000)  # long against a tick of the timer: 0.2 %


@triton.jit
def _cycles():
    return tl.inline_asm_elementwise(
        "mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def _nanoseconds():
    return tl.inline_asm_elementwise(
        "mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def calibrate_kernel(record):
    """How many cycles of its SM a millisecond has, into the record, whose counts it clears."""
    began_ns = _nanoseconds()
    began = _cycles()
    now_ns = began_ns
    while now_ns - began_ns < CALIBRATION_NS:
        now_ns = _nanoseconds()
    cycles = _cycles() - began
    zero = cycles - cycles
    tl.store(record, cycles * NS_PER_MS // (now_ns - began_ns))
    tl.store(record + 1, zero)
    tl.store(record + 2, zero)


@triton.jit(do_not_specialize=["wait_ns"])
def spin_kernel(record, wait_ns):
    """Wait, then add one step and its nanoseconds to the record."""
    cycles = wait_ns * tl.load(record) // NS_PER_MS
    began_ns = _nanoseconds()
    began = _cycles()
    now = began
    while now - began < cycles:
        now = _cycles()
    waited_ns = _nanoseconds() - began_ns
    tl.store(record + 1, tl.load(record + 1) + 1)
    tl.store(record + 2, tl.load(record + 2) + waited_ns)


def calibrate(record: Tensor) -> None:
    """Prepare a record, int64 [RECORD_SIZE] on the GPU; takes half a millisecond there."""
    calibrate_kernel[(1,)](record, num_warps=1)


def spin(record: Tensor, wait_ns: int) -> None:
    """Keep the current stream busy for so many nanoseconds; nothing is asked of the host."""
    spin_kernel[(1,)](record, wait_ns, num_warps=1)
