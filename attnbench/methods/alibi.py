"""Attention with linear biases (Press, Smith, Lewis 2022, arXiv 2108.12409)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from attnbench.methods.cy_sequence import geometric_slopes
from attnbench.methods.distance_bias import DistanceRule, HeadCoefficients
from attnbench.methods.distance_method import DistanceMethod


@dataclass(frozen=True)
class Alibi(DistanceMethod):
    """Each head's logits fall by its slope for every token of distance.

    Slopes are 2^(-8 h / H); with `learn=true` they begin there and are trained.
    """

    learn: bool = False
    impl: str = ""

    name: ClassVar[str] = "alibi"
    source: ClassVar[str] = "arXiv:2108.12409"

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """Fixed slopes and learned ones."""
        del device_type
        return (cls(), cls(learn=True))

    def rule(self) -> DistanceRule:
        """The distance itself."""
        return DistanceRule(kind="line")

    def coefficients(self, heads: int, dtype: torch.dtype) -> HeadCoefficients:
        """The geometric slopes."""
        return HeadCoefficients(geometric_slopes(heads), learn_slope=self.learn, dtype=dtype)
