"""One layer of one window as SDPA saw it, and the same steps again under a method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.errors import Unsupported
from attnbench.methods.base import (
    CacheLength,
    CacheView,
    KernelConfig,
    LayerShape,
    Method,
    MethodLayer,
)
from attnbench.protocol.family import Family
from attnbench.protocol.verdict import Reason


@dataclass(frozen=True)
class LayerTrace:
    """What attention of one layer was given while the model ran S steps under SDPA.

    `q` is [S,H,D]; `k` and `v` are [Hkv,R,D] with R = `context` + S rows, post-RoPE, in the cell's
    dtype; row `context` + s is the one that step s appended. `shape` is of batch 1.
    """

    shape: LayerShape
    context: int
    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def steps(self) -> int:
        return self.q.shape[0]

    def prompt_view(self) -> CacheView:
        """A cache of its own for one method: the prompt's rows, and zeros after them."""
        rows = torch.zeros(
            2,
            self.shape.kv_heads,
            self.shape.capacity,
            self.shape.head_dim,
            dtype=self.k.dtype,
            device=self.k.device,
        )
        rows[0, :, : self.context] = self.k[:, : self.context]
        rows[1, :, : self.context] = self.v[:, : self.context]
        return CacheView(rows[:1], rows[1:], CacheLength(self.k.device, self.context))


@dataclass(frozen=True)
class Replay:
    """Outputs [S,H,D] of a method, and the share of the cached tokens that each step attended."""

    outputs: Tensor
    kept_share: tuple[float, ...]


def sdpa_outputs(trace: LayerTrace) -> Tensor:
    """Torch's SDPA in the cell's dtype, grouped-query native, on every step: [S,H,D]."""
    outputs = [
        scaled_dot_product_attention(
            trace.q[step][None, :, None],
            trace.k[None, :, : trace.context + step + 1],
            trace.v[None, :, : trace.context + step + 1],
            scale=trace.shape.scale,
            enable_gqa=trace.shape.group > 1,
        )
        for step in range(trace.steps)
    ]
    return torch.cat(outputs)[:, :, 0]


def replay(
    method: Method,
    trace: LayerTrace,
    kernel: KernelConfig | None = None,
    *,
    after: Callable[[MethodLayer, Tensor], None] | None = None,
) -> Replay:
    """Run the recorded steps under `method`, from a cache reset to the prompt; `after` is shown the
    layer and the queries [1,H,1,D] of each step once it is done, while the length is still its own.

    Raises Unsupported where the method cannot run, answers in another shape than it was asked, or
    says nothing that could be the share of tokens that it attended.
    """
    shape = replace(trace.shape, kernel=kernel)
    method.check(shape)
    view = trace.prompt_view()
    layer = method.layer(shape)
    layer.prefill(view)
    outputs, kept = [], []
    for step in range(trace.steps):
        row = trace.context + step
        q = trace.q[step][None, :, None].clone()
        output = layer.decode(
            q, trace.k[None, :, row : row + 1].clone(), trace.v[None, :, row : row + 1].clone()
        )
        require_plain(method, output, q)
        outputs.append(output[0, :, 0].clone())
        kept.append(declared_share(method, layer))
        if after is not None:
            after(layer, trace.q[step][None, :, None])
        view.length.advance()
    return Replay(torch.stack(outputs), tuple(kept))


def require_plain(method: Method, output: Tensor, q: Tensor) -> None:
    """Raise Unsupported for an answer that is no plain tensor of the queries' shape."""
    if type(output) is not Tensor:
        raise Unsupported(
            f"{method.label} answered with a {type(output).__name__}, which may compute "
            "whenever it is looked at",
            hint="return a plain tensor from every step",
            reason=Reason.OUTPUT_TYPE.value,
        )
    if output.shape != q.shape:
        raise Unsupported(
            f"{method.label} answered {tuple(output.shape)} to queries {tuple(q.shape)}",
            hint="`decode` must return one output of the head dimension for every query head",
        )


def declared_share(method: Method, layer: MethodLayer) -> float:
    """What the layer says of its last step. Raises Unsupported where that is no share of tokens: a
    control may attend to none."""
    said = layer.witness().get("kept_share")
    try:
        share = math.nan if said is None else float(said)
    except (TypeError, ValueError):
        share = math.nan
    least_is_there = share > 0 or (share == 0 and method.family is Family.CONTROL)
    if not (least_is_there and share <= 1):
        raise Unsupported(
            f"the witness of {method.label} says that kept_share is {said}",
            hint="witness() must hold kept_share: attended over visible tokens, above 0 and to 1",
            reason=Reason.FALSE_WITNESS.value,
        )
    return share


def same_again(
    method: Method, trace: LayerTrace, ran: Replay, kernel: KernelConfig | None = None
) -> bool:
    """True when a further replay from fresh state gives the same values as `ran`, NaN in the same
    places."""
    first, again = ran.outputs, replay(method, trace, kernel).outputs
    return bool(((first == again) | (first.isnan() & again.isnan())).all())
