"""Whether what a layer takes for upper bounds of its blocks' logits are any, on real q and k."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.methods.base import KernelConfig, Method, MethodLayer
from attnbench.quality.replay import LayerTrace, replay

ROUNDING = 1e-9  # of float64 sums, relative to bound and logit


def bound_violations(
    method: Method, trace: LayerTrace, kernel: KernelConfig | None = None
) -> Tensor | None:
    """The share of blocks with a logit above their bound, by step and head: float64 [S,H]; None
    where the layer holds no bounds."""
    found: list[Tensor] = []

    def note(layer: MethodLayer, q: Tensor) -> None:
        held = layer.logit_bounds(q)
        if held is not None:
            found.append(_violated(*held, q, trace, trace.context + len(found) + 1))

    replay(method, trace, kernel, after=note)
    return torch.stack(found) if len(found) == trace.steps else None


def _violated(bounds: Tensor, block: int, q: Tensor, trace: LayerTrace, tokens: int) -> Tensor:
    """Bounds [1,H,n] of blocks of so many tokens, queries [1,H,1,D] -> [H]."""
    keys = trace.k[:, :tokens].double().repeat_interleave(trace.shape.group, dim=0)
    logits = (keys @ q[0, :, 0].double()[..., None])[..., 0] * trace.shape.scale
    spare = -tokens % block
    padded = pad(logits, (0, spare), value=-torch.inf)
    greatest = padded.reshape(len(padded), -1, block).amax(dim=-1)
    slack = ROUNDING * (1 + bounds[0].abs() + greatest.abs())
    violated: Tensor = greatest > bounds[0] + slack
    return violated.double().mean(dim=-1)
