"""What a method can change in its process, as values to compare before and after."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import signal
import statistics
import sys
import threading
import time

import torch
from torch.overrides import _get_current_function_mode_stack
from transformers.models.llama import modeling_llama

import attnbench.methods.sdpa
from attnbench.measure import planted, recheck
from attnbench.measure.clock import HostClock
from attnbench.measure.precision import precision
from attnbench.measure.settings import COMPILERS
from attnbench.methods import conformance, reference
from attnbench.protocol import integrity

# What pytest and compilers note down in the environment.
NOTES = ("PYTEST_CURRENT_TEST", *COMPILERS)


def state() -> dict[str, object]:
    """Names, flags, modes, threads, and this process's share of the machine."""
    return {**names(), **flags(), **share()}


def names() -> dict[str, object]:
    """What may be patched."""
    functional = torch.nn.functional
    return {
        "clocks": (time.perf_counter_ns, time.perf_counter, time.monotonic_ns, time.time_ns),
        "statistics": (statistics.median, statistics.fmean, statistics.mean, math.fsum),
        "judges": (torch.equal, torch.allclose, torch.isfinite, torch.Tensor.norm),
        "assert_close": torch.testing.assert_close,
        "sha256": hashlib.sha256,
        "sdpa": (
            functional.scaled_dot_product_attention,
            torch._C._nn.scaled_dot_product_attention,
        ),
        "its sdpa": attnbench.methods.sdpa.scaled_dot_product_attention,
        "its clock": HostClock.time,
        "reference": (reference.exact_attention, reference.exact_attention.__code__),
        "cuda": (torch.cuda.synchronize, torch.cuda.Event.elapsed_time),
        "dispatched sdpa": torch._C._dispatch_has_kernel_for_dispatch_key(
            "aten::scaled_dot_product_attention", "CPU"
        ),
        "kernels of sdpa": torch._C._dispatch_dump(
            "aten::_scaled_dot_product_flash_attention_for_cpu"
        ),
        "model": (modeling_llama.apply_rotary_pos_emb, torch.nn.Linear.forward),
        "numbers": (
            dict(integrity.ERROR_BOUND),
            planted.MOST_WEIGHT,
            conformance.conform.__kwdefaults__,
            conformance.COVERING[0].tokens,
        ),
        "hiding names": ("nan_to_num" in vars(torch.Tensor), "float" in vars(recheck)),
        "module hooks": len(torch.nn.modules.module._global_forward_hooks),
    }


def flags() -> dict[str, object]:
    """What may be set."""
    backends = torch.backends
    return {
        "threads": torch.get_num_threads(),
        "denormals": bool((torch.tensor(1e-40) * 1.0) == 0),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "sdp": (backends.cuda.flash_sdp_enabled(), backends.cuda.mem_efficient_sdp_enabled()),
        "precision": precision(),
        "mkldnn": backends.mkldnn.enabled,
        "gradients": torch.is_grad_enabled(),
        "modes": len(_get_current_function_mode_stack()),
        "profiler": sys.getprofile(),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "timer": signal.getitimer(signal.ITIMER_VIRTUAL)[1],
        "handler": signal.getsignal(signal.SIGVTALRM),
        "stream": torch.cuda.current_stream() if torch.cuda.is_initialized() else None,
    }


def share() -> dict[str, object]:
    """What it has of the machine."""
    return {
        "environment": {n: v for n, v in os.environ.items() if not n.startswith(NOTES)},
        "affinity": os.sched_getaffinity(0),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "running": sorted(t.name for t in threading.enumerate() if t.name.endswith("(burn)")),
    }
