"""Attention as one operation that torch.compile does not look into: `attnbench::attend`.

The operation takes the layer's number as a tensor on the CPU and looks up whose turn it is. So one
compiled graph serves every layer and every arm, and changing arms compiles nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.methods.base import MethodLayer

NUMBER = "attnbench_layer"  # attribute of an attention module: its number, int64 [] on the CPU


class Turn:
    """Whose layers attend, by number."""

    layers: Sequence[MethodLayer] = ()


turn = Turn()


@torch.library.custom_op("attnbench::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, layer: Tensor) -> Tensor:
    """Append k and v [B,Hkv,1,D] and attend with q [B,H,1,D]: a fresh [B,H,1,D], contiguous."""
    return turn.layers[int(layer)].decode(q, k, v).contiguous()


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, layer: Tensor) -> Tensor:
    del k, layer
    return q.new_empty(*q.shape[:-1], v.shape[-1])


def attend_opaquely(module: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The operation, for the layer that `module` is."""
    operation: Any = torch.ops.attnbench.attend
    out: Tensor = operation(q, k, v, getattr(module, NUMBER))
    return out
