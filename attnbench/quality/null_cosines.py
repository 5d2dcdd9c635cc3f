"""How the null models score on one layer, at the budget of the arm they stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.sdpa import Sdpa
from attnbench.quality.metrics import HeadMetrics, head_metrics
from attnbench.quality.nulls import exact_weights
from attnbench.quality.replay import LayerTrace

RANDOM_DRAWS = 10
SELECTIONS = ("recent", "value_norm", "random", "oracle")


class NullCosines:
    """Scores of one layer in one window, each [H], averaged over steps (and random draws).

    What depends on the budget is computed once for each number of kept rows that is asked for.
    """

    def __init__(self, trace: LayerTrace, exact: Tensor, seed: tuple[int, ...]) -> None:
        self._trace = trace
        self._exact = exact
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._weights = exact_weights(trace.q, trace.k, trace.v, trace.shape.scale, trace.context)
        self._at_budget: dict[int, Mapping[str, Tensor]] = {}
        self.unconditional = dict(self._unconditional())

    @property
    def weights_bytes(self) -> int:
        """What the exact weights take, which are kept for budgets still to come."""
        return self._weights.weights.nbytes

    def blocks_at(self, kept_share: float, block: int) -> Tensor:
        """Random whole blocks of so many rows, of this share of the cached ones."""
        kept = min(round(kept_share * self._weights.rows), self._weights.rows)
        generator = torch.Generator().manual_seed(self._seed)
        draws = self._weights.random_blocks(kept, block, RANDOM_DRAWS, generator)
        return torch.stack([self._cosine(draw) for draw in draws]).mean(0)

    def at(self, kept_share: float) -> Mapping[str, Tensor]:
        """Selections of this share of the cached rows: random, recent, by value norm, oracle."""
        kept = min(round(kept_share * self._weights.rows), self._weights.rows)
        if kept not in self._at_budget:
            self._at_budget[kept] = dict(self._selections(kept))
        return self._at_budget[kept]

    def _unconditional(self) -> Iterator[tuple[str, Tensor]]:
        floor = head_metrics(self._exact, self._weights.exact())
        yield "floor_cosine", floor.cosine.mean(0)
        yield "floor_relative_l2", floor.relative_l2.mean(0)
        kernels = math_against_flash(self._trace)
        yield "math_flash_cosine", kernels.cosine
        yield "math_flash_relative_l2", kernels.relative_l2
        yield "null_uniform", self._cosine(self._weights.uniform())

    def _selections(self, kept: int) -> Iterator[tuple[str, Tensor]]:
        """With nothing or everything kept there is nothing to select: all are the same."""
        if kept in (0, self._weights.rows):
            same = self._cosine(self._weights.exact() * bool(kept))
            yield from ((f"null_{name}", same) for name in SELECTIONS)
            return
        yield "null_recent", self._cosine(self._weights.recent(kept))
        yield "null_value_norm", self._cosine(self._weights.value_norm(kept))
        yield "null_oracle", self._cosine(self._weights.oracle(kept))
        generator = torch.Generator().manual_seed(self._seed)
        draws = self._weights.random(kept, RANDOM_DRAWS, generator)
        yield "null_random", torch.stack([self._cosine(draw) for draw in draws]).mean(0)

    def _cosine(self, output: Tensor) -> Tensor:
        return head_metrics(output, self._exact).cosine.mean(0)


def math_against_flash(trace: LayerTrace) -> HeadMetrics:
    """SDPA by its math backend against its flash backend at the last step, each [H].

    Two ways to compute the same: no method can be asked to agree better. NaN where one of the two
    does not take this shape.
    """
    rows = slice(0, trace.context + trace.steps)
    inputs = (trace.q[-1][None, :, None], trace.k[None, :, rows], trace.v[None, :, rows])
    try:
        plain, flash = (
            Sdpa(backend=backend).attend(*inputs, trace.shape)[0, :, 0]
            for backend in ("math", "flash")
        )
    except Unsupported:
        nothing = torch.full((trace.shape.heads,), torch.nan, dtype=torch.float64)
        return HeadMetrics(nothing, nothing, nothing)
    return head_metrics(plain, flash)
