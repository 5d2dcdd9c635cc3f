"""Attention without a softmax whose memory decays by a gate of each head (RetNet, Sun et al. 2023,
arXiv 2307.08621), with CY-Sieve's trial of three ways to begin the gates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.cy_sequence import S20, tau_ladder
from attnbench.methods.scheme import Scheme, SchemeConfig

Start = Literal["uniform", "retnet", "cy"]
UNIFORM = 0.95
EPSILON = 1e-6  # of a mean square, below which an output is not brought to size 1


@dataclass(frozen=True)
class DecayGate(Method):
    """out = Σ_j γ^(i-j) (q_i·k_j scale) v_j, brought to a root mean square of 1; γ is a learned
    number of each head.

    Decoding keeps a matrix [D,D] for each head in place of the cache. `start` of γ: .95 for all;
    `retnet`, 1 - 2^(-5-h); `cy`, the λ^(-1/τ_h) of CY-Sieve's ladder.
    """

    start: Start = "uniform"

    name: ClassVar[str] = "decay_gate"
    family: ClassVar[Family] = Family.REPLACEMENT
    source: ClassVar[str] = "arXiv:2307.08621"

    @property
    def dynamic_length(self) -> bool:
        """No shape holds the length."""
        return True

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """Each way to begin."""
        del device_type
        return (cls(), cls(start="retnet"), cls(start="cy"))

    def gates(self, heads: int) -> list[float]:
        """γ of each head before training."""
        if self.start == "uniform":
            return [UNIFORM] * heads
        if self.start == "retnet":
            return [1 - 2.0 ** (-5 - head) for head in range(heads)]
        return [math.exp(-S20.log_growth / tau) for tau in tau_ladder(heads)]

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """The sum over all tokens, head by head."""
        distance = torch.arange(k.shape[2] - 1, -1, -1, device=q.device).double()
        heads = []
        for head, gate in enumerate(self.gates(shape.heads)):
            keys, values = (rows[:, head // shape.group].double() for rows in (k, v))
            scores = (keys @ q[:, head, 0].double()[..., None])[..., 0] * shape.scale
            heads.append((scores * gate**distance)[:, None] @ values)
        return normalised(torch.stack(heads, dim=1))

    def layer(self, shape: LayerShape) -> MethodLayer:
        """Decodes with the gates before training."""
        gates = torch.tensor(self.gates(shape.heads), dtype=torch.float64, device=shape.device)
        return DecayGateLayer(shape, gates)

    def scheme(self, config: SchemeConfig) -> DecayGateScheme:
        """Learned gates in every layer."""
        return DecayGateScheme(self, config)


def normalised(out: Tensor) -> Tensor:
    """Brought to a root mean square of 1 along the last dimension."""
    return out * (out.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()


class DecayGateLayer(MethodLayer):
    """The memory of one layer, float32 [B,H,D,D], before and after the newest token.

    The one after becomes the one before when the length on the device has moved: a step that is
    repeated at one length gives the same output again.
    """

    def __init__(self, shape: LayerShape, gates: Tensor) -> None:
        self.shape = shape
        self.log_gates = gates.double().log()
        self.gates = gates.float()[:, None, None]
        rows = (shape.batch, shape.heads, shape.head_dim, shape.head_dim)
        self.prompt, self.before, self.after = (
            torch.zeros(rows, dtype=torch.float32, device=shape.device) for _ in range(3)
        )
        self.held = torch.zeros(1, dtype=torch.int32, device=shape.device)

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Sum up the prompt's keys and values, one head after another."""
        del q
        self.cache_length = cache.length
        self.prefilled = cache.length.tokens
        rows = slice(0, self.prefilled)
        distance = torch.arange(
            self.prefilled - 1, -1, -1, dtype=torch.float64, device=self.shape.device
        )
        for head in range(self.shape.heads):
            keys, values = (
                x[:, head // self.shape.group, rows].float() for x in (cache.k, cache.v)
            )
            weights = (distance * self.log_gates[head]).exp().float()
            self.prompt[:, head] = (keys * weights[:, None]).mT @ values
        self.reset()

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let the memory decay, add the token, ask it."""
        moved = self.cache_length.tensor != self.held
        self.before.copy_(torch.where(moved, self.after, self.before))
        self.held.copy_(self.cache_length.tensor)
        keys, values = (x.float().repeat_interleave(self.shape.group, dim=1) for x in (k, v))
        torch.add(self.before * self.gates, keys.mT @ values, out=self.after)
        return normalised((q.float() * self.shape.scale) @ self.after).to(q.dtype)

    def reset(self) -> None:
        """The prompt's memory."""
        self.before.copy_(self.prompt)
        self.after.copy_(self.prompt)
        self.held.fill_(self.prefilled)

    def tensors(self) -> Iterator[Tensor]:
        """Memories, gates, and the length that the memory stands for."""
        yield from (self.prompt, self.before, self.after, self.held, self.gates, self.log_gates)

    def bytes_read(self) -> int:
        """The memory."""
        return self.before.nbytes

    def witness(self) -> Mapping[str, float]:
        """A head's memory is as large as D rows of values."""
        tokens = self.cache_length.tokens + 1
        rows = min(tokens, self.shape.head_dim)
        return {"kept_share": rows / tokens, "rows_left": float(rows)}


class DecayAttention(nn.Module):
    """The same over a full sequence, by all pairs."""

    def __init__(self, method: DecayGate, config: SchemeConfig) -> None:
        super().__init__()
        gates = torch.tensor(method.gates(config.heads), dtype=torch.float64)
        self.raw = nn.Parameter(torch.logit(gates).float())
        self.scale = config.scale

    def gates(self) -> Tensor:
        """γ [H] as they are now."""
        return self.raw.sigmoid()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B,H,L,D], k and v [B,Hkv,L,D] -> [B,H,L,D], in float32 inside."""
        with torch.autocast(q.device.type, enabled=False):
            return self._attend(q, k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, length = q.shape[1:3]
        keys, values = (x.float().repeat_interleave(heads // k.shape[1], dim=1) for x in (k, v))
        position = torch.arange(length, device=q.device)
        distance = position[:, None] - position
        # ln sigmoid(x) by its own name, so that gates near 1 keep their digits
        log_gates = nn.functional.logsigmoid(self.raw)[:, None, None]
        decay = (log_gates * distance.clamp(min=0)).exp().masked_fill(distance < 0, 0.0)
        scores = (q.float() * self.scale) @ keys.mT * decay
        return normalised(scores @ values).to(q.dtype)


class DecayGateScheme(Scheme):
    """Every layer learns its own gates."""

    def __init__(self, method: DecayGate, config: SchemeConfig) -> None:
        super().__init__(config)
        self.attentions = nn.ModuleList(
            DecayAttention(method, config) for _ in range(config.layers)
        )
        self.to(config.device)

    def attend(self, layer: int) -> nn.Module:
        """Decaying attention."""
        return self.attentions[layer]

    def decoder(self, shape: LayerShape) -> MethodLayer:
        """Decodes with the gates as they are now."""
        return DecayGateLayer(shape, self._gates(shape.layer).double())

    def learned(self) -> dict[str, list[list[float]]]:
        """γ of each layer and head."""
        return {"gate": [self._gates(layer).tolist() for layer in range(self.config.layers)]}

    def _gates(self, layer: int) -> Tensor:
        found = self.attentions[layer]
        assert isinstance(found, DecayAttention)
        return found.gates().detach()
