"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the halves layout of Llama."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.distance_method import DistanceScheme
from attnbench.methods.nope import NoPositions
from attnbench.methods.scheme import SchemeConfig


@dataclass(frozen=True)
class Rope(NoPositions):
    """Queries and keys are turned by angles that grow with their position; attention is exact.

    What is cached is turned already, so that decoding is exact attention too.
    """

    base: float = 10000.0

    name: ClassVar[str] = "rope"
    source: ClassVar[str] = "arXiv:2104.09864"

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise UsageError(f"rope: base={self.base} turns nothing", hint="base above 1")

    def scheme(self, config: SchemeConfig) -> RopeScheme:
        """Turns queries and keys."""
        return RopeScheme(self, config)


class RopeScheme(DistanceScheme):
    """Exact attention over turned queries and keys."""

    def __init__(self, method: Rope, config: SchemeConfig) -> None:
        super().__init__(method, config)
        if config.head_dim % 2:
            raise Unsupported(
                f"rope turns pairs of channels, and a head has {config.head_dim}",
                hint="take an even head dimension",
            )
        channel = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=config.device)
        turns = method.base ** (-channel / config.head_dim)
        positions = torch.arange(config.longest, dtype=torch.float64, device=config.device)
        angles = positions[:, None] * turns
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Turn channel i together with channel i + D/2."""
        cosine, sine = (self.get_buffer(name)[positions] for name in ("cosine", "sine"))
        return turned(q, cosine, sine), turned(k, cosine, sine)


def turned(rows: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """rows [B,H,L,D] by angles [L,D/2], in float32 inside."""
    first, second = rows.float().chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(rows.dtype)
