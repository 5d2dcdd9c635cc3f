"""How float32 is multiplied: torch has an old and a new set of names for it, and mixes them badly.

A process that used both may not read the old ones any more: torch raises. So both are read, and an
old one that raises reads as `MIXED`. Put back, the old names come first: each sets new ones too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MIXED = "mixed"
UNSET = "none"  # of the new names, which then is the same as full precision
FULL = "ieee"
NEW = (
    ("generic", "all"),
    *(("cuda", of) for of in ("all", "matmul", "conv", "rnn")),
    *(("mkldnn", of) for of in ("all", "matmul", "conv", "rnn")),
)
OLD: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "float32_matmul_precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "cuda.matmul.allow_tf32": (
        torch._C._get_cublas_allow_tf32,
        torch._C._set_cublas_allow_tf32,
    ),
    "cudnn.allow_tf32": (
        torch._C._get_cudnn_allow_tf32,
        torch._C._set_cudnn_allow_tf32,
    ),
}


def precision() -> dict[str, Any]:
    """Every setting by its name; where a new one is not set it reads as full precision."""
    old = {name: _answer(read) for name, (read, _) in OLD.items()}
    return old | {f"{backend}.{of}.fp32_precision": _new(backend, of) for backend, of in NEW}


def set_precision(before: dict[str, Any]) -> None:
    """Put back what `precision` read."""
    for name, (_, write) in OLD.items():
        if before[name] != MIXED and precision()[name] != before[name]:
            write(before[name])
    for backend, of in NEW:
        wanted = before[f"{backend}.{of}.fp32_precision"]
        if _new(backend, of) != wanted:
            unset = UNSET if wanted == FULL else wanted
            torch._C._set_fp32_precision_setter(backend, of, unset)


def _answer(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return MIXED


def _new(backend: str, of: str) -> str:
    found: str = torch._C._get_fp32_precision_getter(backend, of)
    return FULL if found == UNSET else found
