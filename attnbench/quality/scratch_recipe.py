"""How models are trained from scratch: sizes, steps and optimiser, by preset."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Literal

from attnbench.errors import UsageError

Schedule = Literal["constant", "cosine"]
VOCABULARY = 256  # bytes


@dataclass(frozen=True)
class Recipe:
    """A pre-LN GPT over bytes with a tied head, and AdamW.

    `training_bytes` 0: all of the text that is not held out. `evaluated` bytes of held-out text at
    each context, which is `context` times each of `multiples`; `watched` bytes on the way.
    """

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int
    batch: int
    steps: int
    rate: float
    training_bytes: int
    held_out_bytes: int
    warm_up: int = 0
    schedule: Schedule = "constant"
    weight_decay: float = 0.1
    decays_all: bool = False  # biases, norms and what a scheme learns too
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    multiples: tuple[int, ...] = (1, 2, 4, 8)
    evaluated: int = 81_920
    watched: int = 16_384
    watch_every: int = 250
    keep_every: int = 250  # steps from one checkpoint to the next
    data_seed: int = 42

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def contexts(self) -> tuple[int, ...]:
        """Lengths at which held-out text is judged, that of training first."""
        return tuple(self.context * multiple for multiple in self.multiples)

    @property
    def tokens(self) -> int:
        """Bytes that training goes through."""
        return self.steps * self.batch * self.context

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        if self.schedule == "constant":
            return self.rate
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def told(self) -> dict[str, str | bool | int | float | list[int]]:
        """For the record."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


PRESETS = {
    recipe.name: recipe
    for recipe in (
        # Two minutes on one core, with the default arms and two seeds.
        Recipe(
            name="smoke",
            width=64,
            layers=2,
            heads=4,
            kv_heads=4,
            feed_forward=256,
            context=128,
            batch=8,
            steps=150,
            rate=4e-3,
            warm_up=15,
            training_bytes=0,
            held_out_bytes=60_000,
            evaluated=8_192,
            watched=4_096,
            watch_every=50,
            keep_every=50,
        ),
        # CY-Sieve's own: xaviercallens/Mirror-Map-Sieve @476e92e, run_gpu_phase, preset l4.
        Recipe(
            name="l4",
            width=512,
            layers=8,
            heads=8,
            kv_heads=8,
            feed_forward=2048,
            context=512,
            batch=24,
            steps=6000,
            rate=3e-4,
            training_bytes=2_000_000,
            held_out_bytes=250_000,
            decays_all=True,
            multiples=(1, 2, 4),
        ),
        # The same model where it cannot learn the text by heart: more text, a schedule, warm-up.
        Recipe(
            name="long",
            width=512,
            layers=8,
            heads=8,
            kv_heads=8,
            feed_forward=2048,
            context=512,
            batch=64,
            steps=4000,
            rate=6e-4,
            warm_up=200,
            schedule="cosine",
            training_bytes=0,
            held_out_bytes=500_000,
        ),
    )
}


def preset(name: str) -> Recipe:
    """The recipe of that name; UsageError says which there are."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        raise UsageError(
            f"there is no preset {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
            hint=f"there are {', '.join(PRESETS)}",
        )
    return PRESETS[name]
