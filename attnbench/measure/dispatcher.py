"""What torch's dispatcher calls for every operator, as text that an arm cannot change unseen.

Reading all of it takes some fifty milliseconds, so it is read when the pilot has tried an arm, at
the end of each group and after all probes. Around every visit two things are read: the operators
that exact attention and a model's step are made of, and the names under which Python registered
kernels for any operator of torch.
"""

from __future__ import annotations

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


class Kernels:
    """The kernels of some operators, by operator, and what the dispatcher calls where one has none.

    As long as it says the same it is not read again, only compared.
    """

    def __init__(self, operators: tuple[str, ...]) -> None:
        self._operators = operators
        self._said: tuple[str, ...] = ()
        self._found: dict[str, str] = {}

    def __call__(self) -> dict[str, str]:
        """As they are now."""
        said = (
            *map(torch._C._dispatch_dump, self._operators),
            torch._C._dispatch_dump_table(FALLBACKS),
        )
        if said != self._said:
            names = (*self._operators, "fallbacks")
            self._said, self._found = said, dict(zip(names, map(_where_it_runs, said), strict=True))
        return self._found


def registrations(known: frozenset[str]) -> dict[str, str]:
    """Kernels of torch's own operators that came by `torch.library` since those that are known."""
    new = (name for name in torch.library._impls.difference(known) if name.startswith(NAMESPACE))
    return {name: "" for name in new if not name.rpartition("/")[2].startswith(OTHER_KEYS)}


def _where_it_runs(dump: str) -> str:
    lines = dump.splitlines()
    return "\n".join(sorted(line for line in lines if not line.startswith(OTHER_KEYS)))
