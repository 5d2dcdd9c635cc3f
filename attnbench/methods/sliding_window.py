"""A sliding window without sinks, as what a model is trained with (Longformer, Beltagy et al. 2020,
arXiv 2004.05150; CY-Sieve's own strongest baseline at long contexts)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from attnbench.errors import UsageError
from attnbench.methods.distance_bias import DistanceRule
from attnbench.methods.distance_method import DistanceMethod


@dataclass(frozen=True)
class SlidingWindow(DistanceMethod):
    """Each head attends to the last `window` tokens; nothing else tells positions apart.

    In a model trained with another function `sink_window,sinks=0` is the same selection, and is
    judged there.
    """

    window: int = 128
    impl: str = ""

    name: ClassVar[str] = "sliding_window"
    source: ClassVar[str] = "arXiv:2004.05150"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(
                f"sliding_window: window={self.window} keeps nothing", hint="window from 1"
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default, and one small enough to leave tokens out of a short cache."""
        del device_type
        return (cls(), cls(window=24))

    def full_budget(self, tokens: int) -> Self:
        """A window over all tokens."""
        return replace(self, window=tokens)

    def rule(self) -> DistanceRule:
        """No bias."""
        return DistanceRule()

    def reaches(self, heads: int) -> tuple[int, ...]:
        """The window."""
        return (self.window,) * heads
