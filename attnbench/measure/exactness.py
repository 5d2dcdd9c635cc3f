"""Whether an arm that declares itself exact computes attention, on the bench's own cache.

The fastest such arm becomes the baseline, so one that is fast and wrong would judge all the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnbench.measure.arms import BrokenArm
from attnbench.measure.workbench import Workbench
from attnbench.methods.base import CacheView, LayerShape
from attnbench.methods.conformance import BOUNDS
from attnbench.methods.reference import exact_attention
from attnbench.protocol.verdict import Reason


def require_exact(bench: Workbench, outputs: Sequence[Tensor]) -> None:
    """Raise `BrokenArm` unless `outputs`, those of the tables' first row, are attention's.

    `outputs` are [B,H,1,D], one of every full-attention layer; the first, the middle and the last
    are compared, each by the norm of its difference over the norm of what is right.
    """
    shapes = bench.tables.shapes
    inputs = bench.tables.split(bench.tables.words[0, :-1])
    for number in sampled(len(shapes)):
        shape = shapes[number]
        right = defined(inputs[number], bench.cache.views[shape.layer], shape)
        error = float((outputs[number].double() - right).norm() / right.norm())
        if not error <= BOUNDS[shape.dtype]:  # so that NaN is not exact
            raise BrokenArm(
                f"it declares itself exact, but its output differs from attention by {error:.2g} "
                f"(relative L2, layer {shape.layer}); {BOUNDS[shape.dtype]:.2g} is allowed",
                reason=Reason.WRONG_OUTPUT,
            )


def sampled(layers: int) -> list[int]:
    """The first, the middle and the last of so many layers."""
    return sorted({0, layers // 2, layers - 1})


@torch.no_grad()
def defined(inputs: tuple[Tensor, Tensor, Tensor], cache: CacheView, shape: LayerShape) -> Tensor:
    """Attention of a new token's q, k and v over the cached rows and its own, [B,H,1,D] float64.

    One KV head at a time, because keys and values of all do not fit beside the cache once more.
    """
    q, *new = inputs
    heads = []
    for head, queries in enumerate(torch.split(q, shape.group, dim=1)):
        one = slice(head, head + 1)
        keys, values = (
            torch.cat([rows[:, one, : cache.length.tokens], row[:, one]], dim=2)
            for rows, row in zip((cache.k, cache.v), new, strict=True)
        )
        heads.append(exact_attention(queries, keys, values, shape.scale))
    return torch.cat(heads, dim=1)
