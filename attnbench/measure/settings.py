"""The settings of a process that every arm of a session runs under, and how to put them back."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _pop_mode

from attnbench.measure.dispatcher import Kernels, all_operators, registrations, step_operators
from attnbench.measure.precision import precision, set_precision

# Compilers of kernels note down here, on first use, where their caches and tools lie.
COMPILERS = ("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_", "TORCH_WARM_POOL", "CUDA_HOME")
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
AUTOCAST = ("cpu", "cuda")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")


@dataclass(frozen=True)
class Flag:
    """One setting of the process: how to read it and, where that is possible, how to set it.

    `slow`: reading it takes longer than there is time for around every visit.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None = None
    slow: bool = False


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


def _signal_handlers() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in signal.Signals}


def _set_signal_handlers(before: dict[str, Any]) -> None:
    for name, handler in before.items():
        number = signal.Signals[name]
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _timers() -> list[tuple[bool, float]]:
    """Whether each is set, and its interval: one that rings once has none."""
    now = (signal.getitimer(which) for which in TIMERS)
    return [(left_s > 0, interval_s) for left_s, interval_s in now]


def _set_timers(before: list[tuple[bool, float]]) -> None:
    """One that rang once, or is to ring once, cannot be set as it was: it is off."""
    for which, now, (is_set, interval_s) in zip(TIMERS, _timers(), before, strict=True):
        if now != (is_set, interval_s):
            signal.setitimer(which, interval_s, interval_s)


def _set_collector_callbacks(before: list[Any]) -> None:
    gc.callbacks[:] = before


def _set_onednn_deterministic(before: bool) -> None:
    torch._C._set_mkldnn_deterministic(before)


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
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
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
        Flag("float32 precision", precision, set_precision),
        Flag("flash SDPA", cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        Flag("math SDPA", cuda.math_sdp_enabled, cuda.enable_math_sdp),
        Flag("efficient SDPA", cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        Flag("cuDNN SDPA", cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        Flag("SDPA order", torch._C._get_sdp_priority_order, torch._C._set_sdp_priority_order),
        Flag(
            "narrow sums of math SDPA",
            torch._C._get_math_sdp_allow_fp16_bf16_reduction,
            torch._C._set_math_sdp_allow_fp16_bf16_reduction,
        ),
        *_of_products(),
        *(_module_flag(cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
        Flag("flush denormals", _flushes_denormals, torch.set_flush_denormal),
        Flag("collector", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        Flag("collector thresholds", gc.get_threshold, lambda kept: gc.set_threshold(*kept)),
        Flag("collector callbacks", lambda: list(gc.callbacks), _set_collector_callbacks),
        Flag("switch interval", sys.getswitchinterval, sys.setswitchinterval),
        Flag("trace function", sys.gettrace, sys.settrace),
        Flag("profile function", sys.getprofile, sys.setprofile),
        Flag("trace function of new threads", threading.gettrace, threading.settrace),
        Flag("profile function of new threads", threading.getprofile, threading.setprofile),
        Flag(
            "processors",
            lambda: os.sched_getaffinity(0),
            lambda before: os.sched_setaffinity(0, before),
        ),
        Flag("priority", lambda: os.getpriority(os.PRIO_PROCESS, 0)),
        Flag("environment", _environment, _set_environment),
        Flag("oneDNN", lambda: torch.backends.mkldnn.enabled, _set_onednn),
        Flag("deterministic oneDNN", torch._C._get_mkldnn_deterministic, _set_onednn_deterministic),
        Flag("profiler", _profiling),
        # The timers first: the signal of one that still runs would meet no handler, and kill.
        Flag("timers", _timers, _set_timers),
        Flag("signal handlers", _signal_handlers, _set_signal_handlers),
        *(_hooks(name) for name in GLOBAL_HOOKS),
        *_of_the_dispatcher(device),
    )
    return (*shared, *_of_cuda()) if device.type == "cuda" else shared


def _of_products() -> tuple[Flag, ...]:
    """How the libraries for products of matrices are chosen, and how exactly they add up."""
    c = torch._C
    return (
        Flag(
            "float16 sums",
            c._get_cublas_allow_fp16_reduced_precision_reduction,
            lambda before: c._set_cublas_allow_fp16_reduced_precision_reduction(*before),
        ),
        Flag(
            "bfloat16 sums",
            c._get_cublas_allow_bf16_reduced_precision_reduction,
            lambda before: c._set_cublas_allow_bf16_reduced_precision_reduction(*before),
        ),
        Flag(
            "float16 accumulation",
            c._get_cublas_allow_fp16_accumulation,
            c._set_cublas_allow_fp16_accumulation,
        ),
        Flag("library of products", c._get_blas_preferred_backend, c._set_blas_preferred_backend),
    )


def _of_the_dispatcher(device: torch.device) -> tuple[Flag, ...]:
    known = frozenset(torch.library._impls)
    return (
        Flag("dispatcher", Kernels(step_operators(device))),
        Flag("registrations", partial(registrations, known)),
        Flag("whole dispatcher", Kernels(all_operators()), slow=True),
    )


def _of_cuda() -> tuple[Flag, ...]:
    return (
        _module_flag(torch.backends.cudnn, "benchmark_limit"),
        Flag("current stream", torch.cuda.current_stream, torch.cuda.set_stream),
        Flag("current device", torch.cuda.current_device, torch.cuda.set_device),
        Flag("sync debug mode", torch.cuda.get_sync_debug_mode, torch.cuda.set_sync_debug_mode),
    )
