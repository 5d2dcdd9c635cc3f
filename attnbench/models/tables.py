"""Inputs of attention-only steps, as rows on the device, one row a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.base import LayerShape
from attnbench.models.adapter import SurveyedLayer


class StepCounter:
    """The row of the step to come, kept and advanced on the device, modulo `rows`."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.row = torch.zeros(1, dtype=torch.int64, device=device)
        self._rows = rows

    def advance(self) -> None:
        """Point to the next row, in place."""
        self.row.add_(1).remainder_(self._rows)

    def reset(self) -> None:
        """Point to the first row, in place."""
        self.row.zero_()


@dataclass(frozen=True)
class QKVTables:
    """q, k and v of the new token for every full-attention layer and step.

    `rows` is [T, W]: a step's inputs of all layers side by side, so that one gather fetches them.
    `shapes` are those of the full-attention layers, in the order of the row.
    """

    rows: Tensor
    shapes: tuple[LayerShape, ...]

    @property
    def steps(self) -> int:
        """Rows before the table starts again."""
        return self.rows.shape[0]

    def split(self, row: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Views of one row [W]: q [B,H,1,D], k and v [B,Hkv,1,D] of every layer."""
        widths = [width for shape in self.shapes for width in _widths(shape)]
        pieces = iter(torch.split(row, widths))
        return [
            (
                next(pieces).view(shape.batch, shape.heads, 1, shape.head_dim),
                next(pieces).view(shape.batch, shape.kv_heads, 1, shape.head_dim),
                next(pieces).view(shape.batch, shape.kv_heads, 1, shape.head_dim),
            )
            for shape in self.shapes
        ]


def qkv_tables(surveyed: Sequence[SurveyedLayer], steps: int, seed: int) -> QKVTables:
    """Standard normal inputs for `steps` steps."""
    shapes = full_attention_shapes(surveyed)
    width = sum(sum(_widths(shape)) for shape in shapes)
    generator = torch.Generator(shapes[0].device).manual_seed(seed)
    rows = torch.empty((steps, width), dtype=shapes[0].dtype, device=shapes[0].device)
    return QKVTables(rows.normal_(generator=generator), shapes)


def captured_tables(
    surveyed: Sequence[SurveyedLayer],
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
) -> QKVTables:
    """Inputs recorded from a real model: per full-attention layer [T,B,H,1,D] and [T,B,Hkv,1,D]."""
    shapes = full_attention_shapes(surveyed)
    pieces = [x.flatten(1) for layer in zip(q, k, v, strict=True) for x in layer]
    return QKVTables(torch.cat(pieces, dim=1).to(shapes[0].device, shapes[0].dtype), shapes)


def full_attention_shapes(surveyed: Sequence[SurveyedLayer]) -> tuple[LayerShape, ...]:
    """Shapes of the layers that methods apply to; raises `Unsupported` where there are none."""
    shapes = tuple(layer.shape for layer in surveyed if layer.window is None)
    if not shapes:
        raise Unsupported(
            "every layer of the model attends within a sliding window, which stays exact",
            hint=f"a context below {surveyed[0].window} tokens makes them full attention",
        )
    return shapes


def _widths(shape: LayerShape) -> tuple[int, int, int]:
    """Elements of q, k and v of one token."""
    kv = shape.batch * shape.kv_heads * shape.head_dim
    return shape.batch * shape.heads * shape.head_dim, kv, kv
