"""A tiny model with a filled cache, ready for steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from attnbench.models.adapter import ExactCache, Router, SurveyedLayer, attention_router
from attnbench.models.info import LoadedModel
from attnbench.models.prefill import prefill
from attnbench.models.survey import survey
from tests.models.tiny import loaded, prompt

TOKENS, SPARE = 19, 8


@dataclass(frozen=True)
class Bench:
    model: LoadedModel
    router: Router
    cache: ExactCache
    surveyed: tuple[SurveyedLayer, ...]


@contextmanager
def bench(
    name: str, batch: int = 2, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[Bench]:
    """A prompt of `TOKENS` tokens is cached, with room for `SPARE` more."""
    model = loaded(name)
    model.module.to(device=device, dtype=dtype)
    with attention_router(model.module) as router:
        surveyed = survey(model, router, batch, TOKENS + SPARE, dtype, torch.device(device))
        cache = ExactCache([layer.shape for layer in surveyed])
        prefill(model, router, cache, prompt(batch, TOKENS).to(device))
        yield Bench(model, router, cache, surveyed)
