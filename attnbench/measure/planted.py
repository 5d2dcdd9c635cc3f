"""Two caches of ordinary noise that differ in the signs of a few value rows, at secret places.

Turning a row round keeps its norm, its scale and its distribution, so nothing in either cache tells
which rows are meant, and no method has a reason to treat them otherwise in one than in the other.
Attention is linear in the values: the output of a head moves by -2 Σ w_p v_p, p being the rows that
were turned. As these are far fewer than a head has channels, their weights follow by least squares,
and what the rows do not explain tells how far rounding goes.

Keys are standard normal, as values are. The weight is spread evenly by a small query, which nobody
knows before the step. Values add up to zero over the tokens, since a 16-bit output would otherwise
be too coarse for the share of one token: what moves by 2/N would stand beside a sum of √N/N.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.measure.taps import Tap
from attnbench.measure.workbench import Workbench
from attnbench.methods.base import LayerShape

CHANNELS_A_ROW = 8  # of a head, for every row that is turned: the rest tells what rounding does
SCORE_SPREAD = 0.05  # standard deviation of the scores, whose exponentials are the weights
# A token has influence from this share of an even weight 1/(N+1) on, and where rounding moves the
# least-squares weight by more, from so many of its standard errors on, but at most half of it: in
# caches of two bits the error is a fifth of a weight.
LEAST_WEIGHT, STANDARD_ERRORS, MOST_WEIGHT = 0.25, 4.0, 0.5


@dataclass(frozen=True)
class PlantedLayer:
    """Rows that are turned in one layer: `tokens` int64 [B,Hkv,P] on the device; on the host in
    float64 `rows` [B,Hkv,P,D] and the inverse [B,Hkv,P,P] of rows · rowsᵀ."""

    tokens: Tensor
    rows: Tensor
    inverse: Tensor


class Planted:
    """The bench's cache, filled with noise; `turn` changes it into the other one and back.

    The bench takes the cache as it is now for intact, and fills it so again.
    """

    def __init__(self, bench: Workbench, seed: int) -> None:
        self._bench = bench
        self._seed = seed
        self._turned = False
        self.layers = tuple(self._filled())
        bench.accept_cache(self._refill)

    def turn(self) -> None:
        """Turn the planted rows round in place, of a cache whose slot for new tokens is cleared."""
        self._bench.clear_slot()
        self._turned = not self._turned
        self._negate()
        self._bench.accept_cache(self._refill)

    def shown(self, before: tuple[Tap, ...], after: tuple[Tap, ...]) -> list[float]:
        """By layer, the share of planted tokens that have influence, averaged over query heads: the
        heads of a group may attend to other tokens. The taps are of one step over each of the two
        caches, on the host."""
        even = 1 / (self._bench.cache.length.tokens + 1)
        return [
            float(influential(one.out, other.out, layer, shape, even).double().mean())
            for one, other, layer, shape in zip(
                before, after, self.layers, self._bench.tables.shapes, strict=True
            )
        ]

    @property
    def count(self) -> int:
        """Planted tokens of all layers, sequences and KV heads."""
        return sum(layer.tokens.numel() for layer in self.layers)

    def _refill(self) -> None:
        self._filled()
        if self._turned:
            self._negate()

    def _filled(self) -> list[PlantedLayer]:
        generator = torch.Generator(self._bench.device).manual_seed(self._seed)
        return [_filled(self._bench, shape, generator) for shape in self._bench.tables.shapes]

    def _negate(self) -> None:
        for layer, shape in zip(self.layers, self._bench.tables.shapes, strict=True):
            values, places = self._bench.cache.views[shape.layer].v, _indices(layer.tokens)
            values[places] = -values[places]


def even_scores(bench: Workbench) -> None:
    """New inputs, of which the first row has queries so small that all weights are nearly even."""
    bench.freshen(secrets.randbits(31))
    inputs = bench.tables.split(bench.tables.rows[0])
    for (q, _, _), shape in zip(inputs, bench.tables.shapes, strict=True):
        q.mul_(SCORE_SPREAD / (shape.scale * shape.head_dim**0.5))
    bench.accept_inputs()


def influential(
    before: Tensor, after: Tensor, layer: PlantedLayer, shape: LayerShape, even: float
) -> Tensor:
    """Which planted tokens have influence on which query head: bool [B,Hkv,G,P], of outputs
    [B,H,1,D]; `even` is an even weight."""
    grouped = (shape.batch, shape.kv_heads, shape.group, shape.head_dim)
    moved = ((after.double() - before.double()) / 2).reshape(grouped)
    weights = moved @ layer.rows.mT @ layer.inverse
    planted = layer.tokens.shape[-1]
    unexplained = (moved - weights @ layer.rows).square().sum(-1) / (shape.head_dim - planted)
    spread = layer.inverse.diagonal(dim1=-2, dim2=-1)[:, :, None]
    error = (unexplained[..., None] * spread).sqrt()
    least = (STANDARD_ERRORS * error).clamp(LEAST_WEIGHT * even, MOST_WEIGHT * even)
    return weights.abs() >= least


def _filled(bench: Workbench, shape: LayerShape, generator: torch.Generator) -> PlantedLayer:
    """One layer's cache, filled, and what is to be turned in it."""
    view, tokens = bench.cache.views[shape.layer], bench.cache.length.tokens
    for rows in (view.k, view.v):
        rows[:, :, tokens:].zero_()
    view.k[:, :, :tokens].normal_(generator=generator)
    for sequence in view.v[:, :, :tokens]:  # one after another, to save memory
        noise = torch.empty(sequence.shape, device=bench.device).normal_(generator=generator)
        sequence.copy_(noise.sub_(noise.mean(dim=1, keepdim=True)))
    size = (shape.batch, shape.kv_heads, tokens)
    order = torch.rand(size, generator=generator, device=bench.device).argsort(dim=-1)
    places = order[..., : min(max(1, shape.head_dim // CHANNELS_A_ROW), tokens)]
    turned = view.v[_indices(places)].double().cpu()
    return PlantedLayer(places, turned, torch.linalg.inv(turned @ turned.mT))


def _indices(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What chooses rows [B,Hkv,P] of [B,Hkv,N,D]."""
    b, h = (torch.arange(size, device=tokens.device) for size in tokens.shape[:2])
    return b[:, None, None], h[None, :, None], tokens
