"""How the null models score on one layer, at the budget of the arm they stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from attnbench.quality.metrics import head_metrics
from attnbench.quality.nulls import exact_weights
from attnbench.quality.replay import LayerTrace

RANDOM_DRAWS = 10


class NullCosines:
    """Scores of one layer in one window, each [H], averaged over steps (and random draws).

    What depends on the budget is computed once for each number of kept rows that is asked for.
    """

    def __init__(self, trace: LayerTrace, exact: Tensor, seed: tuple[int, ...]) -> None:
        self._exact = exact
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._weights = exact_weights(trace.q, trace.k, trace.v, trace.shape.scale, trace.context)
        self._at_budget: dict[int, Mapping[str, Tensor]] = {}
        self.unconditional = dict(self._unconditional())

    def at(self, kept_share: float) -> Mapping[str, Tensor]:
        """Random, recent and oracle selection of this share of the cached rows."""
        kept = min(round(kept_share * self._weights.rows), self._weights.rows)
        if kept not in self._at_budget:
            self._at_budget[kept] = dict(self._selections(kept))
        return self._at_budget[kept]

    def _unconditional(self) -> Iterator[tuple[str, Tensor]]:
        floor = head_metrics(self._exact, self._weights.exact())
        yield "floor_cosine", floor.cosine.mean(0)
        yield "floor_relative_l2", floor.relative_l2.mean(0)
        yield "null_uniform", self._cosine(self._weights.uniform())

    def _selections(self, kept: int) -> Iterator[tuple[str, Tensor]]:
        """With nothing or everything kept there is nothing to select: the three are the same."""
        if kept in (0, self._weights.rows):
            same = self._cosine(self._weights.exact() * bool(kept))
            yield from ((f"null_{name}", same) for name in ("recent", "random", "oracle"))
            return
        yield "null_recent", self._cosine(self._weights.recent(kept))
        yield "null_oracle", self._cosine(self._weights.oracle(kept))
        generator = torch.Generator().manual_seed(self._seed)
        draws = self._weights.random(kept, RANDOM_DRAWS, generator)
        yield "null_random", torch.stack([self._cosine(draw) for draw in draws]).mean(0)

    def _cosine(self, output: Tensor) -> Tensor:
        return head_metrics(output, self._exact).cosine.mean(0)
