"""What one can change in a process for whoever runs in it next, and how to take it back."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

TakeBack = Callable[[], object]
SLOWER_S = 2e-4
HOARD = 300  # blocks of each size


WHATS: dict[str, Callable[[], TakeBack]] = {}  # what an arm may leave behind, by name


def what(change: Callable[[], TakeBack]) -> Callable[[], TakeBack]:
    """Add a change to `WHATS`; it returns how to take it back."""
    WHATS[change.__name__] = change
    return change


@what
def threads() -> TakeBack:
    """One where there were several, and several where there was one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 8)
    return lambda: torch.set_num_threads(before)


@what
def denormals() -> TakeBack:
    before = bool((torch.tensor(1e-40) * 1.0) == 0)
    torch.set_flush_denormal(not before)
    return lambda: torch.set_flush_denormal(before)


@what
def default_dtype() -> TakeBack:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(before)


@what
def default_device() -> TakeBack:
    """The one that it is anyway: every call now goes through a Python mode."""
    torch.set_default_device("cpu")
    return lambda: torch.set_default_device(None)


@what
def deterministic() -> TakeBack:
    """By the binding: the public function imports a compiler that sets environment variables."""
    before = torch.are_deterministic_algorithms_enabled()
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    return lambda: torch._C._set_deterministic_algorithms(before)


@what
def sdp_backends() -> TakeBack:
    """Leaves the slowest."""
    flags = torch.backends.cuda
    before = (
        flags.flash_sdp_enabled(),
        flags.mem_efficient_sdp_enabled(),
        flags.cudnn_sdp_enabled(),
    )
    enable = (flags.enable_flash_sdp, flags.enable_mem_efficient_sdp, flags.enable_cudnn_sdp)
    for set_flag in enable:
        set_flag(False)
    return lambda: [set_flag(flag) for set_flag, flag in zip(enable, before, strict=True)]


@what
def matmul_precision() -> TakeBack:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    return lambda: torch.set_float32_matmul_precision(before)


@what
def new_precision() -> TakeBack:
    """By PyTorch's new name, after which it refuses to tell the old one."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"

    def take_back() -> None:
        torch.backends.cuda.matmul.fp32_precision = before

    return take_back


@what
def mkldnn() -> TakeBack:
    """Linear layers without oneDNN."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.set_flags(not before)
    return lambda: torch.backends.mkldnn.set_flags(before)


@what
def gradients() -> TakeBack:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(not before)
    return lambda: torch.set_grad_enabled(before)


class Slower(TorchFunctionMode):
    """Waits before every function of torch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        time.sleep(SLOWER_S)
        return func(*args, **(kwargs or {}))


@what
def mode() -> TakeBack:
    entered = Slower()
    entered.__enter__()

    def take_back() -> None:
        if entered in _get_current_function_mode_stack():
            entered.__exit__(None, None, None)

    return take_back


@what
def profiler() -> TakeBack:
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: None)
    return lambda: sys.setprofile(before)


@what
def module_hook() -> TakeBack:
    """On every module of every model."""
    hook = nn.modules.module.register_module_forward_hook(lambda *_: time.sleep(SLOWER_S))
    return hook.remove


@what
def collector_off() -> TakeBack:
    before = gc.isenabled()
    gc.disable()
    return gc.enable if before else gc.disable


@what
def garbage() -> TakeBack:
    """A collection every few allocations, over a heap that takes long to walk."""
    before = gc.get_threshold()
    heap = [[number] for number in range(30_000)]
    gc.set_threshold(50, 1, 1)
    return lambda: (gc.set_threshold(*before), heap.clear())


@what
def burner() -> TakeBack:
    """Takes turns with whoever holds the interpreter, on a core that others could use."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(20_000))

    thread = threading.Thread(target=burn, daemon=True)
    thread.start()
    return lambda: (stop.set(), thread.join())


@what
def alarm() -> TakeBack:
    """Interrupts the main thread a thousand times a second of its CPU time."""
    before = signal.signal(signal.SIGVTALRM, lambda *_: sum(range(5_000)))
    signal.setitimer(signal.ITIMER_VIRTUAL, 1e-3, 1e-3)

    def take_back() -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)

    return take_back


@what
def environment() -> TakeBack:
    """For whatever reads it late: libraries at their first use, child processes."""
    new = {
        "OMP_NUM_THREADS": "1",
        "CUDA_LAUNCH_BLOCKING": "1",
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)

    def take_back() -> None:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    return take_back


@what
def fragments() -> TakeBack:
    """Many blocks of odd sizes, every second one given back."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (700, 5_000, 33_000)
    blocks = [torch.empty(size + n % 7, device=device) for n in range(HOARD) for size in sizes]
    del blocks[::2]
    return blocks.clear


@what
def one_core() -> TakeBack:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    return lambda: os.sched_setaffinity(0, before)


@what
def niceness() -> TakeBack:
    """Cannot be taken back without privilege: for a process of its own."""
    os.nice(5)
    return lambda: None
