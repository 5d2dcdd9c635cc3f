"""Learned absolute positions, added to the embedded tokens (Vaswani et al. 2017, arXiv 1706.03762;
GPT-2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from attnbench.methods.distance_method import DistanceScheme
from attnbench.methods.nope import NoPositions
from attnbench.methods.scheme import SchemeConfig

SPREAD = 0.02  # standard deviation of the rows before training, as GPT-2 has it


@dataclass(frozen=True)
class LearnedAbsolute(NoPositions):
    """A learned row for each position is added to the embedded token; attention is exact.

    There is a row for every position up to the longest sequence ever seen; those beyond the
    training context stay as they were drawn, which is what makes this scheme fail there.
    """

    name: ClassVar[str] = "learned_absolute"
    source: ClassVar[str] = "arXiv:1706.03762"

    def scheme(self, config: SchemeConfig) -> LearnedAbsoluteScheme:
        """A table of positions."""
        return LearnedAbsoluteScheme(self, config)


class LearnedAbsoluteScheme(DistanceScheme):
    """Exact attention over embedded tokens that know their position."""

    def __init__(self, method: LearnedAbsolute, config: SchemeConfig) -> None:
        super().__init__(method, config)
        self.table = nn.Embedding(config.longest, config.width, device=config.device)
        nn.init.normal_(self.table.weight, std=SPREAD)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B,L,W] plus the rows of the positions [L]."""
        rows: Tensor = self.table(positions)
        return x + rows.to(x.dtype)
