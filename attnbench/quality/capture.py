"""Real steps of a model under SDPA, cut into what each layer was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench.models.adapter import ExactCache, Router, SurveyedLayer, attention_router
from attnbench.models.forced import StepRecord, record_steps
from attnbench.models.info import LoadedModel
from attnbench.models.prefill import prefill
from attnbench.models.survey import survey
from attnbench.quality.fitness import require_finite
from attnbench.quality.levels import MOST_ROWS
from attnbench.quality.replay import LayerTrace

CUDA_SHARE = 1 / 8  # of the free memory, for their exact caches
CPU_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class RoutedModel:
    """A model whose attention is routed, with an exact cache for `rows` sequences."""

    loaded: LoadedModel
    router: Router
    surveyed: tuple[SurveyedLayer, ...]
    cache: ExactCache

    @property
    def rows(self) -> int:
        """Sequences that are decoded at once."""
        return self.surveyed[0].shape.batch

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
    loaded: LoadedModel, capacity: int, dtype: torch.dtype, device: torch.device, rows: int = 1
) -> Iterator[RoutedModel]:
    """The model with room for `capacity` cached tokens of `rows` sequences; restored when the
    context ends."""
    with attention_router(loaded.module) as router:
        surveyed = survey(loaded, router, rows, capacity, dtype, device)
        cache = ExactCache([layer.shape for layer in surveyed])
        yield RoutedModel(loaded, router, surveyed, cache)


def layers_of(
    loaded: LoadedModel, capacity: int, dtype: torch.dtype, device: torch.device
) -> tuple[SurveyedLayer, ...]:
    """The layers of the model, with room for `capacity` cached tokens of one sequence."""
    with attention_router(loaded.module) as router:
        return survey(loaded, router, 1, capacity, dtype, device)


def full_layers(surveyed: Iterable[SurveyedLayer]) -> int:
    """Layers that methods apply to."""
    return sum(layer.window is None for layer in surveyed)


def rows_at_once(surveyed: Sequence[SurveyedLayer]) -> int:
    """How many sequences like that of these layers may be decoded side by side: a step of many
    costs a GPU little more than a step of one. Their exact caches take a part of the free memory,
    so that a method has room for copies of its own."""
    sequence_bytes = sum(layer.shape.row_bytes * layer.shape.capacity for layer in surveyed)
    room_bytes, device = CPU_BYTES, surveyed[0].shape.device
    if device.type == "cuda":
        room_bytes = int(torch.cuda.mem_get_info(device)[0] * CUDA_SHARE)
    return max(1, min(MOST_ROWS, room_bytes // sequence_bytes))


def record_windows(model: RoutedModel, ids: Tensor, context: int) -> StepRecord:
    """Prefill the first `context` of `ids` [B, N+S] exactly and record the S steps after them.

    The cache ends N + S tokens long. Raises `ModelError` where the logits are not finite.
    """
    prefill(model.loaded, model.router, model.cache, ids[:, :context])
    record = record_steps(model.loaded, model.router, model.cache, model.surveyed, ids[:, context:])
    require_finite(model.loaded, record.logits)
    return record


def layer_traces(
    model: RoutedModel, record: StepRecord, context: int, steps: int, row: int = 0
) -> Iterator[LayerTrace]:
    """The first `steps` recorded steps of every full-attention layer, one layer at a time; of the
    `row`-th of the sequences."""
    tokens = context + steps
    for layer, q in zip(record.layers, record.q, strict=True):
        view = model.cache.views[layer]
        yield LayerTrace(
            shape=replace(model.surveyed[layer].shape, batch=1),
            context=context,
            q=q[:steps, row, :, 0],
            k=view.k[row, :, :tokens],
            v=view.v[row, :, :tokens],
        )
