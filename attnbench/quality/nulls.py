"""What a method must beat: outputs of null models on the same q, k and v, and of float64 softmax.

Attending to a subset of the tokens is softmax attention with the other weights set to zero and the
rest rescaled to sum to one, so every null is made from one set of exact weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SINKS = 4


@dataclass(frozen=True)
class ExactWeights:
    """Softmax attention of S steps over R cached rows in float64.

    `weights` is [Hkv, group, S, R], zero on rows that a step cannot see; `visible` [S, R] says
    which it can; `v` is [Hkv, R, D]. Outputs are [S, H, D].
    """

    weights: Tensor
    visible: Tensor
    v: Tensor

    @property
    def rows(self) -> int:
        return self.v.shape[1]

    def exact(self) -> Tensor:
        """Softmax attention itself."""
        return self._attend(self.weights)

    def uniform(self) -> Tensor:
        """The mean of all values that a step sees."""
        return self._attend(self.visible.double().expand_as(self.weights))

    def recent(self, kept: int) -> Tensor:
        """The first `SINKS` rows and the latest ones, `kept` rows in all."""
        sinks = min(SINKS, kept)
        row = torch.arange(self.rows, device=self.v.device)
        oldest = self.visible.sum(-1, keepdim=True) - (kept - sinks)
        chosen = self.visible & ((row < sinks) | (row >= oldest))
        return self._attend(self.weights * chosen)

    def value_norm(self, kept: int) -> Tensor:
        """The `kept` rows of the longest values, of those that a step sees."""
        length = self.v.norm(dim=-1)[:, None, None, :].expand_as(self.weights)
        rows = length.masked_fill(~self.visible, -1.0).topk(kept, dim=-1).indices
        return self._attend(
            torch.zeros_like(self.weights).scatter(-1, rows, self.weights.gather(-1, rows))
        )

    def oracle(self, kept: int) -> Tensor:
        """The `kept` rows of the largest weights, chosen anew for every step and head."""
        largest, rows = self.weights.topk(kept, dim=-1)
        return self._attend(torch.zeros_like(self.weights).scatter(-1, rows, largest))

    def random(self, kept: int, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
        """`draws` outputs, each over `kept` rows drawn for every KV head, the same for all steps.

        Rows that a step cannot see yet drop out, as many in proportion as there are of them. The
        generator is a CPU one, so that a seed means the same rows on every device.
        """
        for _ in range(draws):
            lots = torch.rand(self.v.shape[:2], generator=generator)
            yield self._over(lots.topk(kept, dim=-1).indices.to(self.v.device))

    def random_blocks(
        self, kept: int, block: int, draws: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """The same over whole blocks of rows, as many as come nearest to `kept` rows."""
        count = -(-self.rows // block)
        blocks = min(max(1, round(kept / block)), count)
        places = torch.arange(block)
        for _ in range(draws):
            lots = torch.rand((self.v.shape[0], count), generator=generator)
            first = lots.topk(blocks, dim=-1).indices * block
            rows = (first[..., None] + places).flatten(1)
            yield self._over(rows.to(self.v.device))

    def _over(self, rows: Tensor) -> Tensor:
        """One output over rows [Hkv,K] of each KV head, of which those beyond the last drop out."""
        real = rows < self.rows
        rows = rows.clamp(max=self.rows - 1)
        index = rows[:, None, None].expand(*self.weights.shape[:-1], rows.shape[-1])
        values = self.v.gather(1, rows[..., None].expand(-1, -1, self.v.shape[-1]))
        return _attend(self.weights.gather(-1, index) * real[:, None, None], values)

    def _attend(self, weights: Tensor) -> Tensor:
        return _attend(weights, self.v)


def exact_weights(q: Tensor, k: Tensor, v: Tensor, scale: float, context: int) -> ExactWeights:
    """Weights of queries [S,H,D] over rows k, v [Hkv,R,D]; step s sees rows 0 to context + s."""
    steps, heads, dim = q.shape
    kv_heads, rows, _ = k.shape
    grouped = q.double().reshape(steps, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)
    step = torch.arange(steps, device=q.device)[:, None]
    visible = torch.arange(rows, device=q.device) <= context + step
    scores = grouped @ k.double()[:, None].transpose(-1, -2) * scale
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return ExactWeights(weights, visible, v.double())


def _attend(weights: Tensor, values: Tensor) -> Tensor:
    """Rescaled weights [Hkv,group,S,R] over values [Hkv,R,D] -> [S,H,D]; nothing kept gives 0."""
    total = weights.sum(-1, keepdim=True)
    output = weights / total.where(total > 0, 1.0) @ values[:, None]
    return output.permute(2, 0, 1, 3).flatten(1, 2)
