"""Real steps of a model under SDPA, cut into what each layer was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.models.adapter import ExactCache, Router, SurveyedLayer, attention_router
from attnbench.models.forced import StepRecord, record_steps
from attnbench.models.info import LoadedModel
from attnbench.models.prefill import prefill
from attnbench.models.survey import survey
from attnbench.quality.fitness import require_finite
from attnbench.quality.replay import LayerTrace


@dataclass(frozen=True)
class RoutedModel:
    """A model whose attention is routed, with an exact cache for one sequence."""

    loaded: LoadedModel
    router: Router
    surveyed: tuple[SurveyedLayer, ...]
    cache: ExactCache

    @property
    def full_layers(self) -> int:
        """Layers that methods apply to."""
        return sum(layer.window is None for layer in self.surveyed)

    def checksum(self, tokens: int) -> Tensor:
        """Sums over the first `tokens` rows of every layer, which a change of them changes."""
        return torch.stack(
            [
                rows[:, :, :tokens].double().sum()
                for view in self.cache.views
                for rows in (view.k, view.v)
            ]
        )


@contextmanager
def routed(
    loaded: LoadedModel, capacity: int, dtype: torch.dtype, device: torch.device
) -> Iterator[RoutedModel]:
    """The model with room for `capacity` cached tokens; restored when the context ends."""
    with attention_router(loaded.module) as router:
        surveyed = survey(loaded, router, 1, capacity, dtype, device)
        cache = ExactCache([layer.shape for layer in surveyed])
        yield RoutedModel(loaded, router, surveyed, cache)


def record_window(model: RoutedModel, ids: Tensor, context: int) -> StepRecord:
    """Prefill the first `context` of `ids` [1, N+S] exactly and record the S steps after them.

    The cache ends N + S tokens long. Raises `ModelError` where the logits are not finite.
    """
    prefill(model.loaded, model.router, model.cache, ids[:, :context])
    record = record_steps(model.loaded, model.router, model.cache, model.surveyed, ids[:, context:])
    require_finite(model.loaded, record.logits)
    return record


def layer_traces(
    model: RoutedModel, record: StepRecord, context: int, steps: int
) -> Iterator[LayerTrace]:
    """The first `steps` recorded steps of every full-attention layer, one layer at a time."""
    rows = context + steps
    for layer, q in zip(record.layers, record.q, strict=True):
        view = model.cache.views[layer]
        yield LayerTrace(
            shape=model.surveyed[layer].shape,
            context=context,
            q=q[:steps, 0, :, 0],
            k=view.k[0, :, :rows],
            v=view.v[0, :, :rows],
        )
