"""How fast memory can be read here and now: what a byte floor is divided by.

Every session measures its own, with the clock and the threads that the arms get.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from attnbench.errors import DoesNotFit
from attnbench.measure.clock import Clock
from attnbench.measure.device import DeviceFacts, last_level_cache_bytes
from attnbench.measure.tasks import Bandwidth

GIB = 1 << 30
CUDA_BUFFER_BYTES = 4 * GIB
CPU_BUFFER_BYTES = GIB
UNKNOWN_CACHE_BYTES = 64 << 20
CUDA_READS, CPU_READS = 20, 4
LEAST_SHARE = 0.8  # of memory clock times bus width; below it the probe itself is doubtful


def read_bandwidth(facts: DeviceFacts, clock: Clock) -> Bandwidth:
    """Read a buffer that no cache holds several times; raises `DoesNotFit` without room for it."""
    if facts.kind == "cuda":
        read_us, buffer_bytes, how = _read_cuda(clock)
    else:
        read_us, buffer_bytes, how = _read_cpu(facts.memory_free_bytes, clock)
    gb_s = buffer_bytes / median(read_us) / 1e3
    return Bandwidth(
        gb_s=gb_s,
        buffer_bytes=buffer_bytes,
        reads=len(read_us),
        read_us=read_us,
        theoretical_gb_s=facts.theoretical_bandwidth_gb_s,
        how=how,
        note=validity(gb_s, facts.theoretical_bandwidth_gb_s),
    )


def validity(gb_s: float, theoretical_gb_s: float) -> str:
    """Why the probe is not to be trusted; empty where it is, or where there is no yardstick."""
    share = gb_s / theoretical_gb_s if theoretical_gb_s else 1.0
    if share < LEAST_SHARE:
        return (
            f"the probe read {gb_s:.0f} GB/s, {share:.0%} of what memory clock and bus width give "
            f"({theoretical_gb_s:.0f} GB/s); {LEAST_SHARE:.0%} are needed"
        )
    if share > 1:
        return (
            f"the probe read {gb_s:.0f} GB/s, more than the {theoretical_gb_s:.0f} GB/s there are"
        )
    return ""


def _read_cuda(clock: Clock) -> tuple[tuple[float, ...], int, str]:
    from attnbench.kernels.read_bandwidth import configurations, read, whole_rounds

    configs = configurations(torch.cuda.get_device_properties(0).multi_processor_count)
    free_bytes, _ = torch.cuda.mem_get_info()
    elements = whole_rounds(min(CUDA_BUFFER_BYTES, free_bytes // 2) // 4, configs)
    cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    if elements * 4 < 2 * cache_bytes:
        raise DoesNotFit(
            f"{free_bytes / GIB:.2f} GiB of free GPU memory do not hold a buffer that exceeds L2"
        )
    buffer = torch.ones(elements, dtype=torch.float32, device="cuda")
    best: tuple[float, ...] = ()
    how = ""
    for config in configs:
        sums = torch.empty(config.programs, dtype=torch.float32, device="cuda")
        timed = _timed(partial(read, buffer, sums, config), CUDA_READS, clock)
        if not best or median(timed) < median(best):
            best, how = timed, f"triton {config}"
    return best, elements * 4, how


def _read_cpu(free_bytes: int, clock: Clock) -> tuple[tuple[float, ...], int, str]:
    cache_bytes = last_level_cache_bytes() or UNKNOWN_CACHE_BYTES
    buffer_bytes = min(4 * cache_bytes, CPU_BUFFER_BYTES, free_bytes // 4)
    buffer = torch.ones(buffer_bytes // 4, dtype=torch.float32)
    read_us = _timed(buffer.sum, CPU_READS, clock)
    return read_us, buffer.numel() * 4, f"torch.sum, {torch.get_num_threads()} threads"


def _timed(read: Callable[[], object], reads: int, clock: Clock) -> tuple[float, ...]:
    """One read, which compiles the kernel, is not counted."""
    clock.time(read, 1)
    return clock.time(read, reads).steps_us
