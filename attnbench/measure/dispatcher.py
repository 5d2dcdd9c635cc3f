"""What torch's dispatcher calls for every operator, as text that an arm cannot change unseen.

Reading all of it takes some fifty milliseconds, so it is read when the pilot has tried an arm, at
the end of each group and after all probes. Around every visit two things are read: the operators
that exact attention and a model's step are made of, and the names under which Python registered
kernels for any operator of torch.
"""

from __future__ import annotations

from functools import cache

import torch

SHARED = (
    *("scaled_dot_product_attention", "_fused_sdp_choice", "_scaled_dot_product_attention_math"),
    *("matmul", "mm", "bmm", "addmm", "linear", "softmax.int", "_softmax", "mul.Tensor"),
    *("copy_", "cat", "index_copy_", "index_select"),
)
ON_DEVICE = {
    "cpu": ("_scaled_dot_product_flash_attention_for_cpu",),
    "cuda": (
        *("_scaled_dot_product_flash_attention", "_flash_attention_forward"),
        *("_scaled_dot_product_efficient_attention", "_efficient_attention_forward"),
        *("_scaled_dot_product_cudnn_attention", "_cudnn_attention_forward"),
    ),
}
FALLBACKS = "aten::record_stream"  # has hardly a kernel, so that its table shows what is for all
# Of no step that is measured; torch registers there on first use.
OTHER_KEYS = ("Meta", "Tracer", "FuncTorch", "Batched", "Vmap")
NAMESPACE = "aten/"


def step_operators(device: torch.device) -> tuple[str, ...]:
    """What a step is made of on this device."""
    return tuple(f"aten::{name}" for name in (*SHARED, *ON_DEVICE.get(device.type, ())))


def all_operators() -> tuple[str, ...]:
    """Every operator that there is now: one that is added later changes none of them."""
    return tuple(torch._C._dispatch_get_all_op_names())


def kernels(operators: tuple[str, ...]) -> dict[str, str]:
    """Their kernels by operator, and what the dispatcher calls where an operator has none."""
    found = {name: _where_it_runs(torch._C._dispatch_dump(name)) for name in operators}
    return {**found, "fallbacks": _where_it_runs(torch._C._dispatch_dump_table(FALLBACKS))}


def registrations(known: frozenset[str]) -> dict[str, str]:
    """Kernels of torch's own operators that came by `torch.library` since those that are known."""
    new = (name for name in torch.library._impls.difference(known) if name.startswith(NAMESPACE))
    return {name: "" for name in new if not name.rpartition("/")[2].startswith(OTHER_KEYS)}


@cache  # the texts are the same at every look
def _where_it_runs(dump: str) -> str:
    lines = dump.splitlines()
    return "\n".join(sorted(line for line in lines if not line.startswith(OTHER_KEYS)))
