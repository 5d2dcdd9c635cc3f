"""This project's own selection: scan keys of two bits, attend exactly to what they point at.

Three ideas keep it to one launch a layer, without a sort and without waiting for the host.

1. The scan reads codes of `coded_keys`: with two bits an eighth of the keys' bytes.
2. The threshold is found on a sample, so that every program of a sequence and KV head finds it for
   itself, the same one, and then scans its own part. So a share is met in expectation: what is kept
   varies with the sample, and is counted on the device.
3. A KV group selects together: a token is as good as the best that one of its query heads finds in
   it. Each head measures from the best logit of its own sample, so that no head's larger logits
   drown another's.

The kept rows are read from the exact cache, or from one of eight bits in its place. The first layer
of a model attends to all tokens: its weights are spread so widely that a tenth of them makes its
outputs a quarter too long, where all other layers stay within a tenth (Quest, Tang et al. 2024,
arXiv 2406.10774, leaves two out).

Selection of tokens by a smaller picture of their keys has been proposed before (SparQ, Ribar et al.
2023, arXiv 2312.04985, reads few channels; Loki, Singhania et al. 2024, arXiv 2406.02542, few
principal ones); a threshold instead of a sort, from a sample, is this file's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import (
    CacheView,
    Family,
    KernelConfig,
    LayerShape,
    Method,
    MethodLayer,
)
from attnbench.methods.coded_keys import LEVEL_STEP, codes_of, digits_of, levels, rotated
from attnbench.methods.coded_rows import rounded, row_worth
from attnbench.methods.int8_kv import Int8Kv, Int8ReferenceLayer
from attnbench.methods.reference import ReferenceLayer, exact_attention

UNIT = 8  # tokens that the sample takes together: their codes lie side by side in memory
LEAST_SAMPLE, MOST_SAMPLE = 64, 4096
SHARE_STEPS = 1 << 16  # a share is a whole number of these, so that a GPU counts as the host does
HEAD_DIMS = (64, 128)
KINDS_OF_ROWS = ("exact", "int8")


@dataclass(frozen=True)
class Quota:
    """What the rule says for so many cached tokens, the newest not among them.

    The sample is `taken` units of `UNIT` tokens, of the `units` from unit `first` on, spread
    evenly. A token is kept where it is no farther from the best than the `rank`-th of the sample;
    `everything`: all are, since so many are wanted, or none can be sampled.
    """

    first: int
    units: int
    taken: int
    rank: int
    everything: bool
    expected: int

    def sample(self, device: torch.device) -> Tensor:
        """The sampled tokens, ascending: int64 [taken · UNIT]."""
        unit = torch.arange(self.taken, device=device)
        unit = self.first + (2 * unit + 1) * self.units // max(1, 2 * self.taken)
        return (unit[:, None] * UNIT + torch.arange(UNIT, device=device)).flatten()


@dataclass(frozen=True)
class Scales:
    """What is taken of the prompt: where code 0 begins and how wide a code is, and what a code of a
    rounded row is worth (keys, values); float32 [B,Hkv,D] each."""

    base: Tensor
    step: Tensor
    worth: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class CodedTopK(Method):
    """Attend to about a `share` of the tokens: sinks, recent ones, and those whose coded keys
    promise most; the newest one always.

    Sinks and recent tokens are part of the share, but where they take more than half of it, half of
    it is selected beside them. `sample` tokens find the threshold. `bits` 1, 2 or 4 a channel of a
    key. The first `dense` layers of the model attend to all tokens. With `rows=exact` it keeps the
    exact cache, so it saves reads, not memory; with `rows=int8` a cache of eight bits, of which the
    first layers read all.
    """

    share: float = 0.1
    bits: int = 2
    sample: int = 1024
    sinks: int = 4
    recent: int = 64
    dense: int = 1
    rows: str = "exact"
    impl: str = ""

    name: ClassVar[str] = "coded_topk"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "this project: selection by keys of two bits, in one launch"
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(
                f"coded_topk: share={self.share} is not a share", hint="0 < share <= 1"
            )
        if self.bits not in LEVEL_STEP:
            raise UsageError(f"coded_topk: there are no codes of bits={self.bits}", hint="1, 2, 4")
        if self.rows not in KINDS_OF_ROWS:
            raise UsageError(
                f"coded_topk: there are no rows={self.rows}", hint=", ".join(KINDS_OF_ROWS)
            )
        if not LEAST_SAMPLE <= self.sample <= MOST_SAMPLE or self.sample & (self.sample - 1):
            raise UsageError(
                f"coded_topk: sample={self.sample} is no power of two from {LEAST_SAMPLE} to "
                f"{MOST_SAMPLE}",
                hint="sample=512, sample=1024",
            )
        if min(self.sinks, self.recent, self.dense) < 0:
            raise UsageError(
                f"coded_topk: sinks={self.sinks}, recent={self.recent}, dense={self.dense}: there "
                "are no fewer than none",
                hint="each from 0",
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default, and budgets small enough to leave tokens out of a short cache."""
        del device_type
        return (
            cls(),
            cls(share=0.3, sample=64, sinks=2, recent=6),
            cls(share=0.2, sample=64, sinks=0, recent=0, bits=4),
            cls(share=0.25, sample=128, sinks=3, recent=8, bits=1),
            cls(share=0.3, sample=64, sinks=2, recent=6, rows="int8"),
        )

    @property
    def dynamic_length(self) -> bool:
        """The kernel reads the length from the device; PyTorch takes it from a shape."""
        return self.impl == "triton"

    def full_budget(self, tokens: int) -> Self:
        """Every token, of exact rows."""
        del tokens
        return replace(self, share=1.0, rows="exact")

    @property
    def share_steps(self) -> int:
        """The share in whole steps."""
        return max(1, round(self.share * SHARE_STEPS))

    def quota(self, tokens: int) -> Quota:
        """The rule for so many cached tokens; the kernel computes the same on the device."""
        budget = (self.share_steps * tokens + SHARE_STEPS // 2) // SHARE_STEPS
        always = self.sinks + self.recent
        wanted = max(budget - always, (budget + 1) // 2, 1)
        others = max(tokens - always, 0)
        first = -(-self.sinks // UNIT)
        units = max((tokens - self.recent) // UNIT - first, 0)
        taken = min(units, self.sample // UNIT)
        everything = wanted >= others or taken == 0
        rank = (wanted * taken * UNIT + others // 2) // max(others, 1)
        return Quota(
            first=first,
            units=units,
            taken=taken,
            rank=min(max(rank, 1), max(taken * UNIT, 1)),
            everything=everything,
            expected=tokens if everything else always + wanted,
        )

    def kept(self, scores: Tensor, worth: Tensor) -> Tensor:
        """Which cached tokens are attended to: bool [B,Hkv,N], by products of digits with codes
        [B,Hkv,G,N] and what one is worth [B,Hkv,G]."""
        tokens = scores.shape[-1]
        quota = self.quota(tokens)
        if quota.everything:
            return torch.ones_like(scores[:, :, 0], dtype=torch.bool)
        token = torch.arange(tokens, device=scores.device)
        sample = quota.sample(scores.device)
        best = scores[..., sample].amax(dim=-1, keepdim=True)
        distance = ((best - scores) * worth[..., None]).amin(dim=2)
        near = distance < limit_of(distance[..., sample], quota.rank)[..., None]
        return near | (token < self.sinks) | (token >= tokens - self.recent)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention over the kept tokens and the last one, the others being prefilled; over
        all in the first layers. Of rounded rows, where they are."""
        if self.is_dense(shape):
            if self.rounds:
                return self.rounded_dense.reference(q, k, v, shape)
            return exact_attention(q, k, v, shape.scale)
        return self.attended_exactly(q, k, v, self.scales(k[:, :, :-1], v[:, :, :-1]), shape)

    @property
    def rounds(self) -> bool:
        """Whether rows are of eight bits."""
        return self.rows == "int8"

    @property
    def rounded_dense(self) -> Int8Kv:
        """What the first layers are where rows are rounded."""
        return Int8Kv(impl=self.impl)

    def scales(self, k: Tensor, v: Tensor) -> Scales:
        """Of the prompt's rows [B,Hkv,N,D]."""
        base, step = key_levels(k, self.bits)
        return Scales(base, step, row_worth(k, v) if self.rounds else None)

    def attended_exactly(
        self, q: Tensor, k: Tensor, v: Tensor, scales: Scales, shape: LayerShape
    ) -> Tensor:
        """Exact attention over the tokens that codes of these levels choose, in float64."""
        base, step = scales.base, scales.step
        held = k, v
        if scales.worth is not None:
            held = rounded(k, scales.worth[0]), rounded(v, scales.worth[1])
        out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
        newest = torch.ones(1, dtype=torch.bool, device=q.device)
        for b in range(shape.batch):
            for h in range(shape.kv_heads):
                pair = (slice(b, b + 1), slice(h, h + 1))
                heads = (slice(b, b + 1), slice(h * shape.group, (h + 1) * shape.group))
                grouped = q[heads].reshape(1, 1, shape.group, shape.head_dim)
                digits, worth = digits_of(grouped, step[pair], shape.scale)
                cached = rotated(k[pair][:, :, :-1])
                codes = codes_of(cached, base[pair][:, :, None], step[pair][:, :, None], self.bits)
                kept = torch.cat((self.kept(digits @ codes.mT, worth)[0, 0], newest))
                keys, values = (rows[pair][:, :, kept] for rows in held)
                out[heads] = exact_attention(q[heads], keys, values, shape.scale)
        return out

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition with the scales of prefill."""
        if self.is_dense(shape):
            if self.rounds:
                return Int8ReferenceLayer(self.rounded_dense, shape)
            return ReferenceLayer(self, shape)
        return CodedReferenceLayer(self, shape)

    def check(self, shape: LayerShape) -> None:
        """A rotation needs a power of two, and the kernel what it needs."""
        dim = shape.head_dim
        if dim & (dim - 1) or dim < 8:
            raise Unsupported(
                f"{self.label} rotates keys by a Hadamard matrix, and head dimension {dim} is no "
                "power of two from 8 on"
            )
        if self.impl == "triton":
            from attnbench.methods.split_kv import require_triton

            require_triton(self.label, shape)
            if dim not in HEAD_DIMS:
                raise Unsupported(
                    f"{self.label} has no kernel for head dimension {dim}",
                    hint=f"it has {', '.join(map(str, HEAD_DIMS))}",
                )

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Tokens of a tile of the scan, splits, warps and stages."""
        if self.impl != "triton":
            return ()
        from attnbench.methods.coded_layers import coded_configurations

        return coded_configurations(self, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the chosen implementation."""
        from attnbench.methods.coded_layers import CodedTorchLayer, CodedTritonLayer

        method = self.resolved(shape.device)
        if self.is_dense(shape):
            return method.dense_layer(shape)
        if method.impl == "torch":
            return CodedTorchLayer(method, shape)
        return CodedTritonLayer(method, shape, shape.kernel or method.configurations(shape)[0])

    def is_dense(self, shape: LayerShape) -> bool:
        """Whether this is one of the layers that attend to all tokens."""
        return shape.layer < self.dense

    def dense_layer(self, shape: LayerShape) -> MethodLayer:
        """Attention to all by the same means, in its default launch: the project's kernel, or SDPA;
        where rows are rounded, INT8's. The launch in `shape` is the selection's."""
        if self.rounds:
            return self.rounded_dense.layer(replace(shape, kernel=None))
        from attnbench.methods.flash_decode import FlashDecode
        from attnbench.methods.sdpa import Sdpa

        exact = Sdpa() if self.impl == "torch" else FlashDecode()
        return exact.layer(replace(shape, kernel=None))


def limit_of(distances: Tensor, rank: int) -> Tensor:
    """The distance below which tokens are kept, so that `rank` of the sample [..,M] are: [..].

    Found to the upper half of a float32, rounded upwards: seven bits of its fraction, and of equals
    all are kept. No distance in the sample is negative, so its bits are in its order.
    """
    steps = distances.contiguous().view(torch.int32) >> 16
    last = steps.kthvalue(rank, dim=-1).values
    return ((last + 1) << 16).view(torch.float32)


def key_levels(k: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`levels` of keys [B,Hkv,N,D], one sequence after another to save memory: [B,Hkv,D] twice."""
    found = [levels(rotated(sequence), bits) for sequence in k]
    return torch.stack([base for base, _ in found]), torch.stack([step for _, step in found])


class CodedReferenceLayer(ReferenceLayer):
    """The definition over the exact cache, with the scales taken at prefill."""

    method: CodedTopK

    def __init__(self, method: CodedTopK, shape: LayerShape) -> None:
        super().__init__(method, shape)

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Take the scales."""
        super().prefill(cache, q)
        tokens = slice(0, self.prefilled)
        self.scales = self.method.scales(cache.k[:, :, tokens], cache.v[:, :, tokens])

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend; the output is float64."""
        keys, values = self.append(k, v)
        return self.method.attended_exactly(q, keys, values, self.scales, self.shape)
