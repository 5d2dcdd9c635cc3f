"""Direction-cosine ranking: attention to the tokens whose keys point most along the query.

Seqev/dcr-attention_v3. A step divides each query head by its length (pass 0), takes its product
with every key (pass 1), keeps the K highest scores, of equal ones those with the smaller index
(pass 2), and attends to the kept rows with the original query (pass 3). A positive factor of the
query changes no order, so this is exact top-K by logit, and costs a pass over all keys.

The source's kernel generations differ in how passes 1 and 2 are computed, and in nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import Family, KernelConfig, LayerShape, Method, MethodLayer
from attnbench.methods.oracle_topk import highest, of_kv_head
from attnbench.methods.random_k import gathered
from attnbench.methods.reference import exact_attention

SHORTEST = 1e-12  # a query is divided by its length, or by this if that is less
MULTIPLE = 2  # the kept tokens are rounded up to an even number
LARGEST_DENOMINATOR = 10**9  # of the coverage: its product with a length stays within 64 bits
HEAD_DIMS = (64, 128)


@dataclass(frozen=True)
class Passes:
    """How a generation computes its scores and its choice."""

    scoring: Literal["torch", "triton", "gemm", "mixed"]
    choosing: Literal["torch", "argsort", "select"]

    def with_gemm(self, batch: int) -> bool:
        """Whether so many sequences are scored by the library's product.

        Of `mixed` one alone is: at one sequence of 32768 tokens the source found the product 2.36
        times as fast as its kernel, and slower at four.
        """
        return self.scoring == "gemm" or (self.scoring == "mixed" and batch == 1)


GENERATIONS = {
    "m6": Passes("triton", "select"),
    "m6_mixed": Passes("mixed", "select"),
    "m5_mixed": Passes("mixed", "argsort"),
    "m5": Passes("gemm", "argsort"),
    "m4": Passes("triton", "argsort"),
    "m1": Passes("torch", "torch"),
}


@cache
def as_fraction(coverage: float) -> tuple[int, int]:
    """Numerator and denominator of the decimal number that was written: 0.29 of 100 are 29."""
    share = Fraction(str(coverage)).limit_denominator(LARGEST_DENOMINATOR)
    return share.numerator, share.denominator


@dataclass(frozen=True)
class DcrTopK(Method):
    """Attend to the `coverage` of all tokens with the highest scores, at least `k_min` of them, the
    newest being one like the others; rounded up to an even number.

    Where that is as many as there are, all are attended to, and the witness counts the step as
    dense. `scorer=exact` keeps scores in float32, `cache` in the cache's dtype, as the source does:
    then many are equal. With `sharing=group` a KV group chooses once, by the sum of its heads'
    softmax weights over all tokens: not the source's. Keeps the whole cache: saves reads, not
    memory.

    `generation`: m1 in PyTorch; m4 scores in Triton, sorts stably in PyTorch and gathers in Triton;
    m5 scores by the library's product instead, m5_mixed does so for a single sequence alone; m6 is
    m4 with an exact top-K that does not sort, m6_mixed the same of m5_mixed.
    """

    coverage: float = 0.15
    k_min: int = 64
    scorer: Literal["exact", "cache"] = "exact"
    sharing: Literal["head", "group"] = "head"
    generation: str = ""

    name: ClassVar[str] = "dcr_topk"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "Seqev/dcr-attention_v3 (v3.0)"
    choice: ClassVar[str] = "generation"
    implementations: ClassVar[tuple[str, ...]] = tuple(GENERATIONS)
    elsewhere: ClassVar[str] = "m1"

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise UsageError(
                f"dcr_topk: coverage={self.coverage} is not a share", hint="0 < coverage <= 1"
            )
        if self.k_min < 1:
            raise UsageError(f"dcr_topk: k_min={self.k_min} keeps nothing", hint="k_min from 1")

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default; budgets that leave tokens out of a short cache, in PyTorch and in Triton.

        To interpret a kernel's checks takes minutes, so that a CPU runs those of one choice alone.
        """
        m1 = cls(coverage=0.3, k_min=8, generation="m1")
        m6 = replace(m1, generation="m6")
        finer = [replace(m1, scorer="cache"), replace(m1, sharing="group")]
        if device_type != "cuda":
            return (cls(generation="m1"), m1, *finer, m6)
        return (cls(), m1, *finer, m6, *(replace(each, generation="m6") for each in finer))

    @property
    def dynamic_length(self) -> bool:
        """All of m6 reads the length from the device; products and sorts take it from a shape."""
        return self.generation == "m6"

    def full_budget(self, tokens: int) -> Self:
        """Every token."""
        del tokens
        return replace(self, coverage=1.0)

    @property
    def budget(self) -> tuple[int, int, int, int]:
        """Coverage as a fraction, the least tokens, and what their number is a multiple of."""
        return *as_fraction(self.coverage), self.k_min, MULTIPLE

    def kept(self, tokens: int) -> int:
        """Tokens to keep of so many, the newest included."""
        numerator, denominator, least, multiple = self.budget
        count = max(least, tokens * numerator // denominator)
        return min(tokens, -(-count // multiple) * multiple)

    def stored(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of scores over a cache of `dtype`."""
        return torch.float32 if self.scorer == "exact" else dtype

    def chosen(self, queries: Tensor, keys: Tensor, shape: LayerShape) -> Tensor:
        """The rows of one KV head: q [B,G,1,D], keys [B,1,N,D] -> int64 [B,G,K], [B,1,K] if shared.

        Sums are float64 and rounded once, so that the order of summation decides nothing.
        """
        asked, rows = queries[:, :, 0].double(), keys[:, 0].double()
        length = asked.norm(dim=-1, keepdim=True).clamp_min(SHORTEST)
        scores = ((asked / length) @ rows.mT).float().to(self.stored(shape.dtype))
        if self.sharing == "group":
            weights = torch.softmax(scores.double() * (length * shape.scale), dim=-1)
            scores = weights.sum(dim=1, keepdim=True).float()
        return highest(scores, self.kept(scores.shape[-1])).sort(dim=-1).values

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention of each query head over the rows chosen for it."""
        heads = []
        for head in range(shape.kv_heads):
            one = slice(head, head + 1)
            queries, keys, values = of_kv_head(q, head, shape), k[:, one], v[:, one]
            rows = self.chosen(queries, keys, shape).expand(-1, shape.group, -1)
            for own, row in zip(
                torch.split(queries, 1, dim=1), torch.split(rows, 1, dim=1), strict=True
            ):
                kept, worth = gathered(keys, row), gathered(values, row)
                heads.append(exact_attention(own, kept, worth, shape.scale))
        return torch.cat(heads, dim=1)

    def check_machine(self, device: torch.device) -> None:
        """All but m1 have Triton kernels; those that the source has choose for each head."""
        if self.sharing == "group" and self.generation not in ("", "m1", "m6"):
            raise Unsupported(
                f"{self.label} has no choice for a whole group", hint="generation=m6 and m1 have"
            )
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if self.generation not in ("", "m1") and device.type != "cuda" and not interpreted:
            raise Unsupported(
                f"{self.label} needs a CUDA GPU, and the device is {device.type}",
                hint="generation=m1 runs anywhere; `attnbench parity` runs the others on a CPU "
                "under Triton's interpreter",
            )

    def check(self, shape: LayerShape) -> None:
        """Whole groups; what the kernels need, where kernels are meant."""
        super().check(shape)
        if shape.heads % shape.kv_heads:
            raise Unsupported(
                f"{self.label}: {shape.heads} query heads do not share {shape.kv_heads} KV heads"
            )
        if self.generation in ("", "m1"):
            return
        from attnbench.methods.split_kv import require_triton

        if shape.head_dim not in HEAD_DIMS:
            raise Unsupported(
                f"{self.label} has no kernel for head dimension {shape.head_dim}",
                hint=f"it has {' and '.join(map(str, HEAD_DIMS))}; generation=m1 takes any",
            )
        require_triton(self.label, shape)

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Of pass 3: those of the split-KV kernels for as many rows as are kept, and for a program
        a query head where each chooses."""
        if self.generation in ("", "m1"):
            return ()
        from attnbench.methods.split_kv import split_configurations

        programs = shape.heads if self.sharing == "head" else shape.kv_heads
        kept = replace(shape, kv_heads=programs, capacity=self.kept(shape.capacity))
        return split_configurations(kept, 2 * shape.head_dim * shape.dtype.itemsize)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the chosen generation."""
        from attnbench.methods.dcr_layers import DcrKernelLayer, DcrTorchLayer

        method = self.resolved(shape.device)
        if method.generation == "m1":
            return DcrTorchLayer(method, shape)
        return DcrKernelLayer(method, shape)
