"""How much of the attention a method keeps, read off its outputs and not off what it says.

With q and k as they were and values that are zero but for a one in one channel a token, what comes
out of a channel is the weight that the method gave to that token. Going through all tokens so, a
head dimension's worth at a time, tells the weights of all, and the part of softmax's weights that
they hold is the kept mass: sum of min(weight, softmax's weight). Of a selection that is exactly the
softmax mass of what it selected; of anything else one minus the total variation distance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench.methods.base import KernelConfig, Method
from attnbench.quality.metrics import head_metrics
from attnbench.quality.nulls import exact_weights
from attnbench.quality.replay import LayerTrace, replay
from attnbench.quality.witness import most_mass

# The weights must explain the real output, as a cosine, or they were not those of the real values:
# a method that looks at values chooses otherwise on ones and zeros.
EXPLAINED = 0.98


@dataclass(frozen=True)
class KeptMass:
    """The softmax mass [H] (float64) that each query head keeps, NaN where the weights that were
    found do not explain its output; and the most, on average over the others, that a selection of
    the declared share could keep."""

    mass: Tensor
    most: float


def kept_mass(method: Method, trace: LayerTrace, kernel: KernelConfig | None = None) -> KeptMass:
    """Of the last step of the trace."""
    last = last_step(trace)
    weights = effective_weights(method, last, kernel)
    softmax = exact_weights(last.q, last.k, last.v, last.shape.scale, last.context)
    exact = softmax.weights[:, :, 0].flatten(0, 1)
    mass = torch.minimum(weights, exact).clamp_min(0).sum(-1)
    ran = replay(method, last, kernel)
    grouped = weights.reshape(last.shape.kv_heads, last.shape.group, -1)
    explained = (grouped @ last.v.double()).flatten(0, 1)
    is_explained = head_metrics(explained, ran.outputs[0]).cosine >= EXPLAINED
    return KeptMass(
        mass.masked_fill(~is_explained, torch.nan),
        most_mass(exact[is_explained], ran.kept_share[0], last.shape.heads),
    )


def effective_weights(
    method: Method, trace: LayerTrace, kernel: KernelConfig | None = None
) -> Tensor:
    """What each cached row counts for in the one step of a trace: float64 [H, R]."""
    rows, dim = trace.v.shape[1:]
    parts = []
    for begin in range(0, rows, dim):
        count = min(dim, rows - begin)
        values = torch.zeros_like(trace.v)
        at = torch.arange(count, device=values.device)
        values[:, begin + at, at] = 1.0
        output = replay(method, replace(trace, v=values), kernel).outputs[0]
        parts.append(output[:, :count].double())
    return torch.cat(parts, dim=-1)


def last_step(trace: LayerTrace) -> LayerTrace:
    """The trace as if its last step were the only one after the prompt."""
    return replace(trace, context=trace.context + trace.steps - 1, q=trace.q[-1:])
