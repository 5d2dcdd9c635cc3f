"""Seeded inputs for checking a method: one cache, and tokens to append to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attnbench.methods.base import CacheLength, CacheView, LayerShape, Method, MethodLayer

# Rows beyond the tokens that a trial appends: a method that reads too far finds room to do so.
SPARE_ROWS = 24


@dataclass(frozen=True)
class Case:
    """The sizes of one trial; with two KV heads a wrong mapping of query heads shows."""

    tokens: int
    head_dim: int
    group: int
    batch: int = 1
    kv_heads: int = 2

    def __str__(self) -> str:
        return f"N={self.tokens} D={self.head_dim} g={self.group}"

    def shape(self, dtype: torch.dtype, device: torch.device, appended: int) -> LayerShape:
        """The layer of this case, with room for `appended` tokens and some to spare."""
        return LayerShape(
            batch=self.batch,
            heads=self.kv_heads * self.group,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            capacity=self.tokens + appended + SPARE_ROWS,
            dtype=dtype,
            device=device,
            layer=3,
            scale=0.8 * self.head_dim**-0.5,  # not the default: a method must use what it is given
        )


@dataclass(frozen=True)
class Step:
    """One token to append: q [B,H,1,D], k and v [B,Hkv,1,D]."""

    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Trial:
    """Keys with channels of unlike size, values, and queries that weigh tokens unevenly."""

    case: Case
    shape: LayerShape
    k: Tensor  # [B,Hkv,N,D]
    v: Tensor
    steps: tuple[Step, ...]
    tail: float = 0.0  # what fills the rows after the first appended one, where all should be zero
    order: Tensor | None = field(default=None)  # a permutation of the cached tokens

    @staticmethod
    def make(
        case: Case,
        dtype: torch.dtype,
        device: torch.device,
        appended: int = 1,
        seed: int = 0,
        sharpness: float = 2.0,
    ) -> Trial:
        """Draw a trial from a seed, on the CPU, so that every device sees the same numbers."""
        shape = case.shape(dtype, device, appended)
        generator = torch.Generator().manual_seed(seed)

        def draw(heads: int, tokens: int, size: float = 1.0) -> Tensor:
            rows = torch.randn((case.batch, heads, tokens, case.head_dim), generator=generator)
            return (rows * size).to(device=device, dtype=dtype)

        channel = torch.rand(case.kv_heads, 1, case.head_dim, generator=generator) + 0.5
        channel = channel.to(device=device, dtype=dtype)
        return Trial(
            case=case,
            shape=shape,
            k=draw(case.kv_heads, case.tokens) * channel,
            v=draw(case.kv_heads, case.tokens),
            steps=tuple(
                Step(
                    q=draw(shape.heads, 1, sharpness),
                    k=draw(case.kv_heads, 1) * channel,
                    v=draw(case.kv_heads, 1),
                )
                for _ in range(appended)
            ),
        )

    def cache(self) -> CacheView:
        """A fresh exact cache that holds the trial's tokens."""
        tokens = self.case.tokens
        rows = (self.case.batch, self.case.kv_heads, self.shape.capacity, self.case.head_dim)
        view = CacheView(
            k=torch.zeros(rows, dtype=self.shape.dtype, device=self.shape.device),
            v=torch.zeros(rows, dtype=self.shape.dtype, device=self.shape.device),
            length=CacheLength(self.shape.device, tokens),
        )
        for cached, drawn in ((view.k, self.k), (view.v, self.v)):
            cached[:, :, :tokens] = drawn if self.order is None else drawn[:, :, self.order]
            cached[:, :, tokens + 1 :] = self.tail
        return view

    def appended_by(self, layer: MethodLayer) -> Iterator[Tensor]:
        """Prefill a fresh cache, append every token, and yield a copy of each output."""
        cache = self.cache()
        layer.prefill(cache)
        yield from self.continued(layer, cache)

    def continued(self, layer: MethodLayer, cache: CacheView) -> Iterator[Tensor]:
        """Append every token to a prefilled layer, advancing the length as the harness does."""
        for step in self.steps:
            yield layer.decode(step.q, step.k, step.v).clone()
            cache.length.advance()

    def first_output(self, layer: MethodLayer) -> Tensor:
        """What the first appended token attends to."""
        return next(self.appended_by(layer))

    def permuted(self, seed: int) -> Trial:
        """The same tokens in another order."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.case.tokens, generator=generator)
        return replace(self, order=order.to(self.shape.device))

    def with_negated(self, token: int) -> Trial:
        """The same trial with one cached value row turned round, which keeps its norm and scale."""
        v = self.v.clone()
        v[:, :, token].neg_()
        return replace(self, v=v)


def prefilled(method: Method, trial: Trial) -> tuple[MethodLayer, CacheView]:
    """A layer that has taken over a fresh cache."""
    layer, cache = method.layer(trial.shape), trial.cache()
    layer.prefill(cache)
    return layer, cache


def storages(tensors: Iterator[Tensor]) -> dict[int, int]:
    """Bytes by storage: views of one tensor count once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
