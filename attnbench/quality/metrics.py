"""How far one attention output is from another, head by head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class HeadMetrics(NamedTuple):
    """float64 tensors shaped like the outputs without their last axis."""

    cosine: Tensor
    relative_l2: Tensor
    norm_ratio: Tensor


def head_metrics(output: Tensor, exact: Tensor) -> HeadMetrics:
    """Compare outputs [..., D] with the exact ones of the same shape, over D.

    A zero vector has cosine 0. Where the output is not finite, all three are NaN: an infinite
    norm would otherwise hide among large ones.
    """
    output, exact = output.double(), exact.double()
    norm, exact_norm = output.norm(dim=-1), exact.norm(dim=-1)
    product = norm * exact_norm
    cosine = torch.where(product > 0, (output * exact).sum(-1) / product.clamp_min(1e-300), 0.0)
    relative_l2 = (output - exact).norm(dim=-1) / exact_norm
    finite = output.isfinite().all(-1)
    return HeadMetrics(
        *(
            value.masked_fill(~finite, torch.nan)
            for value in (cosine, relative_l2, norm / exact_norm)
        )
    )
