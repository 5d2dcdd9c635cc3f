"""The model that is trained from scratch with a scheme: a small pre-LN GPT over bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from attnbench.methods.base import Method
from attnbench.methods.scheme import Scheme, SchemeConfig
from attnbench.quality.scratch_recipe import VOCABULARY, Recipe

SPREAD = 0.02  # standard deviation of weights at the start, as GPT-2 has it


class ScratchModel(nn.Module):
    """Bytes [B,L] to logits [B,L,256]; the head is the embedding. Positions are the scheme's."""

    def __init__(self, recipe: Recipe, scheme: Scheme, device: torch.device) -> None:
        super().__init__()
        self.scheme = scheme
        self.embedding = nn.Embedding(VOCABULARY, recipe.width)
        self.blocks = nn.ModuleList(Block(recipe, scheme, layer) for layer in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.width)
        self._start(recipe)
        self.to(device)

    def _start(self, recipe: Recipe) -> None:
        """Weights before training; what adds to the residual is smaller, by the depth."""
        for name, parameter in self.named_parameters():
            if name.startswith("scheme.") or "norm" in name:
                continue
            if parameter.dim() < 2:
                nn.init.zeros_(parameter)
                continue
            adds = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(parameter, std=SPREAD / (2 * recipe.layers) ** 0.5 if adds else SPREAD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the byte after each."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.scheme.embed(self.embedding(tokens), positions)
        for block in self.blocks:
            x = block(x, positions)
        return linear(self.norm(x), self.embedding.weight)

    def count(self) -> int:
        """Parameters, those of the scheme included."""
        return sum(parameter.numel() for parameter in self.parameters())


class Block(nn.Module):
    """Attention and feed-forward of one layer, each normed before and added after."""

    def __init__(self, recipe: Recipe, scheme: Scheme, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = recipe.heads, recipe.kv_heads, recipe.head_dim
        rows = (recipe.heads + 2 * recipe.kv_heads) * recipe.head_dim
        self.norm_attention = nn.LayerNorm(recipe.width)
        self.qkv = nn.Linear(recipe.width, rows)
        self.out = nn.Linear(recipe.width, recipe.width)
        self.norm_forward = nn.LayerNorm(recipe.width)
        self.up = nn.Linear(recipe.width, recipe.feed_forward)
        self.down = nn.Linear(recipe.feed_forward, recipe.width)
        # In a tuple, or the scheme's parameters would be counted here again.
        self._scheme = (scheme, scheme.attend(layer))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B,L,W] at positions [L]: the same shape."""
        x = x + self.out(self._attended(self.norm_attention(x), positions))
        raised: Tensor = self.down(gelu(self.up(self.norm_forward(x))))
        return x + raised

    def _attended(self, x: Tensor, positions: Tensor) -> Tensor:
        batch, length, _ = x.shape
        sizes = [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = (
            part.view(batch, length, -1, self.head_dim).transpose(1, 2)
            for part in self.qkv(x).split(sizes, dim=-1)
        )
        scheme, attend = self._scheme
        q, k = scheme.rotate(q, k, positions)
        return attend(q, k, v).transpose(1, 2).reshape(batch, length, -1)  # type: ignore[no-any-return]


def new_model(recipe: Recipe, method: Method, seed: int, device: torch.device) -> ScratchModel:
    """A model whose weights outside the scheme depend on the seed alone, drawn on the CPU."""
    config = SchemeConfig(
        layers=recipe.layers,
        heads=recipe.heads,
        kv_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        width=recipe.width,
        longest=max(recipe.contexts),
        device=device,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(2 * seed + 1)
        scheme = method.scheme(config)
        torch.manual_seed(2 * seed)
        return ScratchModel(recipe, scheme, device)
