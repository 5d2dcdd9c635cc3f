"""Patched SDPA, so that the baseline is slow.

Everyone's exact attention is the same PyTorch function. Replacing it is how several libraries get
their kernels into models, and the denominator of every ratio then is whatever they put there.

Cheats: `SlowSdpa` (under every name that any module gave it), `SlowSdpaBelow` (in PyTorch's
dispatcher: no Python name changes), `SlowKernelsBelow` (the kernels that PyTorch's own SDPA calls
in the end). Honest: `OwnOperator`, `OwnCustomOperator`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import MethodLayer
from tests.evil import undo
from tests.evil.common import AttendingLayer, Exact
from tests.evil.patched import PatchingLayer, replace_everywhere

REAL_SDPA = scaled_dot_product_attention


class SlowSdpaLayer(PatchingLayer):
    def patched(self) -> bool:
        return torch.nn.functional.scaled_dot_product_attention is slow_sdpa

    def patch(self) -> None:
        replace_everywhere(REAL_SDPA, slow_sdpa)


def slow_sdpa(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    """The same attention over repeated heads in float64, twice."""
    group = query.shape[1] // key.shape[1]
    keys, values = (rows.double().repeat_interleave(group, dim=1) for rows in (key, value))
    for _ in range(2):
        scores = query.double() @ keys.mT * (scale or query.shape[-1] ** -0.5)
        if is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        if attn_mask is not None:
            floor = scores.new_zeros(()).masked_fill(torch.tensor(True), -math.inf)
            scores = (
                torch.where(attn_mask, scores, floor)
                if attn_mask.dtype is torch.bool
                else scores + attn_mask
            )
        output = scores.softmax(-1) @ values
    return output.to(query.dtype)


class ByHandLayer(PatchingLayer):
    """Attends without SDPA."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        shape = self.shape
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        weights = (grouped @ keys.mT * shape.scale).softmax(-1)
        return (weights @ values).reshape(q.shape)


class SlowSdpaBelowLayer(ByHandLayer):
    below: ClassVar[torch.library.Library | None] = None

    def patched(self) -> bool:
        return SlowSdpaBelowLayer.below is not None

    def patch(self) -> None:
        below = torch.library.Library("aten", "IMPL")
        below.impl("scaled_dot_product_attention", slow_below, self.shape.device.type.upper())
        SlowSdpaBelowLayer.below = below
        undo.later(take_up)


def slow_below(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, **gqa
) -> Tensor:
    return slow_sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale)


def take_up() -> None:
    """Remove the kernel from the dispatcher."""
    assert SlowSdpaBelowLayer.below is not None
    SlowSdpaBelowLayer.below._destroy()
    SlowSdpaBelowLayer.below = None


class SlowKernelsBelowLayer(ByHandLayer):
    """From the first step on."""

    below: ClassVar[torch.library.Library | None] = None

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if SlowKernelsBelowLayer.below is None:
            below = torch.library.Library("aten", "IMPL")
            below.impl("_scaled_dot_product_flash_attention_for_cpu", slow_flash, "CPU")
            below.impl("_scaled_dot_product_attention_math", slow_math, "CPU")
            SlowKernelsBelowLayer.below = below
            undo.later(take_kernels_up)
        return super().decode(q, k, v)

    def patched(self) -> bool:
        return True


def slow_flash(
    query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None
) -> tuple[Tensor, Tensor]:
    """Without the sums, which only gradients need."""
    output = slow_sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale)
    return output, query.new_zeros(query.shape[:-1])


def slow_math(
    query, key, value, mask=None, dropout_p=0.0, is_causal=False, dropped=None, *, scale=None, **gqa
) -> tuple[Tensor, Tensor]:
    output = slow_sdpa(query, key, value, mask, dropout_p, is_causal, scale)
    return output, query.new_zeros(query.shape[:-1])


def take_kernels_up() -> None:
    """Remove the kernels from the dispatcher."""
    assert SlowKernelsBelowLayer.below is not None
    SlowKernelsBelowLayer.below._destroy()
    SlowKernelsBelowLayer.below = None


class OwnOperatorLayer(AttendingLayer):
    """Calls attention through an operator of its own."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return own_operator()(q, keys, values, self.shape.scale)


@cache
def own_operator():
    """Registered when first asked for: an operator more, and none changed."""
    OWN.append(torch.library.Library("evil_honest", "DEF"))
    OWN[0].define("attend(Tensor q, Tensor k, Tensor v, float scale) -> Tensor")
    OWN[0].impl("attend", attend_by_sdpa, "CompositeExplicitAutograd")
    return torch.ops.evil_honest.attend


OWN: list[torch.library.Library] = []  # an operator lives as long as its library


def attend_by_sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return REAL_SDPA(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


class OwnCustomOperatorLayer(AttendingLayer):
    """Calls attention through an operator that PyTorch's decorator made."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return own_custom_operator()(q, keys, values, self.shape.scale)


@cache
def own_custom_operator():
    """With all that comes with it: kernels for gradients, for compilers, for other modes."""
    operator = torch.library.custom_op("evil_honest_custom::attend", mutates_args=())(attend_afresh)
    operator.register_fake(lambda q, k, v, scale: torch.empty_like(q))
    return operator


def attend_afresh(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return attend_by_sdpa(q, k, v, scale).clone()


@dataclass(frozen=True)
class SlowSdpa(Exact):
    """Everyone else's SDPA repeats heads in float64; its own is the real one."""

    name: ClassVar[str] = "slow_sdpa"
    layer_class: ClassVar[type[MethodLayer]] = SlowSdpaLayer


@dataclass(frozen=True)
class SlowSdpaBelow(Exact):
    """The same as a kernel for aten's operator: every Python name is what it was."""

    name: ClassVar[str] = "slow_sdpa_below"
    layer_class: ClassVar[type[MethodLayer]] = SlowSdpaBelowLayer


@dataclass(frozen=True)
class OwnOperator(Exact):
    """Honest: registers a custom operator in a namespace of its own."""

    name: ClassVar[str] = "own_operator"
    layer_class: ClassVar[type[MethodLayer]] = OwnOperatorLayer


@dataclass(frozen=True)
class SlowKernelsBelow(Exact):
    """The kernels that SDPA chooses from are slow; its own operator is what it was."""

    name: ClassVar[str] = "slow_kernels_below"
    layer_class: ClassVar[type[MethodLayer]] = SlowKernelsBelowLayer


@dataclass(frozen=True)
class OwnCustomOperator(Exact):
    """Honest: registers a custom operator by PyTorch's decorator."""

    name: ClassVar[str] = "own_custom_operator"
    layer_class: ClassVar[type[MethodLayer]] = OwnCustomOperatorLayer
