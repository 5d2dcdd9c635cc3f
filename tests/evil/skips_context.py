"""Part of the context silently skipped.

Far tokens weigh little, layers and heads resemble each other, and the mean of many outputs hides a
few wrong ones. Each declares exact attention (`HalfWindow`: its window) and the witness of it.

Cheats: `FarMiddle`, `SmallMass`, `EverySecondToken`, `OddLayers`, `UncheckedLayers` (all but first,
middle and last), `LastHeads`, `SecondSteps`, `OtherSequences`, `FewerChannels`, `HalfWindow`.
Honest: `SkipsUnderflow`, `GoesByBlocks`, `DeclaredWindow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import LayerShape, MethodLayer
from tests.evil.common import AttendingLayer, Exact, LastOutputLayer, Windowed, WindowLayer

ENDS = 24  # rows at the beginning and at the end that are attended to


def ends(rows: Tensor) -> Tensor:
    """The first and last rows of [B,Hkv,N,D]."""
    if rows.shape[2] <= 2 * ENDS:
        return rows
    return torch.cat((rows[:, :, :ENDS], rows[:, :, -ENDS:]), dim=2)


class FarMiddleLayer(AttendingLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, *map(ends, self.append(k, v)))


class SmallMassLayer(AttendingLayer):
    """Reads all keys, and values only of tokens whose score is within `margin` of the highest."""

    margin = 4.0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (keys, values), shape = self.append(k, v), self.shape
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        scores = grouped @ keys.mT * shape.scale
        floor = scores.amax(-1, keepdim=True) - self.margin
        output = torch.empty_like(grouped)
        for sequence in range(shape.batch):
            for head in range(shape.kv_heads):
                one = scores[sequence, head]
                kept = (one >= floor[sequence, head]).any(0).nonzero()[:, 0]
                weights = one[:, kept].softmax(-1)
                output[sequence, head] = weights @ values[sequence, head, kept]
        return output.reshape(q.shape)


class SkipsUnderflowLayer(SmallMassLayer):
    """exp(-110) is zero in float32 and all narrower types: what is left out has no weight."""

    margin = 110.0


class EverySecondTokenLayer(AttendingLayer):
    """A strided view: half of the rows, the newest among them."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = self.cache.length.tokens % 2
        return self.attend(q, *(rows[:, :, first::2] for rows in self.append(k, v)))


