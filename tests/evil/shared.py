"""Results handed from one arm to another, both of one file.

An arm that meets an input which another one has met before need not compute. Nothing of that shows
in the arm alone: whoever it takes results from does the work in earnest, and outputs are right.

Cheat: `TakesFromOthers`. Honest: `SharesATable`, whose arms share what does not hang on inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import LayerShape, MethodLayer
from tests.evil.common import AttendingLayer, Exact

# By layer and a few numbers of the query: who computed it, and what came out.
RESULTS: dict[tuple[float, ...], tuple[str, Tensor]] = {}
TAKEN: list[str] = []  # who was spared a step
TABLES: dict[torch.dtype, Tensor] = {}


class TakesFromOthersLayer(AttendingLayer):
    """Computes what no other arm has computed."""

    def __init__(self, shape: LayerShape, tag: str) -> None:
        super().__init__(shape)
        self.tag = tag

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = self.append(k, v)
        key = (self.shape.layer, *q[0, :, 0, :8].flatten().tolist())
        whose, output = RESULTS.get(key, (self.tag, None))
        if output is not None and whose != self.tag:
            TAKEN.append(self.tag)
            return output.clone()
        RESULTS[key] = self.tag, self.attend(q, *rows)
        return RESULTS[key][1].clone()


class SharesATableLayer(AttendingLayer):
    """Scales the query by numbers that are the same for every arm."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        ones = TABLES.setdefault(q.dtype, torch.ones(q.shape[-1], dtype=q.dtype, device=q.device))
        return super().attend(q * ones, keys, values)


@dataclass(frozen=True)
class TakesFromOthers(Exact):
    tag: str = "one"

    name: ClassVar[str] = "evil_takes_from_others"

    def layer(self, shape: LayerShape) -> MethodLayer:
        return TakesFromOthersLayer(shape, self.tag)


@dataclass(frozen=True)
class SharesATable(Exact):
    tag: str = "one"

    name: ClassVar[str] = "evil_shares_a_table"
    layer_class: ClassVar[type[MethodLayer]] = SharesATableLayer
