"""Honest: an index of the keys, built at prefill, declared, and read in every step.

Work that depends on the cache alone may be done when the cache is made; the bench reports it as
prefill. The twin of cheats that prepare answers instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from attnbench.methods.random_k import gathered, with_newest
from tests.evil.common import Approximate, AttendingLayer
from tests.evil.selection import budget, chosen_exactly, top_rows


class KeepsBlockIndexLayer(AttendingLayer):
    """Means of 16 keys each, from prefill; every step scores them and reads the best quarter."""

    PAGE = 16

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        whole = self.prefilled // self.PAGE * self.PAGE
        blocks = cache.k[:, :, :whole].unflatten(2, (-1, self.PAGE))
        self.index = blocks.mean(dim=3)

    def kept(self, q: Tensor, rows: Tensor) -> Tensor:
        """Numbers [B,Hkv,K] of the rows in the best blocks and behind the last block."""
        blocks = self.index.shape[2]
        best = top_rows(q, self.index.to(q.dtype), budget(0.25, blocks), self.shape.group)
        inside = torch.arange(self.PAGE, device=q.device)
        chosen = (best[..., None] * self.PAGE + inside).flatten(2)
        rest = torch.arange(blocks * self.PAGE, rows.shape[2] - 1, device=q.device)
        return torch.cat((chosen, rest.expand(*chosen.shape[:2], -1)), dim=2)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        rows = with_newest(self.kept(q, keys), keys.shape[2] - 1)
        return self.attend(q, gathered(keys, rows), gathered(values, rows))

    @property
    def attended(self) -> int:
        blocks = self.index.shape[2]
        left_out = blocks - min(blocks, budget(0.25, blocks))
        return self.visible - left_out * self.PAGE

    def tensors(self):
        yield from super().tensors()
        yield self.index

    def bytes_read(self) -> int:
        return super().bytes_read() + self.index.nbytes


class KeepsBlockIndexReferenceLayer(KeepsBlockIndexLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        return chosen_exactly(q, keys, values, self.kept(q.double(), keys), self.shape)


@dataclass(frozen=True)
class KeepsBlockIndex(Approximate):
    """Honest: an index of the cache, built at prefill, declared, read in every step."""

    name: ClassVar[str] = "keeps_block_index"
    layer_class: ClassVar[type[MethodLayer]] = KeepsBlockIndexLayer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        raise NotImplementedError("it depends on the length of the prompt: see reference_layer")

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        return KeepsBlockIndexReferenceLayer(shape)
