"""A small bench for a method: six layers, an exact cache that ends at the next token, a table.

Queries of neighbouring steps resemble each other, and those of steps 2i and 2i + 1 are the same
under different keys and values, so that whoever reuses a result by the query alone is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.measure.clock import HostClock
from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.models.adapter import ExactCache, SurveyedLayer
from attnbench.models.step import AttentionStep
from attnbench.models.tables import QKVTables, captured_tables

TOKENS, STEPS, LAYERS = 95, 16, 6


def shapes(device: str) -> tuple[LayerShape, ...]:
    """Every layer of the scene."""
    return tuple(
        LayerShape(
            batch=2,
            heads=8,
            kv_heads=2,
            head_dim=32,
            capacity=TOKENS + 1,
            dtype=torch.float32,
            device=torch.device(device),
            layer=layer,
            scale=0.2,
        )
        for layer in range(LAYERS)
    )


@dataclass
class Scene:
    """A method's layers on the bench; `right` holds what each step's layers should return."""

    cache: ExactCache
    tables: QKVTables
    layers: list[MethodLayer]
    step: AttentionStep
    right: list[list[Tensor]]

    def timed(self, steps: int = STEPS) -> list[tuple[Tensor, ...]]:
        """Copies of the outputs of each step, taken as the step returns, under the host's clock."""
        outputs: list[tuple[Tensor, ...]] = []
        HostClock().time(lambda: outputs.append(tuple(torch.clone(x) for x in self.step())), steps)
        return outputs

    def checksums(self) -> list[Tensor]:
        """Copies of all keys and values."""
        return [rows.clone() for view in self.cache.views for rows in (view.k, view.v)]

    def kept(self, steps: int = STEPS) -> list[tuple[Tensor, ...]]:
        """The outputs themselves."""
        return [self.step() for _ in range(steps)]

    def error(self, outputs: list[tuple[Tensor, ...]]) -> float:
        """The largest relative L2 distance from what is right, of any step and layer."""
        return max(
            float(torch.linalg.vector_norm(output.double() - right))
            / float(torch.linalg.vector_norm(right))
            for step, all_right in zip(outputs, self.right, strict=False)
            for output, right in zip(step, all_right, strict=True)
        )


def scene(method: Method, device: str = "cpu") -> Scene:
    """Build it; what is right is what the method declares: exact attention, or its reference."""
    generator = torch.Generator().manual_seed(0)
    of_layers = shapes(device)
    shape = of_layers[0]

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device)

    cache = ExactCache(of_layers)
    cache.length.set(TOKENS)
    rows = (shape.batch, shape.kv_heads, TOKENS, shape.head_dim)
    for view in cache.views:
        view.k[:, :, :TOKENS], view.v[:, :, :TOKENS] = draw(*rows), draw(*rows)
    one = (shape.batch, shape.heads, 1, shape.head_dim)
    new = (STEPS, shape.batch, shape.kv_heads, 1, shape.head_dim)
    q = [(draw(*one) + 0.5 * draw(STEPS // 2, *one)).repeat_interleave(2, 0) for _ in of_layers]
    k, v = ([draw(*new) for _ in of_layers] for _ in range(2))
    tables = captured_tables([SurveyedLayer(shape, None) for shape in of_layers], q, k, v)
    defined = exact if method.family is Family.EXACT else method.reference
    right = [
        [
            defined(q[n][step], *with_row(cache.views[n], k[n][step], v[n][step]), shape)
            for n in range(LAYERS)
        ]
        for step in range(STEPS)
    ]
    layers = [method.layer(layer) for layer in of_layers]
    for layer, view in zip(layers, cache.views, strict=True):
        layer.prefill(view)
    return Scene(cache, tables, layers, AttentionStep(layers, tables), right)


def with_row(view: CacheView, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The cached rows and the new one."""
    return tuple(torch.cat((old[:, :, :TOKENS], row), 2) for old, row in ((view.k, k), (view.v, v)))


def exact(q: Tensor, keys: Tensor, values: Tensor, shape: LayerShape) -> Tensor:
    """Attention by this file's own arithmetic, which nobody patches, float64."""
    grouped = q.unflatten(1, (shape.kv_heads, shape.group))[:, :, :, 0].double()
    weights = torch.softmax(grouped @ keys.double().mT * shape.scale, dim=-1)
    return (weights @ values.double()).reshape(q.shape)
