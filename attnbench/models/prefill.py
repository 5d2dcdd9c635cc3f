"""Filling the exact cache: by the model's own prefill, or with seeded noise."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.errors import DoesNotFit, ModelError
from attnbench.models.adapter import ExactCache, PassingCache, Router
from attnbench.models.info import LoadedModel


@torch.no_grad()
def prefill(
    loaded: LoadedModel, router: Router, cache: ExactCache, ids: Tensor, chunk: int = 2048
) -> Tensor:
    """Run the prompt `ids` [B, N] (int64) through the model into `cache`, attention exact.

    Returns the logits [B, vocab] of the last token; those of the others are never computed. The
    cache starts empty and ends at N tokens with zeros behind them; one prompt fills a cache of any
    number of sequences. Raises `DoesNotFit` when N is more than the cache holds.
    """
    tokens = ids.shape[1]
    if not 1 <= tokens <= cache.capacity:
        raise DoesNotFit(f"{tokens} tokens do not fit a cache of {cache.capacity}")
    if rope_depends_on_length(loaded.module.config):
        chunk = tokens  # a piece would be rotated for its own length, not the prompt's
    cache.reset(0)
    router.prefill(cache)
    for piece in torch.split(ids, chunk, dim=1):
        logits = last_logits(loaded.module, piece, _positions(cache, piece), cache)
        cache.length.set(cache.length.tokens + piece.shape[1])
    return logits


@torch.no_grad()
def synthetic_fill(cache: ExactCache, tokens: int, seed: int) -> None:
    """Fill the first `tokens` rows with standard normal noise, layer i from `seed` + i.

    Enough for latency and memory where weights are random anyway, never for quality.
    """
    if not 1 <= tokens <= cache.capacity:
        raise DoesNotFit(f"{tokens} tokens do not fit a cache of {cache.capacity}")
    cache.reset(tokens)
    for layer, view in enumerate(cache.views):
        generator = torch.Generator(view.k.device).manual_seed(seed + layer)
        for rows in (view.k, view.v):
            rows[:, :, :tokens].normal_(generator=generator)


def last_logits(
    module: nn.Module, ids: Tensor, position_ids: Tensor, cache: ExactCache | PassingCache
) -> Tensor:
    """Logits [B, vocab] of the last of `ids` [B, n], at `position_ids` [B, n]."""
    output = module(
        input_ids=ids,
        position_ids=position_ids,
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(type(module)): cache},
    )
    logits: Tensor = output.logits[:, -1]
    return logits


def cache_argument(architecture: type[nn.Module]) -> str:
    """What a class of models calls the cache that it is given: transformers has renamed it."""
    return _cache_argument(architecture.forward)


@functools.cache
def _cache_argument(forward: Any) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def refuse_whole_logits(architecture: type[nn.Module]) -> None:
    """Raise `ModelError` for a model that can only project every token of a prompt."""
    if "logits_to_keep" not in inspect.signature(architecture.forward).parameters:
        raise ModelError(f"{architecture.__name__} cannot skip the logits of a prompt")


def rope_depends_on_length(config: Any) -> bool:
    """Whether rotary angles change with the length of the forward pass ("dynamic", "longrope")."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    per_layer_type = [p for p in parameters.values() if isinstance(p, dict)]
    kinds = {p.get("rope_type") for p in (parameters, *per_layer_type)}
    return bool(kinds & {"dynamic", "longrope"})


def _positions(cache: ExactCache, ids: Tensor) -> Tensor:
    start = cache.length.tokens
    return torch.arange(start, start + ids.shape[1], device=ids.device).expand_as(ids)
