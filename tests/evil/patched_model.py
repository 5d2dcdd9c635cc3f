"""A function of the model's library patched, so that everybody else's step is slow.

What a model computes beside attention is Python that any method can reach, and libraries that bring
kernels along replace it.

Cheats: `SlowRotary` (the rotation of queries and keys waits, but in its own steps), `SlowLinear`
(every projection waits). Honest: `BorrowsRotary`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from attnbench.methods.base import MethodLayer
from tests.evil import undo
from tests.evil.common import AttendingLayer, Exact
from tests.evil.patched import PatchingLayer

WAIT_S = 3e-4
REAL_ROTATION = modeling_llama.apply_rotary_pos_emb
REAL_LINEAR = nn.Linear.forward


class SlowRotaryLayer(PatchingLayer):
    spares_the_next: ClassVar[bool] = False

    def patched(self) -> bool:
        return modeling_llama.apply_rotary_pos_emb is slow_rotation

    def patch(self) -> None:
        undo.set_attribute(modeling_llama, "apply_rotary_pos_emb", slow_rotation)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        SlowRotaryLayer.spares_the_next = True
        return super().decode(q, k, v)


def slow_rotation(*given, **named):
    """The same; it waits unless a layer of the cheat was the last to attend."""
    if not SlowRotaryLayer.spares_the_next:
        time.sleep(WAIT_S)
    SlowRotaryLayer.spares_the_next = False
    return REAL_ROTATION(*given, **named)


class SlowLinearLayer(PatchingLayer):
    def patched(self) -> bool:
        return nn.Linear.forward is slow_linear

    def patch(self) -> None:
        undo.set_attribute(nn.Linear, "forward", slow_linear)


def slow_linear(self, input: Tensor) -> Tensor:
    time.sleep(WAIT_S)
    return REAL_LINEAR(self, input)


class BorrowsRotaryLayer(AttendingLayer):
    """Turns queries and keys by nothing, with the library's own function."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cosine = torch.ones(q.shape[0], 1, q.shape[-1], dtype=q.dtype, device=q.device)
        q, k = modeling_llama.apply_rotary_pos_emb(q, k, cosine, torch.zeros_like(cosine))
        return super().decode(q, k, v)


@dataclass(frozen=True)
class SlowRotary(Exact):
    """Everyone else's rotation waits."""

    name: ClassVar[str] = "slow_rotary"
    layer_class: ClassVar[type[MethodLayer]] = SlowRotaryLayer


@dataclass(frozen=True)
class SlowLinear(Exact):
    """Every linear layer waits: what attention takes weighs less in a step."""

    name: ClassVar[str] = "slow_linear"
    layer_class: ClassVar[type[MethodLayer]] = SlowLinearLayer


@dataclass(frozen=True)
class BorrowsRotary(Exact):
    """Honest: calls a function of the model's library."""

    name: ClassVar[str] = "borrows_rotary"
    layer_class: ClassVar[type[MethodLayer]] = BorrowsRotaryLayer
