"""Whether a model can be judged on at all: what is wrong with it is said before any arm runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attnbench.errors import ModelError
from attnbench.models.info import LoadedModel

TRIED_TOKENS = 16
READ_TOKENS = 512  # of a window, to see whether the model knows such text at all
AGREES = 1e-2  # of the logits' own size: a token that comes later must not move them


def require_vocabulary(loaded: LoadedModel, ids: Tensor) -> None:
    """Raise `ModelError` where the tokenizer makes tokens that the model has no row for."""
    known = vocabulary(loaded)
    largest = int(ids.max())
    if largest >= known:
        raise ModelError(
            f"the tokenizer of {loaded.info.spec} makes token {largest}, but the model knows "
            f"{known} tokens",
            hint="the tokenizer is another model's: fetch the one that belongs to these weights",
        )


def vocabulary(loaded: LoadedModel) -> int:
    """How many tokens the model has a row for."""
    rows: int = loaded.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return rows


@torch.no_grad()
def text_nats(loaded: LoadedModel, windows: Tensor) -> Tensor:
    """Minus the log of the probability, under SDPA, of the tokens of each window but the first:
    [W,n] of [W,N], up to `READ_TOKENS` of each.

    Raises `ModelError` where logits are not finite.
    """
    rows = []
    for ids in windows[:, None, :READ_TOKENS]:
        logits = loaded.module(ids, use_cache=False).logits[0, :-1]
        require_finite(loaded, logits)
        rows.append(cross_entropy(logits.float(), ids[0, 1:], reduction="none"))
    return torch.stack(rows)


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
