"""K and V kept outside `tensors()`.

A memory figure that is read from what a method declares is the method's own claim. Each keeps full
copies of K and V somewhere and declares a sketch of them: "lossless, at a hundredth of the bytes".

Cheats, `KeepsElsewhere,where=`: `module` (a global), `closure`, `numpy` and `ctypes` (the host, and
no tensor), `length` (on the harness's own object), `sketch` (an attribute of a declared tensor),
`generator` (a suspended frame); and `BorrowsTheCache` (declares eight bits and reads the exact
cache while it is alive, which it is whenever quality and latency are measured). Honest:
`KeepsAndSays` with the same places, `KeepsAPageTable`.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from tests.evil import undo
from tests.evil.common import Approximate, AttendingLayer
from tests.evil.low_precision import OwnInt8Layer

Place = Literal["module", "closure", "numpy", "ctypes", "length", "sketch", "generator"]
Rows = tuple[Tensor, Tensor]
ELSEWHERE: dict[int, Rows] = {}


class KeepsElsewhereLayer(AttendingLayer):
    """`found` gives back what `prefill` hid; decode writes there and attends there."""

    found: Callable[[], Rows]

    def __init__(self, shape: LayerShape, where: Place) -> None:
        super().__init__(shape)
        self.where = where

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        self.length, self.prefilled = cache.length, cache.length.tokens
        self.sketch = cache.k[:, :, : self.prefilled].mean(dim=2)
        HIDERS[self.where](self, cache.k.clone(), cache.v.clone())

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = self.length.tokens
        rows = self.found()
        for kept, new in zip(rows, (k, v), strict=True):
            kept[:, :, row : row + 1].copy_(new)
        return self.attend(q, *(kept[:, :, : row + 1] for kept in rows))

    def reset(self) -> None:
        for kept in self.found():
            kept[:, :, self.prefilled :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        yield self.sketch

    def bytes_read(self) -> int:
        return self.sketch.nbytes

    def witness(self):
        return {"kept_share": 1.0}


class KeepsAndSaysLayer(KeepsElsewhereLayer):
    def tensors(self) -> Iterator[Tensor]:
        yield from (self.sketch, *self.found())

    def bytes_read(self) -> int:
        return (self.length.tokens + 1) * self.shape.row_bytes


def in_module(layer: KeepsElsewhereLayer, *rows: Tensor) -> None:
    place = id(layer)
    ELSEWHERE[place] = rows
    weakref.finalize(layer, ELSEWHERE.pop, place, None)
    layer.found = lambda: ELSEWHERE[place]


def in_closure(layer: KeepsElsewhereLayer, *rows: Tensor) -> None:
    layer.found = lambda: rows


def in_numpy(layer: KeepsElsewhereLayer, *rows: Tensor) -> None:
    """As bytes, since numpy has no bfloat16."""
    shape, dtype = rows[0].shape, rows[0].dtype
    layer.kept = [kept.cpu().view(torch.uint8).numpy() for kept in rows]
    layer.found = lambda: tuple(
        torch.from_numpy(kept).view(dtype).view(shape) for kept in layer.kept
    )


def in_ctypes(layer: KeepsElsewhereLayer, *rows: Tensor) -> None:
    shape, dtype = rows[0].shape, rows[0].dtype
    buffers = [(ctypes.c_char * kept.nbytes)() for kept in rows]
    layer.found = lambda: tuple(torch.frombuffer(b, dtype=dtype).view(shape) for b in buffers)
    for place, kept in zip(layer.found(), rows, strict=True):
        place.copy_(kept)


def on_length(layer: KeepsElsewhereLayer, *rows: Tensor) -> None:
    """The one object of the harness that every layer may hold."""
    name = f"layer_{layer.shape.layer}"
    length = layer.length
    setattr(length, name, rows)
    undo.later(lambda: vars(length).pop(name, None))
    layer.found = lambda: getattr(length, name)


def on_sketch(layer: KeepsElsewhereLayer, *rows: Tensor) -> None:
    layer.sketch.whole = rows
    layer.found = lambda: layer.sketch.whole


def in_generator(layer: KeepsElsewhereLayer, *rows: Tensor) -> None:
    def keeps(kept: Rows) -> Generator[Rows, None, None]:
        while True:
            yield kept

    frame = keeps(rows)
    layer.found = lambda: next(frame)


HIDERS: dict[Place, Callable[..., None]] = {
    "module": in_module,
    "closure": in_closure,
    "numpy": in_numpy,
    "ctypes": in_ctypes,
    "length": on_length,
    "sketch": on_sketch,
    "generator": in_generator,
}


class BorrowsTheCacheLayer(OwnInt8Layer):
    """Eight bits of its own, and weak references to the exact rows."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.exact = (weakref.ref(cache.k), weakref.ref(cache.v))

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (rows() for rows in self.exact)
        if keys is None or values is None:
            return super().decode(q, k, v)
        borrowed = AttendingLayer(self.shape)
        AttendingLayer.prefill(borrowed, CacheView(keys, values, self.length))
        output = borrowed.decode(q, k, v)
        for rows in (keys, values):  # as it was before anyone looks
            rows[:, :, self.length.tokens :].zero_()
        return output


