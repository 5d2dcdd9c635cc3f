"""What a method that replaces the trained function gives to a model trained from scratch.

A scheme has three places to act: on the embedded tokens, on queries and keys before attention, and
in attention itself, over a full sequence with gradients and, with what was learned, one token after
another. A model owns its scheme as a module; the scheme's parameters are trained with the model's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnbench.methods.base import LayerShape, MethodLayer


@dataclass(frozen=True)
class SchemeConfig:
    """The model that a scheme is built for.

    `longest` is the longest sequence that it will ever see, in training or after it.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    longest: int
    device: torch.device

    @property
    def scale(self) -> float:
        """Of the logits."""
        return float(self.head_dim**-0.5)


class Scheme(nn.Module, ABC):
    """The positions of one model, or its attention. Subclasses say what differs from nothing."""

    def __init__(self, config: SchemeConfig) -> None:
        super().__init__()
        self.config = config

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Embedded tokens [B,L,W] at whole positions [L]: the same shape."""
        del positions
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B,H,L,D] and keys [B,Hkv,L,D] at positions [L], before attention and caching."""
        del positions
        return q, k

    @abstractmethod
    def attend(self, layer: int) -> nn.Module:
        """Causal attention of one layer: q [B,H,L,D], k and v [B,Hkv,L,D] -> [B,H,L,D]."""

    @abstractmethod
    def decoder(self, shape: LayerShape) -> MethodLayer:
        """Decode state of layer `shape.layer` with what was learned so far."""

    def learned(self) -> dict[str, list[list[float]]]:
        """Numbers by name, of each layer and head, as they are now; empty: nothing is learned."""
        return {}