class OddLayersLayer(FarMiddleLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.shape.layer % 2 == 0:
            return AttendingLayer.decode(self, q, k, v)
        return super().decode(q, k, v)


class UncheckedLayersLayer(FarMiddleLayer):
    """Learns from its construction how many layers there are."""

    deepest: ClassVar[int] = 0

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape)
        built = type(self)
        built.deepest = shape.layer if shape.layer == 0 else max(built.deepest, shape.layer)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.shape.layer in (0, (self.deepest + 1) // 2, self.deepest):
            return AttendingLayer.decode(self, q, k, v)
        return super().decode(q, k, v)


class LastHeadsLayer(AttendingLayer):
    """Never reads the last quarter of the KV heads; their query heads repeat the ones before."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        few = max(1, self.shape.kv_heads * 3 // 4)
        heads = few * self.shape.group
        output = self.attend(q[:, :heads], keys[:, :few], values[:, :few])
        return torch.cat((output, output[:, 2 * heads - q.shape[1] :]), dim=1)


class SecondStepsLayer(LastOutputLayer):
    odd = False

    def works_now(self, q: Tensor) -> bool:
        self.odd = not self.odd
        return self.odd


class OtherSequencesLayer(AttendingLayer):
    """The first sequence in full, the others from the ends of their context."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        first = self.attend(q[:1], keys[:1], values[:1])
        if q.shape[0] == 1:
            return first
        others = self.attend(q[1:], ends(keys[1:]), ends(values[1:]))
        return torch.cat((first, others))


class FewerChannelsLayer(AttendingLayer):
    """Scores from three quarters of each key; every value."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (keys, values), shape = self.append(k, v), self.shape
        few = shape.head_dim * 3 // 4
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        scores = grouped[..., :few] @ keys[..., :few].mT * shape.scale
        return (scores.softmax(-1) @ values).reshape(q.shape)


class HalfWindowLayer(WindowLayer):
    """Attends to half of the window and declares the whole of it."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        half = max(1, self.window // 2)
        return self.attend(q, *(rows[:, :, -half:] for rows in self.append(k, v)))


class GoesByBlocksLayer(AttendingLayer):
    """One block after another with a running maximum, the middle included: exact."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (keys, values), shape = self.append(k, v), self.shape
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        best = grouped.new_full((*grouped.shape[:-1], 1), -torch.inf)
        total, output = torch.zeros_like(best), torch.zeros_like(grouped)
        for some, their in zip(keys.split(64, 2), values.split(64, 2), strict=True):
            scores = grouped @ some.mT * shape.scale
            higher = torch.maximum(best, scores.amax(-1, keepdim=True))
            weights, shrink = (scores - higher).exp(), (best - higher).exp()
            total = total * shrink + weights.sum(-1, keepdim=True)
            output = output * shrink + weights @ their
            best = higher
        return (output / total).reshape(q.shape)


@dataclass(frozen=True)
class FarMiddle(Exact):
    """The first 24 and the last 24 tokens, called all of them."""

    name: ClassVar[str] = "far_middle"
    layer_class: ClassVar[type[MethodLayer]] = FarMiddleLayer


@dataclass(frozen=True)
class SmallMass(Exact):
    """Leaves out tokens that weigh less than a fiftieth of the heaviest, and their values."""

    name: ClassVar[str] = "small_mass"
    layer_class: ClassVar[type[MethodLayer]] = SmallMassLayer


@dataclass(frozen=True)
class EverySecondToken(Exact):
    """One token of two, and the weights add up to one."""

    name: ClassVar[str] = "every_second_token"
    layer_class: ClassVar[type[MethodLayer]] = EverySecondTokenLayer


@dataclass(frozen=True)
class OddLayers(Exact):
    """Layers 1, 3, 5 ... leave out the middle."""

    name: ClassVar[str] = "odd_layers"
    layer_class: ClassVar[type[MethodLayer]] = OddLayersLayer


@dataclass(frozen=True)
class UncheckedLayers(Exact):
    """All layers leave out the middle but the first, the middle and the last one."""

    name: ClassVar[str] = "unchecked_layers"
    layer_class: ClassVar[type[MethodLayer]] = UncheckedLayersLayer


@dataclass(frozen=True)
class LastHeads(Exact):
    """The last quarter of the heads repeats others; with one KV head it does not cheat."""

    name: ClassVar[str] = "last_heads"
    layer_class: ClassVar[type[MethodLayer]] = LastHeadsLayer


@dataclass(frozen=True)
class SecondSteps(Exact):
    """Every second step repeats the one before."""

    name: ClassVar[str] = "second_steps"
    layer_class: ClassVar[type[MethodLayer]] = SecondStepsLayer


@dataclass(frozen=True)
class OtherSequences(Exact):
    """Sequence 0 of the batch is exact, the others leave out the middle; alone it is honest."""

    name: ClassVar[str] = "other_sequences"
    layer_class: ClassVar[type[MethodLayer]] = OtherSequencesLayer


@dataclass(frozen=True)
class FewerChannels(Exact):
    """Every token counts, by three quarters of its key."""

    name: ClassVar[str] = "fewer_channels"
    layer_class: ClassVar[type[MethodLayer]] = FewerChannelsLayer


@dataclass(frozen=True)
class HalfWindow(Windowed):
    """Declares a window of 32 and reads 16 tokens."""

    name: ClassVar[str] = "half_window"
    layer_class: ClassVar[type[MethodLayer]] = HalfWindowLayer


@dataclass(frozen=True)
class SkipsUnderflow(Exact):
    """Honest: leaves out tokens whose weight is zero in floating point."""

    name: ClassVar[str] = "skips_underflow"
    layer_class: ClassVar[type[MethodLayer]] = SkipsUnderflowLayer


@dataclass(frozen=True)
class GoesByBlocks(Exact):
    """Honest: block after block, all of them."""

    name: ClassVar[str] = "goes_by_blocks"
    layer_class: ClassVar[type[MethodLayer]] = GoesByBlocksLayer


@dataclass(frozen=True)
class DeclaredWindow(Windowed):
    """Honest: a window, and a witness and a reference that say so."""

    name: ClassVar[str] = "declared_window"
    layer_class: ClassVar[type[MethodLayer]] = WindowLayer