class KeepsAPageTableLayer(AttendingLayer):
    """Own copies of the rows in shuffled pages, declared, and their numbers in plain Python."""

    PAGE = 16

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        self.length, self.prefilled = cache.length, cache.length.tokens
        pages = -(-cache.k.shape[2] // self.PAGE)
        self.pages = list(reversed(range(pages)))
        self.k, self.v = (self.paged(rows) for rows in (cache.k, cache.v))

    def paged(self, rows: Tensor) -> Tensor:
        spare = len(self.pages) * self.PAGE - rows.shape[2]
        rows = torch.nn.functional.pad(rows, (0, 0, 0, spare))
        return torch.cat([rows.split(self.PAGE, dim=2)[page] for page in self.pages], dim=2)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = self.length.tokens
        place = self.pages.index(row // self.PAGE) * self.PAGE + row % self.PAGE
        for kept, new in ((self.k, k), (self.v, v)):
            kept[:, :, place : place + 1].copy_(new)
        token = torch.arange(self.k.shape[2], device=q.device)
        page = torch.tensor(self.pages, device=q.device)
        written = page[token // self.PAGE] * self.PAGE + token % self.PAGE <= row
        return self.attend(q, self.k[:, :, written], self.v[:, :, written])

    def reset(self) -> None:
        """What lies after the prompt is never read before it is written."""

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.k, self.v)

    def bytes_read(self) -> int:
        return (self.length.tokens + 1) * self.shape.row_bytes

    def witness(self):
        return {"kept_share": 1.0}


@dataclass(frozen=True)
class KeepsElsewhere(Approximate):
    """Full copies of K and V in a place that `tensors()` does not name."""

    where: Place = "module"

    name: ClassVar[str] = "keeps_elsewhere"
    layer_class: ClassVar[type[MethodLayer]] = KeepsElsewhereLayer

    def layer(self, shape: LayerShape) -> MethodLayer:
        return self.layer_class(shape, self.where)


@dataclass(frozen=True)
class BorrowsTheCache(Approximate):
    """The memory of eight bits, the quality of the exact cache."""

    name: ClassVar[str] = "borrows_the_cache"
    layer_class: ClassVar[type[MethodLayer]] = BorrowsTheCacheLayer


@dataclass(frozen=True)
class KeepsAndSays(KeepsElsewhere):
    """Honest: the same copies in the same places, all declared."""

    name: ClassVar[str] = "keeps_and_says"
    layer_class: ClassVar[type[MethodLayer]] = KeepsAndSaysLayer


@dataclass(frozen=True)
class KeepsAPageTable(Approximate):
    """Honest: K and V declared, a list of page numbers on the host beside them."""

    name: ClassVar[str] = "keeps_a_page_table"
    layer_class: ClassVar[type[MethodLayer]] = KeepsAPageTableLayer
