"""One step of a method on a few zero tokens: libraries say what they refuse only when called."""

from __future__ import annotations

from dataclasses import replace

import torch

from attnbench.errors import Unsupported
from attnbench.methods.base import CacheLength, CacheView, LayerShape, Method

TOKENS = 32


def require_first_call(method: Method, shape: LayerShape) -> None:
    """Raise `Unsupported` with what the library said unless one step runs with this shape."""
    small = replace(shape, capacity=2 * TOKENS)
    rows = (small.batch, small.kv_heads, small.capacity, small.head_dim)
    k = torch.zeros(rows, dtype=small.dtype, device=small.device)
    q = k.new_zeros(small.batch, small.heads, 1, small.head_dim)
    layer = method.layer(small)
    try:
        layer.prefill(CacheView(k, torch.zeros_like(k), CacheLength(small.device, TOKENS)))
        layer.decode(q, k[:, :, :1].clone(), k[:, :, :1].clone())
        if small.device.type == "cuda":
            torch.cuda.synchronize(small.device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # NotImplementedError is one
        raise Unsupported(
            f"{method.label} does not run on {small.device.type}: {str(error)[:300]}",
            hint=f"tried with {small.heads} heads over {small.kv_heads} KV heads of dimension "
            f"{small.head_dim} in {small.dtype}",
        ) from error
