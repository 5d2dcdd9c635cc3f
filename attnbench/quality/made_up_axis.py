"""The data on which ABKV was first judged, and what is left of its figures on other queries.

In each KV head a share of the keys, and every query, are 6 u + .3 noise for one random unit u; all
else is normal noise. So the mean of the keys points at what is important, and so does every query.
With queries of length 6 in random directions neither holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import msgspec
import torch
from torch import Tensor

from attnbench.methods.abkv import Abkv
from attnbench.methods.base import CacheLength, CacheView, LayerShape, Method
from attnbench.methods.oracle_topk import OracleTopK
from attnbench.methods.random_k import RandomK
from attnbench.methods.reference import exact_attention
from attnbench.quality.metrics import head_metrics

BATCH, HEADS, KV_HEADS, TOKENS, HEAD_DIM = 2, 8, 2, 512, 64
IMPORTANT, AMPLITUDE, NOISE = 0.15, 6.0, 0.3
COVERAGES = (0.10, 0.20, 0.30, 0.50, 0.80)
SEEDS = (42, 43, 44)
RANDOM_DRAWS = 5


@dataclass(frozen=True)
class MadeUp:
    """q [B,H,1,D], k and v [B,Hkv,N,D]; of the N tokens the last is the newest."""

    shape: LayerShape
    q: Tensor
    k: Tensor
    v: Tensor

    def attended(self, method: Method) -> Tensor:
        """What a method's layer returns for the newest token, after a prompt of all others."""
        prompt = TOKENS - 1
        rows = torch.stack((self.k, self.v))
        rows[:, :, :, prompt:] = 0
        layer = method.layer(self.shape)
        layer.prefill(CacheView(rows[0], rows[1], CacheLength(self.shape.device, prompt)))
        return layer.decode(self.q, self.k[:, :, prompt:], self.v[:, :, prompt:])

    def cosine(self, method: Method) -> float:
        """Of a method's outputs with those of exact attention, over sequences and heads."""
        exact = exact_attention(self.q, self.k, self.v, self.shape.scale)
        return float(head_metrics(self.attended(method), exact).cosine.mean())


class AxisFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Cosines on made-up data at one coverage: means over seeds, of `abkv` with the least and the
    greatest; `kept` tokens of the prompt, and the newest."""

    coverage: float
    aligned: bool
    kept: int
    abkv: float
    abkv_low: float
    abkv_high: float
    top_k: float
    random: float


def drawn(seed: int, *, aligned: bool = True) -> MadeUp:
    """One draw of the generator, in float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, HEAD_DIM, generator=generator)

    unit = torch.nn.functional.normalize(normal(KV_HEADS), dim=-1) * AMPLITUDE
    k, v = normal(BATCH, KV_HEADS, TOKENS), normal(BATCH, KV_HEADS, TOKENS)
    important = int(IMPORTANT * TOKENS)
    near = normal(BATCH, KV_HEADS, important)
    k[:, :, :important] = unit[:, None] + NOISE * near
    q = unit.repeat_interleave(HEADS // KV_HEADS, 0)[:, None] + NOISE * normal(BATCH, HEADS, 1)
    if not aligned:
        direction = torch.nn.functional.normalize(normal(BATCH, HEADS, 1), dim=-1)
        q = AMPLITUDE * direction
    shape = LayerShape(
        batch=BATCH,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=TOKENS,
        dtype=torch.float32,
        device=torch.device("cpu"),
        layer=0,
        scale=HEAD_DIM**-0.5,
    )
    return MadeUp(shape, q, k, v)


def axis_table(
    coverages: tuple[float, ...] = COVERAGES, seeds: tuple[int, ...] = SEEDS
) -> Iterator[AxisFigures]:
    """ABKV in mode A without a least number of tokens, beside exact top-k and random tokens of as
    many, with queries of both kinds."""
    for aligned in (True, False):
        draws = [drawn(seed, aligned=aligned) for seed in seeds]
        for coverage in coverages:
            yield _figures(draws, coverage, aligned=aligned)


def _figures(draws: list[MadeUp], coverage: float, *, aligned: bool) -> AxisFigures:
    method, prompt = Abkv(coverage=coverage, k_min=1), TOKENS - 1
    kept = method.k_eff(prompt)
    found = [draw.cosine(method) for draw in draws]
    oracle = OracleTopK(share=(kept + 1) / TOKENS)
    nulls = [RandomK(share=kept / prompt, seed=seed) for seed in range(RANDOM_DRAWS)]
    return AxisFigures(
        coverage=coverage,
        aligned=aligned,
        kept=kept,
        abkv=fmean(found),
        abkv_low=min(found),
        abkv_high=max(found),
        top_k=fmean(draw.cosine(oracle) for draw in draws),
        random=fmean(draw.cosine(null) for draw in draws for null in nulls),
    )
