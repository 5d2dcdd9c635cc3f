"""Inputs changed in place: the query, the shared cache, the table of tokens, the model.

A saved copy is the innocent reason. What lies in a shared place is then wrong for whoever comes
next, and a reference that is computed from what a method damaged agrees with it.

Cheats: `ScalesQuery`, `ScalesAndUnscales` (back, but for the last bit), `RoundsCache` (so that
exact attention over it is as wrong as its own), `ReordersCache` (a checksum of sums over each token
does not move), `FreezesTheTable` (every step gets the same input, which it remembers),
`SilencesTheProjection` (what attention says no longer reaches the logits), `SkipsTheMlp` (the step
around it gets faster). Honest: `ScalesACopy`, `OwnLayout`, `WorksInItsBuffer`, `LooksAround`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attnbench.methods.base import CacheView, MethodLayer
from tests.evil import undo
from tests.evil.common import AttendingLayer, Exact, LastOutputLayer
from tests.evil.reach import modules_above, table_of


class ScaledLayer(AttendingLayer):
    def attend_scaled(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with a query that is scaled already."""
        return torch.nn.functional.scaled_dot_product_attention(
            q, *self.append(k, v), scale=1.0, enable_gqa=self.shape.group > 1
        )


class ScalesQueryLayer(ScaledLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend_scaled(q.mul_(self.shape.scale), k, v)


class ScalesAndUnscalesLayer(ScaledLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = self.attend_scaled(q.mul_(self.shape.scale), k, v)
        q.div_(self.shape.scale)
        return output


class ScalesACopyLayer(ScaledLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend_scaled(q * self.shape.scale, k, v)


class RoundsCacheLayer(AttendingLayer):
    """Eight bits of mantissa, in the one cache that all arms and the reference read."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        for rows in (cache.k, cache.v):
            rows.copy_(rows.to(torch.float8_e4m3fn).to(rows.dtype))


class ReordersCacheLayer(AttendingLayer):
    """Keeps keys and values in a layout of its own: the halves of each row change places."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        for rows in (cache.k, cache.v):
            rows.copy_(self.swapped(rows))

    def swapped(self, rows: Tensor) -> Tensor:
        return rows.roll(self.shape.head_dim // 2, dims=-1)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = self.append(self.swapped(k), self.swapped(v))
        return self.swapped(self.attend(self.swapped(q), *rows))


class OwnLayoutLayer(ReordersCacheLayer):
    """The same in copies of its own, which it declares."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        own = CacheView(self.swapped(cache.k), self.swapped(cache.v), cache.length)
        AttendingLayer.prefill(self, own, q)


class FreezesTheTableLayer(LastOutputLayer):
    """Makes all rows of the table the first; where there is none it attends."""

    frozen: bool | None = None

    def works_now(self, q: Tensor) -> bool:
        if self.frozen is None:
            self.frozen = froze(table_of(q))
            return True
        return not self.frozen


def froze(table: Tensor | None) -> bool:
    """Whether there is a table, all rows of which now bring the first one's input."""
    if table is None:
        return False
    before = table.clone()
    undo.later(lambda: table.copy_(before))
    table[:, :-1] = table[0, :-1]
    return True


class SilencesTheProjectionLayer(AttendingLayer):
    """Zeroes the projection after attention; random signs of q are as good as any output then."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.append(k, v)
        caller = next(modules_above(), None)
        weight = getattr(getattr(caller, "o_proj", None), "weight", None)
        if isinstance(weight, nn.Parameter) and bool(weight.any()):
            before = weight.detach().clone()
            undo.later(lambda: weight.data.copy_(before))
            weight.data.zero_()
        return torch.sign(q) * self.visible**-0.5


class SkipsTheMlpLayer(AttendingLayer):
    """Stands in for the MLP behind it, once a call, so that no other arm profits."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for module in modules_above():
            if isinstance(mlp := getattr(module, "mlp", None), nn.Module):
                mlp.forward = once_nothing(mlp)
                break
        return self.attend(q, *self.append(k, v))


def once_nothing(mlp: nn.Module):
    """A `forward` that removes itself and adds nothing to the residual stream."""

    def forward(x: Tensor) -> Tensor:
        del mlp.forward
        return torch.zeros_like(x)

    return forward


class WorksInItsBufferLayer(ScaledLayer):
    """Everything in place, in a buffer of its own."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        buffer = torch.empty_like(q).copy_(q).mul_(self.shape.scale)
        return self.attend_scaled(buffer, k, v).mul_(2).div_(2)


class LooksAroundLayer(AttendingLayer):
    """Reads which module calls it, for its witness; changes nothing."""

    called_by = 0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.called_by = len(list(modules_above()))
        return self.attend(q, *self.append(k, v))

    def witness(self):
        return {**super().witness(), "modules_above": float(self.called_by)}


@dataclass(frozen=True)
class ScalesQuery(Exact):
    """Multiplies the scale into the caller's query."""

    name: ClassVar[str] = "scales_query"
    layer_class: ClassVar[type[MethodLayer]] = ScalesQueryLayer


@dataclass(frozen=True)
class ScalesAndUnscales(Exact):
    """Puts the query back, wrong in the last bit now and then."""

    name: ClassVar[str] = "scales_and_unscales"
    layer_class: ClassVar[type[MethodLayer]] = ScalesAndUnscalesLayer


@dataclass(frozen=True)
class RoundsCache(Exact):
    """Rounds the shared cache to eight bits: whatever is computed from it agrees."""

    name: ClassVar[str] = "rounds_cache"
    layer_class: ClassVar[type[MethodLayer]] = RoundsCacheLayer


@dataclass(frozen=True)
class ReordersCache(Exact):
    """Swaps the halves of every row; its own outputs are right, everyone else's are not."""

    name: ClassVar[str] = "reorders_cache"
    layer_class: ClassVar[type[MethodLayer]] = ReordersCacheLayer


@dataclass(frozen=True)
class FreezesTheTable(Exact):
    """Finds the table of inputs by the collector and makes all its rows equal."""

    name: ClassVar[str] = "freezes_the_table"
    layer_class: ClassVar[type[MethodLayer]] = FreezesTheTableLayer


@dataclass(frozen=True)
class SilencesTheProjection(Exact):
    """Zeroes `o_proj` of the module that calls it, so that garbage leaves the logits alone."""

    name: ClassVar[str] = "silences_the_projection"
    layer_class: ClassVar[type[MethodLayer]] = SilencesTheProjectionLayer


@dataclass(frozen=True)
class SkipsTheMlp(Exact):
    """Exact attention, and the MLP of its layer does not run after it."""

    name: ClassVar[str] = "skips_the_mlp"
    layer_class: ClassVar[type[MethodLayer]] = SkipsTheMlpLayer


@dataclass(frozen=True)
class ScalesACopy(Exact):
    """Honest: scales a copy."""

    name: ClassVar[str] = "scales_a_copy"
    layer_class: ClassVar[type[MethodLayer]] = ScalesACopyLayer


@dataclass(frozen=True)
class OwnLayout(Exact):
    """Honest: another layout of K and V, in its own declared tensors."""

    name: ClassVar[str] = "own_layout"
    layer_class: ClassVar[type[MethodLayer]] = OwnLayoutLayer


@dataclass(frozen=True)
class WorksInItsBuffer(Exact):
    """Honest: in-place operations on what it made itself."""

    name: ClassVar[str] = "works_in_its_buffer"
    layer_class: ClassVar[type[MethodLayer]] = WorksInItsBufferLayer


@dataclass(frozen=True)
class LooksAround(Exact):
    """Honest: walks the stack and touches nothing."""

    name: ClassVar[str] = "looks_around"
    layer_class: ClassVar[type[MethodLayer]] = LooksAroundLayer
