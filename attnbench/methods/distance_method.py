"""What every method shares whose heads add a bias by distance: definition, decoding, training."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from attnbench.errors import Unsupported
from attnbench.methods.base import (
    CacheView,
    Family,
    KernelConfig,
    LayerShape,
    Method,
    MethodLayer,
)
from attnbench.methods.distance_bias import (
    UNBOUNDED,
    Coefficients,
    DistanceRule,
    HeadBias,
    HeadCoefficients,
)
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.scheme import Scheme, SchemeConfig


@dataclass(frozen=True)
class DistanceMethod(Method):
    """Softmax attention with a bias by distance. A subclass says which rule and which numbers."""

    family: ClassVar[Family] = Family.REPLACEMENT
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    @property
    def in_triton(self) -> bool:
        """Whether its kernels are meant."""
        return bool(getattr(self, self.choice) == "triton")

    @property
    def dynamic_length(self) -> bool:
        """The kernel reads the length from the device."""
        return self.in_triton

    def check(self, shape: LayerShape) -> None:
        """What the kernels need, where they are meant."""
        if self.in_triton:
            from attnbench.methods.distance_launch import form_of
            from attnbench.methods.split_kv import require_triton

            require_triton(self.label, shape)
            form_of(self.rule(), self.reaches(shape.heads))

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Those of the split-KV kernel for as many rows as are within reach."""
        if not self.in_triton:
            return ()
        from attnbench.methods.split_kv import split_configurations

        rows = min(shape.capacity, max(self.reaches(shape.heads)))
        return split_configurations(
            replace(shape, capacity=rows), 2 * shape.head_dim * shape.dtype.itemsize
        )

    @abstractmethod
    def rule(self) -> DistanceRule:
        """What the heads share."""

    def coefficients(self, heads: int, dtype: torch.dtype) -> HeadCoefficients:
        """The heads' numbers before training."""
        return HeadCoefficients([0.0] * heads, dtype=dtype)

    def reaches(self, heads: int) -> tuple[int, ...]:
        """How many of the last tokens each head attends to."""
        return (UNBOUNDED,) * heads

    def untrained(self, heads: int, device: torch.device) -> HeadBias:
        """The bias before training, in float64."""
        numbers = self.coefficients(heads, torch.float64).to(device)()
        return HeadBias(self.rule(), numbers, self.reaches(heads)).frozen()

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """softmax(g q·k scale + bias) v over all cached tokens, head by head."""
        bias = self.untrained(shape.heads, q.device)
        by_head = bias.of(torch.arange(k.shape[2] - 1, -1, -1, device=q.device))
        heads = []
        for head in range(shape.heads):
            keys, values = (rows[:, head // shape.group].double() for rows in (k, v))
            scores = (keys @ q[:, head, 0].double()[..., None])[..., 0] * shape.scale
            weights = torch.softmax(bias.numbers.gain[head] * scores + by_head[head], dim=-1)
            heads.append(weights[:, None] @ values)
        return torch.stack(heads, dim=1)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """Decodes with the numbers before training."""
        return self.decoder(shape, self.untrained(shape.heads, shape.device))

    def decoder(self, shape: LayerShape, bias: HeadBias) -> MethodLayer:
        """Decodes with a bias that may have been trained."""
        method = self.resolved(shape.device)
        if method.in_triton:
            config = shape.kernel or method.configurations(shape)[0]
            return DistanceTritonLayer(shape, bias, config)
        return DistanceTorchLayer(shape, bias)

    def scheme(self, config: SchemeConfig) -> DistanceScheme:
        """The same bias, learned or not, in every layer."""
        return DistanceScheme(self.resolved(config.device), config)


class DistanceLayer(ExactCacheLayer):
    """What decoding shares: the bias of this layer's heads, and the tokens that they attend to."""

    def __init__(self, shape: LayerShape, bias: HeadBias) -> None:
        super().__init__(shape)
        self.bias = bias
        self.farthest = min(bias.farthest, shape.capacity)

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and the heads' numbers."""
        yield from super().tensors()
        yield from self.bias.numbers

    def bytes_read(self) -> int:
        """Keys and values of the tokens that some head of their group attends to."""
        rows = self.bias.rows(self.visible)
        of_groups = (
            max(rows[first : first + self.shape.group])
            for first in range(0, self.shape.heads, self.shape.group)
        )
        return sum(of_groups) * self.shape.row_bytes // self.shape.kv_heads

    def witness(self) -> Mapping[str, float]:
        """The share and the number of tokens within reach, averaged over heads."""
        rows = self.bias.rows(self.visible)
        attended = sum(rows) / len(rows)
        return {"kept_share": attended / self.visible, "attended_tokens": attended}


class DistanceTorchLayer(DistanceLayer):
    """SDPA in float32 over the tokens within reach; keeps the bias of every distance as its mask:
    float32 [H,capacity]."""

    def __init__(self, shape: LayerShape, bias: HeadBias) -> None:
        super().__init__(shape, bias)
        distances = torch.arange(self.farthest - 1, -1, -1, device=shape.device)
        self.mask = bias.of(distances).float()
        self.gain = bias.numbers.gain.float()[:, None, None].contiguous()

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, attend."""
        keys, values = self.append(k, v)
        rows = min(self.farthest, self.visible)
        out = scaled_dot_product_attention(
            q.float() * self.gain,
            keys[:, :, -rows:].float(),
            values[:, :, -rows:].float(),
            attn_mask=self.mask[None, :, None, -rows:],
            scale=self.shape.scale,
            enable_gqa=self.shape.group > 1,
        )
        return out.to(q.dtype)

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache, the heads' numbers and the mask."""
        yield from super().tensors()
        yield self.mask
        yield self.gain


class DistanceTritonLayer(DistanceLayer):
    """The split-KV kernel that makes the bias in registers."""

    def __init__(self, shape: LayerShape, bias: HeadBias, config: KernelConfig) -> None:
        from attnbench.methods.distance_launch import form_of, numbers_of, table_of

        super().__init__(shape, bias)
        self.config = config
        self.form = form_of(bias.rule, bias.reach)
        self.numbers = numbers_of(bias)
        self.table = table_of(bias.rule, shape.device)

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view and allocate workspaces."""
        from attnbench.methods.split_kv import workspace

        super().prefill(cache, q)
        self.workspace = workspace(self.shape, self.config)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend in one launch."""
        from attnbench.kernels.distance_decode import distance_decode

        return distance_decode(
            q,
            k,
            v,
            self.cache.k,
            self.cache.v,
            self.cache.length.tensor,
            self.form,
            self.numbers,
            self.table,
            self.workspace,
            scale=self.shape.scale,
            block_n=self.config.block_n,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
        )

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache, the heads' numbers, the table and the workspaces."""
        yield from super().tensors()
        yield from self.numbers.tensors()
        yield self.table
        yield from self.workspace.tensors()


class DistanceAttention(nn.Module):
    """Causal attention of one layer over a full sequence, with the bias and its gradients."""

    def __init__(self, method: DistanceMethod, config: SchemeConfig) -> None:
        super().__init__()
        self.in_triton = method.in_triton
        self.rule = method.rule()
        self.reach = method.reaches(config.heads)
        self.scale = config.scale
        self.numbers = method.coefficients(config.heads, torch.float32)
        self._masks: dict[int, Tensor] = {}
        if self.in_triton:
            self._for_kernels(method, config)

    def _for_kernels(self, method: DistanceMethod, config: SchemeConfig) -> None:
        """What the operation takes beside the heads' numbers."""
        from attnbench.methods.distance_launch import (
            attend,
            fields_of,
            form_of,
            reach_of,
            table_of,
        )

        self.attend = attend
        form = form_of(self.rule, self.reach)
        if self.rule.series is not None and self.rule.series.tail == "exact":
            raise Unsupported(
                f"{method.label}: the recurrence runs in the kernel that decodes alone",
                hint="train with impl=torch",
            )
        self.form = fields_of(form)
        reach, table = reach_of(self.reach, config.device), table_of(self.rule, config.device)
        self.register_buffer("reaches", reach, persistent=False)
        self.register_buffer("table", table, persistent=False)

    def bias(self) -> HeadBias:
        """The bias as it is now."""
        return HeadBias(self.rule, self.numbers(), self.reach)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B,H,L,D], k and v [B,Hkv,L,D] -> [B,H,L,D]."""
        if self.rule == DistanceRule() and min(self.reach) >= q.shape[2]:
            return scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        if self.in_triton:
            reach, table = self.get_buffer("reaches"), self.get_buffer("table")
            return self.attend(q, k, v, self.numbers(), reach, table, self.form, self.scale)
        if self.numbers.learned:
            with torch.autocast(
                q.device.type, enabled=False
            ):  # or its products would be in 16 bits
                return learned_attention(q, k, v, self.bias(), self.scale)
        return scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=self._mask(q.shape[2], q).to(q.dtype),
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def _mask(self, length: int, like: Tensor) -> Tensor:
        """[H,L,L] of a bias that nothing changes; the last length's is kept."""
        known = self._masks.get(length)
        if known is None or known.device != like.device:
            with torch.no_grad():
                known = full_mask(self.bias(), length, like.device)
            self._masks = {length: known}
        return known


def full_mask(bias: HeadBias, length: int, device: torch.device) -> Tensor:
    """The bias between all positions: [H,L,L], -inf where a key is later or beyond reach."""
    distance = distances(length, device)
    by_head = bias.of(torch.arange(length, device=device))
    return by_head[:, distance.clamp(min=0)].masked_fill(distance < 0, -math.inf)


def distances(length: int, device: torch.device) -> Tensor:
    """i - j of query i and key j: int64 [L,L]."""
    position = torch.arange(length, device=device)
    return position[:, None] - position


def learned_attention(q: Tensor, k: Tensor, v: Tensor, bias: HeadBias, scale: float) -> Tensor:
    """Softmax attention in float32 at the least, with gradients to the bias' numbers; takes the
    memory of all logits."""
    heads, length = q.shape[1:3]
    dtype = torch.promote_types(q.dtype, torch.float32)
    keys, values = (rows.to(dtype).repeat_interleave(heads // k.shape[1], dim=1) for rows in (k, v))
    slope, curvature, gain = (number.to(dtype)[:, None, None] for number in bias.numbers)
    distance = distances(length, q.device)
    near = distance.clamp(min=0)
    scores = (q.to(dtype) * (gain * scale)) @ keys.mT
    scores = scores - slope * bias.rule.base(near).to(dtype)
    if bias.rule.curved:
        scores = scores + curvature * bias.rule.logarithm(near).to(dtype)
    left = bias.attended(torch.arange(length, device=q.device))[:, near] & (distance >= 0)
    weights = torch.softmax(scores.masked_fill(~left, -math.inf), dim=-1)
    return (weights @ values).to(q.dtype)


class DistanceScheme(Scheme):
    """Every layer has the bias, and learns its own numbers where any are learned."""

    def __init__(self, method: DistanceMethod, config: SchemeConfig) -> None:
        super().__init__(config)
        self.method = method
        self.attentions = nn.ModuleList(
            DistanceAttention(method, config) for _ in range(config.layers)
        )
        self.to(config.device)

    def attention(self, layer: int) -> DistanceAttention:
        """One layer's attention, as what it is."""
        found = self.attentions[layer]
        assert isinstance(found, DistanceAttention)
        return found

    def attend(self, layer: int) -> nn.Module:
        """Causal attention with the bias."""
        return self.attention(layer)

    def decoder(self, shape: LayerShape) -> MethodLayer:
        """Decodes with the numbers as they are now."""
        return self.method.decoder(shape, self.attention(shape.layer).bias().frozen())

    def learned(self) -> dict[str, list[list[float]]]:
        """Slope, curvature and gain of each layer and head."""
        layers = [self.attention(layer) for layer in range(self.config.layers)]
        if not any(layer.numbers.learned for layer in layers):
            return {}
        numbers = [layer.numbers() for layer in layers]
        return {
            name: [getattr(each, name).detach().tolist() for each in numbers]
            for name in Coefficients._fields
        }
