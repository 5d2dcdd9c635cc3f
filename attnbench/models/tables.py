"""Inputs of attention-only steps, as rows on the device, one row a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.errors import Unsupported
from attnbench.methods.base import LayerShape
from attnbench.models.adapter import SurveyedLayer


class RowReader:
    """Copies a table's rows into one place on the device, one a step, round and round.

    `words` is int64 [T, W + 1], as `linked` makes it: because a row brings the distance to the next
    one, a step is two small kernels, one gather and one addition.
    """

    def __init__(self, words: Tensor) -> None:
        self._words = words
        self._place = torch.zeros(1, dtype=torch.int64, device=words.device)
        self._copy = torch.empty_like(words[:1])
        self.row = self._copy[0, :-1]  # [W], overwritten by every call of `advance`

    def advance(self) -> None:
        """Bring the next row to `row`."""
        torch.index_select(self._words, 0, self._place, out=self._copy)
        self._place.add_(self._copy[0, -1:])

    def untouched(self) -> bool:
        """Whether the row that was brought last is still what the table holds."""
        last = int(self._place - 1) % self._words.shape[0]
        return torch.equal(self.row, self._words[last, :-1])

    def reset(self) -> None:
        """Back to before the first row, in place."""
        self._place.zero_()


def linked(words: Tensor) -> Tensor:
    """int64 rows [T,W] -> [T,W+1]: the last word is the distance to the row that follows."""
    rows = pad(words, (0, 1))
    relink(rows)
    return rows


def relink(rows: Tensor) -> None:
    """Write the last word of `linked` rows anew, in place."""
    rows[:, -1] = 1
    rows[-1, -1] = 1 - rows.shape[0]


def token_table(tokens: Tensor, place: int) -> Tensor:
    """Tokens [T,B] to decode, all of them at one place -> rows [T,2B+1], `linked`."""
    return linked(torch.cat([tokens, torch.full_like(tokens, place)], dim=1))


@dataclass(frozen=True)
class QKVTables:
    """q, k and v of the new token for every full-attention layer and step.

    `words` holds a step's inputs of all layers side by side, so that one gather fetches them, eight
    bytes to an int64 and `linked`. `shapes` are those of the full-attention layers, in the order of
    the row.
    """

    words: Tensor
    shapes: tuple[LayerShape, ...]

    @staticmethod
    def pack(rows: Tensor, shapes: tuple[LayerShape, ...]) -> QKVTables:
        """From rows [T,W] of the layers' dtype."""
        rest = -rows.shape[1] % (torch.int64.itemsize // rows.itemsize)
        return QKVTables(linked(pad(rows, (0, rest)).view(torch.int64)), shapes)

    @property
    def rows(self) -> Tensor:
        """[T,W] of the layers' dtype."""
        return self.words[:, :-1].view(self.shapes[0].dtype)[:, : _row_width(self.shapes)]

    def draw(self, generator: torch.Generator) -> None:
        """New standard normal inputs, in place."""
        fill_normal(self.rows, generator)

    def turn(self, generator: torch.Generator) -> None:
        """Each input's sign kept or turned, alike in all rows, in place: normal inputs again, which
        costs a fraction of drawing them."""
        mask = torch.randint(
            -(2**63),
            2**63 - 1,
            self.words[0, :-1].shape,
            generator=generator,
            device=self.words.device,
        )
        self.words[:, :-1].bitwise_xor_(mask & _signs(self.shapes[0].dtype.itemsize))

    def split(self, row: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Views of one row, [W] or as words: q [B,H,1,D], k and v [B,Hkv,1,D] of every layer."""
        widths = [width for shape in self.shapes for width in _widths(shape)]
        pieces = iter(torch.split(self._elements(row), widths))
        return [
            (
                next(pieces).view(shape.batch, shape.heads, 1, shape.head_dim),
                next(pieces).view(shape.batch, shape.kv_heads, 1, shape.head_dim),
                next(pieces).view(shape.batch, shape.kv_heads, 1, shape.head_dim),
            )
            for shape in self.shapes
        ]

    def by_layer(self, row: Tensor) -> list[Tensor]:
        """Views of one row, all inputs of each layer side by side."""
        return list(torch.split(self._elements(row), [sum(_widths(s)) for s in self.shapes]))

    def _elements(self, row: Tensor) -> Tensor:
        return row.view(self.shapes[0].dtype)[: _row_width(self.shapes)]


def qkv_tables(surveyed: Sequence[SurveyedLayer], steps: int, seed: int) -> QKVTables:
    """Standard normal inputs for `steps` steps."""
    shapes = full_attention_shapes(surveyed)
    generator = torch.Generator(shapes[0].device).manual_seed(seed)
    size = (steps, _row_width(shapes))
    rows = torch.empty(size, dtype=shapes[0].dtype, device=shapes[0].device)
    fill_normal(rows, generator)
    return QKVTables.pack(rows, shapes)


def fill_normal(rows: Tensor, generator: torch.Generator) -> None:
    """Draw into `rows` in place. A CPU draws a whole tensor five times as fast as one with gaps."""
    if rows.device.type == "cpu":
        rows.copy_(torch.empty(rows.shape, dtype=rows.dtype).normal_(generator=generator))
    else:
        rows.normal_(generator=generator)


def captured_tables(
    surveyed: Sequence[SurveyedLayer],
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
) -> QKVTables:
    """Inputs recorded from a real model: per full-attention layer [T,B,H,1,D] and [T,B,Hkv,1,D]."""
    shapes = full_attention_shapes(surveyed)
    pieces = [x.flatten(1) for layer in zip(q, k, v, strict=True) for x in layer]
    return QKVTables.pack(torch.cat(pieces, dim=1).to(shapes[0].device, shapes[0].dtype), shapes)


def full_attention_shapes(surveyed: Sequence[SurveyedLayer]) -> tuple[LayerShape, ...]:
    """Shapes of the layers that methods apply to; raises `Unsupported` where there are none."""
    shapes = tuple(layer.shape for layer in surveyed if layer.window is None)
    if not shapes:
        raise Unsupported(
            "every layer of the model attends within a sliding window, which stays exact",
            hint=f"a context below {surveyed[0].window} tokens makes them full attention",
        )
    return shapes


def _signs(itemsize: int) -> int:
    """The sign bits of a word of elements of this size."""
    one = bytes(itemsize - 1) + b"\x80"
    return int.from_bytes(one * (8 // itemsize), "little", signed=True)


def _row_width(shapes: Sequence[LayerShape]) -> int:
    """Elements of q, k and v of one token in all layers."""
    return sum(sum(_widths(shape)) for shape in shapes)


def _widths(shape: LayerShape) -> tuple[int, int, int]:
    """Elements of q, k and v of one token."""
    kv = shape.batch * shape.kv_heads * shape.head_dim
    return shape.batch * shape.heads * shape.head_dim, kv, kv
