"""Counts the memory of this process, as far as the device's allocator and the system tell.

Allocated and peak bytes are relative to when the counter was made; process bytes are absolute.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path
from typing import Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor

from attnbench.errors import Unsupported
from attnbench.measure.nvml import Nvml, process_bytes

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what the kernel takes as: the peak resident size starts again from now


class Footprint(Protocol):
    """What can be counted, and where each figure comes from."""

    allocated_source: str
    peak_source: str
    process_source: str

    def allocated_bytes(self) -> int:
        """Bytes held by tensors that were not there when the counter was made."""

    def restart_peak(self) -> None:
        """Forget the peak so far."""

    def peak_bytes(self) -> int:
        """The most bytes held since the peak was restarted, above those at the beginning."""

    def reserved_bytes(self) -> int | None:
        """Bytes that the allocator keeps from the device, None where there is none."""

    def process_bytes(self) -> int | None:
        """Bytes of this process, None where they cannot be asked."""


def footprint(device: torch.device) -> Footprint:
    """The counter for memory of `device`."""
    return CudaFootprint() if device.type == "cuda" else CpuFootprint()


class CudaFootprint:
    """By torch's caching allocator, and by NVML."""

    allocated_source = "CUDA caching allocator"
    peak_source = "CUDA caching allocator"

    def __init__(self) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what was there before is not this counter's reserve
        self._before = torch.cuda.memory_allocated()
        self.process_source = "NVML"
        try:
            uuid = torch.cuda.get_device_properties(0).uuid
            self._nvml: Nvml | None = Nvml.by_uuid(f"GPU-{uuid}")
        except Unsupported as refusal:
            self._nvml = None
            self.process_source = refusal.message

    def allocated_bytes(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() - self._before

    def restart_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self._before

    def reserved_bytes(self) -> int | None:
        return torch.cuda.memory_reserved()

    def process_bytes(self) -> int | None:
        return None if self._nvml is None else process_bytes(self._nvml)


class CpuFootprint:
    """By walking the living tensors, since torch counts no CPU allocations, and by the system.

    The walk sees every tensor that Python can reach, whether or not a method names it in
    `tensors()`; the peak is that of the resident set, so it also holds what libraries touch.
    """

    allocated_source = "living tensors"
    process_source = "resident set"

    def __init__(self) -> None:
        self._before = living_storage_bytes()
        self._resident_before = resident_bytes()
        self.peak_source = "peak of the resident set"
        self.restart_peak()

    def allocated_bytes(self) -> int:
        gc.collect()
        return living_storage_bytes() - self._before

    def restart_peak(self) -> None:
        trim()
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
        except OSError:
            self.peak_source = "peak of the resident set since the process began"

    def peak_bytes(self) -> int:
        return max(0, _status_bytes("VmHWM") - self._resident_before)

    def reserved_bytes(self) -> int | None:
        return None

    def process_bytes(self) -> int | None:
        return resident_bytes()


def living_storage_bytes(kind: str = "cpu") -> int:
    """Bytes of the distinct storages, on this kind of device, of every tensor that Python's
    collector tracks; sparse ones have no storage of their own, a compiler's stand-ins no memory."""
    objects = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    tensors = (_unwrapped(tensor) for tensor in objects)
    real = (tensor for tensor in tensors if not issubclass(type(tensor), FakeTensor))
    dense = (tensor for tensor in real if tensor.layout is torch.strided)
    found = (tensor.untyped_storage() for tensor in dense if tensor.device.type == kind)
    by_address = {_address(storage): storage.nbytes() for storage in found}
    return sum(size for address, size in by_address.items() if address is not None)


def _unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor behind what `torch.func` maps over: the outer one has no storage to ask for.

    Compiling FlexAttention leaves such tensors alive.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _address(storage: torch.UntypedStorage) -> int | None:
    try:
        return storage.data_ptr()
    except RuntimeError:  # of a stand-in, which torch does not let one ask
        return None


def resident_bytes() -> int:
    """The resident set of this process, without what it has freed."""
    trim()
    return _status_bytes("VmRSS")


def trim() -> None:
    """Let the C library give back to the system what it has freed."""
    ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise Unsupported(f"the system does not tell {field} of a process")
    return int(found[1]) * 1024
