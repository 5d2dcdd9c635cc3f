"""No positions at all: the causal mask alone (Kazemnejad et al. 2023, arXiv 2305.19466)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from attnbench.methods.distance_bias import DistanceRule
from attnbench.methods.distance_method import DistanceMethod


@dataclass(frozen=True)
class NoPositions(DistanceMethod):
    """Exact attention without anything that tells positions apart."""

    impl: str = ""

    name: ClassVar[str] = "nope"
    source: ClassVar[str] = "arXiv:2305.19466"

    def full_budget(self, tokens: int) -> Self:
        """Itself: it attends to all tokens."""
        del tokens
        return self

    def rule(self) -> DistanceRule:
        """No bias."""
        return DistanceRule()
