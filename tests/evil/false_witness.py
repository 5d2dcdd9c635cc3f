"""Dense attention behind a sparse name, with no witness or a false one.

A witness computed from the configuration says what was meant. When the selection never engages
(a ragged length, a missing kernel, a threshold that keeps all) quality is perfect, the share kept
reads 15 %, and the byte floor that a lie lowers voids no impossible time.

Cheats: `DenseCalledSparse`, `SilentFallback`, `NoWitness`, `ReadsNothing`. Honest: `TopTokens`,
`FallsBackAndSays`, `DenseSaysDense`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attnbench.methods.base import LayerShape, MethodLayer
from attnbench.methods.random_k import gathered, with_newest
from attnbench.methods.reference import exact_attention
from tests.evil.common import Approximate, AttendingLayer, Windowed, WindowLayer
from tests.evil.selection import budget, chosen_exactly, top_rows

BLOCK = 64


class DenseCalledSparseLayer(AttendingLayer):
    """Its figures are those of a selection of 15 %."""

    @property
    def attended(self) -> int:
        return budget(0.15, self.visible)


class SilentFallbackLayer(WindowLayer):
    """Its window kernel wants whole blocks; else all rows, and not a word."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.visible % BLOCK == 0:
            return super().decode(q, k, v)
        return self.attend(q, *self.append(k, v))


class FallsBackAndSaysLayer(SilentFallbackLayer):
    @property
    def attended(self) -> int:
        return super().attended if self.visible % BLOCK == 0 else self.visible


class NoWitnessLayer(WindowLayer):
    """Dense, of a declared window, and says only that all is well."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, *self.append(k, v))

    def witness(self) -> Mapping[str, float]:
        return {"engaged": 1.0}


class ReadsNothingLayer(WindowLayer):
    """The window and its witness are true; the floor under its time is one row."""

    def bytes_read(self) -> int:
        return self.shape.row_bytes


class TopTokensLayer(AttendingLayer):
    """Selects anew at every step."""

    def rows(self, q: Tensor, keys: Tensor) -> Tensor:
        cached = keys[:, :, :-1]
        return top_rows(q, cached, budget(0.15, self.prefilled), self.shape.group)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        rows = with_newest(self.rows(q, keys), keys.shape[2] - 1)
        return self.attend(q, gathered(keys, rows), gathered(values, rows))

    @property
    def attended(self) -> int:
        return min(self.visible, budget(0.15, self.prefilled) + 1)

    def bytes_read(self) -> int:
        """All keys, and the values of the chosen ones."""
        return (self.visible + self.attended) * self.shape.row_bytes // 2


class TopTokensReferenceLayer(TopTokensLayer):
    """The definition with state: the budget is that of the prompt."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        rows = self.rows(q.double(), keys.double())
        return chosen_exactly(q, keys, values, rows, self.shape)


@dataclass(frozen=True)
class DenseCalledSparse(Approximate):
    """Perfect quality at "15 % of tokens": it attends to all of them."""

    name: ClassVar[str] = "dense_called_sparse"
    layer_class: ClassVar[type[MethodLayer]] = DenseCalledSparseLayer


@dataclass(frozen=True)
class SilentFallback(Windowed):
    """A window that is one only at lengths that 64 divides; the witness never changes."""

    name: ClassVar[str] = "silent_fallback"
    layer_class: ClassVar[type[MethodLayer]] = SilentFallbackLayer


@dataclass(frozen=True)
class NoWitness(Windowed):
    """A window by name, and nothing that would show whether it engaged."""

    name: ClassVar[str] = "no_witness"
    layer_class: ClassVar[type[MethodLayer]] = NoWitnessLayer


@dataclass(frozen=True)
class ReadsNothing(Windowed):
    """Says that it attends to 32 tokens and that reading one of them is enough."""

    name: ClassVar[str] = "reads_nothing"
    layer_class: ClassVar[type[MethodLayer]] = ReadsNothingLayer


@dataclass(frozen=True)
class TopTokens(Approximate):
    """Honest: the 15 % of tokens that score highest, chosen at every step."""

    name: ClassVar[str] = "top_tokens"
    layer_class: ClassVar[type[MethodLayer]] = TopTokensLayer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        tokens = k.shape[2] - 1
        rows = top_rows(q.double(), k[:, :, :tokens].double(), budget(0.15, tokens), shape.group)
        return chosen_exactly(q, k, v, rows, shape)

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        return TopTokensReferenceLayer(shape)


@dataclass(frozen=True)
class FallsBackAndSays(Windowed):
    """Honest: the fallback is part of the definition and of the witness."""

    name: ClassVar[str] = "falls_back_and_says"
    layer_class: ClassVar[type[MethodLayer]] = FallsBackAndSaysLayer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        if k.shape[2] % BLOCK == 0:
            return super().reference(q, k, v, shape)
        return exact_attention(q, k, v, shape.scale)


@dataclass(frozen=True)
class DenseSaysDense(Approximate):
    """Honest: an approximation that keeps all it sees, and says 100 %."""

    name: ClassVar[str] = "dense_says_dense"
