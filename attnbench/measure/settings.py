"""The settings of a process that every arm of a session runs under, and how to put them back."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _pop_mode

# Operators whose kernels in torch's dispatcher an arm could replace under everybody.
OPERATORS = ("scaled_dot_product_attention", "softmax.int", "matmul", "copy_", "index_select")
RUNTIME_KEYS = frozenset(
    {
        "CPU",
        "CUDA",
        "AutogradCPU",
        "AutogradCUDA",
        "CompositeImplicitAutograd",
        "CompositeExplicitAutograd",
        "Autograd[alias]",
        "CompositeImplicitAutograd[alias]",
        "CompositeExplicitAutograd[alias]",
    }
)
# Compilers of kernels note down here, on first use, where their caches and tools lie.
COMPILERS = ("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_", "TORCH_WARM_POOL", "CUDA_HOME")
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
AUTOCAST = ("cpu", "cuda")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


@dataclass(frozen=True)
class Flag:
    """One setting of the process: how to read it and, where that is possible, how to set it."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None = None


def _module_flag(module: Any, name: str) -> Flag:
    return Flag(
        f"{module.__name__.removeprefix('torch.')}.{name}",
        lambda: getattr(module, name),
        lambda value: setattr(module, name, value),
    )


def _flushes_denormals() -> bool:
    return bool((torch.tensor([1e-40]) * 1).item() == 0)


def _set_onednn(enabled: bool) -> None:
    torch.backends.mkldnn.set_flags(enabled)  # type: ignore[no-untyped-call]


def _profiling() -> bool:
    return bool(torch._C._autograd._profiler_enabled())


def _kernels_of(operator: str) -> str:
    """What the dispatcher calls for an operator where it runs, as text.

    Other keys (meta, tracing) are filled in by parts of torch that are imported late.
    """
    lines = torch._C._dispatch_dump(f"aten::{operator}").splitlines()
    return "\n".join(sorted(line for line in lines if line.partition(":")[0] in RUNTIME_KEYS))


def _signal_handlers() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in signal.Signals}


def _set_signal_handlers(before: dict[str, Any]) -> None:
    for name, handler in before.items():
        number = signal.Signals[name]
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _timers() -> list[float]:
    return [signal.getitimer(which)[1] for which in TIMERS]


def _set_timers(before: list[float]) -> None:
    for which, now, interval in zip(TIMERS, _timers(), before, strict=True):
        if now != interval:
            signal.setitimer(which, interval, interval)


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(kind) for kind in AUTOCAST]


def _set_autocast(before: list[bool]) -> None:
    for kind, enabled in zip(AUTOCAST, before, strict=True):
        torch.set_autocast_enabled(kind, enabled)


def _function_modes() -> int:
    """Without that of a default device, which is a setting of its own."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return sum(not isinstance(mode, DeviceContext) for mode in modes)


def _leave_function_modes(before: int) -> None:
    while _function_modes() > before:
        torch._C._pop_torch_function_stack()


def _leave_dispatch_modes(before: int) -> None:
    while torch._C._len_torch_dispatch_stack() > before:
        _pop_mode()


def _hooks(name: str) -> Flag:
    hooks = getattr(nn_module, name)

    def put_back(before: list[tuple[int, Any]]) -> None:
        hooks.clear()
        hooks.update(before)

    return Flag(f"hooks {name}", lambda: list(hooks.items()), put_back)


def _default_device() -> tuple[torch.device, int]:
    """And the modes that see to it: naming a default leaves one on every call of torch."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return torch.get_default_device(), sum(isinstance(mode, DeviceContext) for mode in modes)


def _set_default_device(before: tuple[torch.device, int]) -> None:
    device, modes = before
    torch.set_default_device(device if modes else None)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(COMPILERS)}


def _set_environment(before: dict[str, str]) -> None:
    for name in set(_environment()) - set(before):
        del os.environ[name]
    os.environ.update(before)


def flags(device: torch.device) -> tuple[Flag, ...]:
    """Every setting that is compared."""
    cuda, cudnn, matmul = torch.backends.cuda, torch.backends.cudnn, torch.backends.cuda.matmul
    shared = (
        # The modes first: with one that raises nothing else can be read.
        Flag("torch function modes", _function_modes, _leave_function_modes),
        Flag("torch dispatch modes", torch._C._len_torch_dispatch_stack, _leave_dispatch_modes),
        Flag("threads", torch.get_num_threads, torch.set_num_threads),
        Flag("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        Flag("default device", _default_device, _set_default_device),
        Flag("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        Flag("inference mode", torch.is_inference_mode_enabled),
        Flag("autocast", _autocast, _set_autocast),
        Flag("anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        Flag(
            "deterministic algorithms",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        Flag(
            "matmul precision",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        Flag("flash SDPA", cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        Flag("math SDPA", cuda.math_sdp_enabled, cuda.enable_math_sdp),
        Flag("efficient SDPA", cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        Flag("cuDNN SDPA", cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        *(_module_flag(cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
        Flag(
            "cuda.matmul.allow_fp16_reduced_precision_reduction",
            lambda: matmul.allow_fp16_reduced_precision_reduction,
            lambda value: setattr(matmul, "allow_fp16_reduced_precision_reduction", value),
        ),
        Flag("flush denormals", _flushes_denormals, torch.set_flush_denormal),
        Flag("collector", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        Flag("collector thresholds", gc.get_threshold, lambda kept: gc.set_threshold(*kept)),
        Flag("switch interval", sys.getswitchinterval, sys.setswitchinterval),
        Flag("trace function", sys.gettrace, sys.settrace),
        Flag("profile function", sys.getprofile, sys.setprofile),
        Flag(
            "processors",
            lambda: os.sched_getaffinity(0),
            lambda before: os.sched_setaffinity(0, before),
        ),
        Flag("priority", lambda: os.getpriority(os.PRIO_PROCESS, 0)),
        Flag("environment", _environment, _set_environment),
        Flag("oneDNN", lambda: torch.backends.mkldnn.enabled, _set_onednn),
        Flag("profiler", _profiling),
        # The timers first: the signal of one that still runs would meet no handler, and kill.
        Flag("timers", _timers, _set_timers),
        Flag("signal handlers", _signal_handlers, _set_signal_handlers),
        *(_hooks(name) for name in GLOBAL_HOOKS),
        *(Flag(f"aten::{name}", partial(_kernels_of, name)) for name in OPERATORS),
    )
    return (*shared, *_of_cuda()) if device.type == "cuda" else shared


def _of_cuda() -> tuple[Flag, ...]:
    return (
        Flag("current stream", torch.cuda.current_stream, torch.cuda.set_stream),
        Flag("current device", torch.cuda.current_device, torch.cuda.set_device),
        Flag("sync debug mode", torch.cuda.get_sync_debug_mode, torch.cuda.set_sync_debug_mode),
    )
