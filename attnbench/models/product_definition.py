"""What a product of few rows is, in float64: slow and obvious."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def defined_product(
    x: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    gated: bool = False,
) -> Tensor:
    """See `kernels.products.product`: float64 [M,N], or [M,N/2] with `gated`.

    A normalised x is of x's dtype, as a model hands it on.
    """
    if norm is not None:
        shrink = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
        x = ((x.float() * shrink).to(x.dtype).float() * norm.float()).to(x.dtype)
    out = x.double() @ weights.double().T
    if bias is not None:
        out = out + bias.double()
    if gated:
        gate, up = out.chunk(2, dim=1)
        out = functional.silu(gate) * up
    return out if residual is None else out + residual.double()
