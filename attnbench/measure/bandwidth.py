"""How fast memory can be read here and now: what a byte floor is divided by.

Every session measures its own, with the clock and the threads that the arms get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from attnbench.errors import DoesNotFit
from attnbench.measure.answers import Bandwidth
from attnbench.measure.clock import Clock
from attnbench.measure.device import DeviceFacts, last_level_cache_bytes

GIB = 1 << 30
CUDA_BUFFER_BYTES = 4 * GIB
CPU_BUFFER_BYTES = GIB
UNKNOWN_CACHE_BYTES = 64 << 20
CUDA_READS, CPU_READS = 20, 4
LEAST_SHARE = 0.8  # of memory clock times bus width; below it the probe itself is doubtful


@dataclass(frozen=True)
class Reader:
    """One way to read a buffer that no cache holds, compiled."""

    read: Callable[[], object]
    buffer_bytes: int
    reads: int
    how: str


def readers(facts: DeviceFacts) -> tuple[Reader, ...]:
    """Ways to read all of a buffer, each tried once; raises `DoesNotFit` without room for it."""
    found = _cuda_readers() if facts.kind == "cuda" else (_cpu_reader(facts.memory_free_bytes),)
    for reader in found:
        reader.read()
    if facts.kind == "cuda":
        torch.cuda.synchronize()
    return found


def read_bandwidth(facts: DeviceFacts, clock: Clock, ready: Sequence[Reader] = ()) -> Bandwidth:
    """What the fastest of the `ready` readers, by default of all there are, reaches."""
    timed = [
        (clock.time(reader.read, reader.reads).steps_us, reader)
        for reader in (ready or readers(facts))
    ]
    read_us, reader = min(timed, key=lambda each: median(each[0]))
    gb_s = reader.buffer_bytes / median(read_us) / 1e3
    return Bandwidth(
        gb_s=gb_s,
        buffer_bytes=reader.buffer_bytes,
        reads=len(read_us),
        read_us=read_us,
        theoretical_gb_s=facts.theoretical_bandwidth_gb_s,
        how=reader.how,
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


def _cuda_readers() -> tuple[Reader, ...]:
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
    return tuple(
        Reader(
            read=partial(read, buffer, torch.empty(config.programs, device="cuda"), config),
            buffer_bytes=elements * 4,
            reads=CUDA_READS,
            how=f"triton {config}",
        )
        for config in configs
    )


def _cpu_reader(free_bytes: int) -> Reader:
    cache_bytes = last_level_cache_bytes() or UNKNOWN_CACHE_BYTES
    buffer_bytes = min(4 * cache_bytes, CPU_BUFFER_BYTES, free_bytes // 4)
    buffer = torch.ones(buffer_bytes // 4, dtype=torch.float32)
    return Reader(
        read=buffer.sum,
        buffer_bytes=buffer.numel() * 4,
        reads=CPU_READS,
        how=f"torch.sum, {torch.get_num_threads()} threads",
    )
