"""Whether a model can be judged on at all: what is wrong with it is said before any arm runs."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.errors import ModelError
from attnbench.models.info import LoadedModel

TRIED_TOKENS = 16
AGREES = 1e-2  # of the logits' own size: a token that comes later must not move them


def require_vocabulary(loaded: LoadedModel, ids: Tensor) -> None:
    """Raise `ModelError` where the tokenizer makes tokens that the model has no row for."""
    known = loaded.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    largest = int(ids.max())
    if largest >= known:
        raise ModelError(
            f"the tokenizer of {loaded.info.spec} makes token {largest}, but the model knows "
            f"{known} tokens",
            hint="the tokenizer is another model's: fetch the one that belongs to these weights",
        )


@torch.no_grad()
def require_causal(loaded: LoadedModel, ids: Tensor) -> None:
    """Raise `ModelError` where a later token changes the logits of an earlier one.

    Decoding token by token means nothing then. `ids` is [1, N], on the model's device.
    """
    first = ids[:, :TRIED_TOKENS]
    if first.shape[1] < 2:
        return
    other = first.clone()
    other[:, -1] = (other[:, -1] + 1) % loaded.info.vocab
    before, after = (loaded.module(row, use_cache=False).logits[:, :-1] for row in (first, other))
    require_finite(loaded, before)
    if (before - after).abs().max() > AGREES * before.abs().max():
        raise ModelError(
            f"{loaded.info.spec} is not causal: a token changes the logits of those before it",
            hint="judge methods on a decoder: such a model cannot write token by token",
        )


def require_finite(loaded: LoadedModel, logits: Tensor) -> None:
    """Raise `ModelError` where the model's own logits, under SDPA, are not finite."""
    if not logits.isfinite().all():
        dtype = str(logits.dtype).removeprefix("torch.")
        raise ModelError(
            f"{loaded.info.spec} makes logits that are not finite under exact attention in {dtype}",
            hint="its weights are damaged, or do not survive this dtype: try --dtype float32",
        )
