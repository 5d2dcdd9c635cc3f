"""What changes while training: learning rate and row length, as functions of progress.

Progress is training time spent over training time granted, so that the learning rate reaches zero
whatever the machine's speed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Size of the model and how it is trained.

    phases: (from this progress on, row length). echo_until: progress up to which some rows are
    echoes. warm_up and hold_until are progress too; peak_rate is AdamW's learning rate.
    """

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 704
    vocabulary: int = 2048
    context: int = 4096
    batch_tokens: int = 65536
    phases: tuple[tuple[float, int], ...] = ((0.0, 512), (0.2, 2048), (0.8, 4096))
    echo_until: float = 0.3
    peak_rate: float = 3e-3
    warm_up: float = 0.02
    hold_until: float = 0.3
    dropout: float = 0.1
    weight_decay: float = 0.1
    seed: int = 20240607


SMOKE = Recipe(
    hidden=64,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=32,
    intermediate=128,
    vocabulary=512,
    context=256,
    batch_tokens=2048,
    phases=((0.0, 128), (0.7, 256)),
    dropout=0.0,
)


def learning_rate(progress: float, recipe: Recipe) -> float:
    """Linear warm-up, a plateau, then linear decay to zero at progress 1."""
    if progress < recipe.warm_up:
        return recipe.peak_rate * max(progress / recipe.warm_up, 0.01)
    decay = (1 - min(progress, 1.0)) / (1 - recipe.hold_until)
    return recipe.peak_rate * min(1.0, decay)


def row_tokens(progress: float, recipe: Recipe) -> int:
    """Length in tokens of the rows trained on at this progress."""
    return [tokens for start, tokens in recipe.phases if progress >= start][-1]
