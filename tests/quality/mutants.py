"""Methods with one thing wrong each, as they go wrong in earnest, and an honest INT8 beside them.

`tests/methods/mutants.py` has those that parity must find; these are what the gates must fail on a
real model, whatever the parity tests say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer

BLOCK = 32
SPOILED_LAYER = 2  # where only one layer is spoiled


class ExactLayer(ExactCacheLayer):
    """Exact attention; the mutants change the rows, or the output."""

    def __init__(self, method: Mutant, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def rows(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.append(k, v)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.rows(k, v)
        return scaled_dot_product_attention(
            q, keys, values, scale=self.shape.scale, enable_gqa=self.shape.group > 1
        )


class DropsOneHeadOfOneLayer(ExactLayer):
    def decode(self, q, k, v):
        out = super().decode(q, k, v)
        if self.shape.layer == SPOILED_LAYER:
            out[:, 1] = 0
        return out


class HalvesItsOutput(ExactLayer):
    def decode(self, q, k, v):
        return super().decode(q, k, v) / 2


class HasAStaleBlock(ExactLayer):
    """The newest block of the cache still holds the keys and values of the block before it."""

    def rows(self, k, v):
        keys, values = (rows.clone() for rows in self.append(k, v))
        end = self.prefilled
        for rows in (keys, values):
            rows[:, :, end - BLOCK : end] = rows[:, :, end - 2 * BLOCK : end - BLOCK].clone()
        return keys, values


class ForgetsTheMask(ExactLayer):
    """Attends to the rows that hold no token yet."""

    def rows(self, k, v):
        self.append(k, v)
        return self.cache.k, self.cache.v


class AttendsToTheSinkAlone(ExactLayer):
    def rows(self, k, v):
        keys, values = self.append(k, v)
        kept = [*range(4), keys.shape[2] - 1]
        return keys[:, :, kept], values[:, :, kept]

    def witness(self) -> Mapping[str, float]:
        return {"kept_share": 5 / self.visible}


class PermutesItsValues(ExactLayer):
    def rows(self, k, v):
        keys, values = self.append(k, v)
        order = torch.randperm(values.shape[2], generator=torch.Generator().manual_seed(0))
        return keys, values[:, :, order]


class SwapsOneLayer(ExactLayer):
    """Reads the cache of the layer after it: inside the model, where there is one."""

    def prefill(self, cache, q=None):
        super().prefill(cache, q)
        self.method.views[self.shape.layer] = cache

    def rows(self, k, v):
        keys, values = self.append(k, v)
        other = self.method.views.get(SPOILED_LAYER + 1)
        if self.shape.layer != SPOILED_LAYER or other is None or len(self.method.views) < 3:
            return keys, values
        return (rows[:, :, : self.cache.length.tokens] for rows in (other.k, other.v))


class Int8ByGroups(ExactLayer):
    """Keys and values in eight bits, a scale for every channel and block of tokens."""

    moved: ClassVar[int] = 0  # groups by which the scales are read off their place

    def rows(self, k, v):
        return tuple(self.rounded(rows) for rows in self.append(k, v))

    def rounded(self, rows: Tensor) -> Tensor:
        groups = rows.split(BLOCK, dim=2)
        scales = [group.abs().amax(2, keepdim=True).clamp_min(1e-9) / 127 for group in groups]
        codes = [(group / scale).round() for group, scale in zip(groups, scales, strict=True)]
        read = scales[-self.moved :] + scales[: -self.moved] if self.moved else scales
        return torch.cat([code * scale for code, scale in zip(codes, read, strict=True)], dim=2)


class ReadsTheScalesOfTheGroupBefore(Int8ByGroups):
    moved: ClassVar[int] = 1


class TurnsAHeadNowAndThen(ExactLayer):
    """One head of the first layer, every fourth step: its channels turned by 70 degrees, as by a
    rotary position that is off."""

    def decode(self, q, k, v):
        out = super().decode(q, k, v)
        if self.shape.layer == 0 and (self.visible - self.prefilled) % 4 == 0:
            x, y = out[:, 1].chunk(2, dim=-1)
            cos, sin = math.cos(math.radians(70)), math.sin(math.radians(70))
            out[:, 1] = torch.cat([cos * x - sin * y, sin * x + cos * y], dim=-1)
        return out


MUTANTS: tuple[type[ExactLayer], ...] = (
    DropsOneHeadOfOneLayer,
    HalvesItsOutput,
    HasAStaleBlock,
    ForgetsTheMask,
    AttendsToTheSinkAlone,
    PermutesItsValues,
    SwapsOneLayer,
    ReadsTheScalesOfTheGroupBefore,
)


@dataclass(frozen=True)
class Mutant(Method):
    """One of the layers above; `views` are the caches of the layers that were set up."""

    layer_class: type[ExactLayer] = ExactLayer
    views: dict[int, CacheView] = field(default_factory=dict)

    name: ClassVar[str] = "mutant"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "a test"

    def reference(self, q, k, v, shape):
        raise NotImplementedError

    def layer(self, shape: LayerShape) -> MethodLayer:
        return self.layer_class(self, shape)
