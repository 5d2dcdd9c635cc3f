"""The text that caches are filled from: how much of it is needed, and whether it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attnbench.errors import ModelError
from attnbench.models.folder import FolderSource
from attnbench.models.info import ModelInfo
from attnbench.models.sources import source_of
from attnbench.quality.levels import counts_of
from attnbench.quality.text import read_text, windows

if TYPE_CHECKING:
    from attnbench.measure.plan import DecodeRequest

TEXT_STEPS = 64  # tokens of the text after the prompt, the first to be decoded


def require_tokenizer(model: str, tokenizer: Any | None) -> Any:
    """The tokenizer; `ModelError` where there is none."""
    if tokenizer is None:
        raise ModelError(
            f"{model} has no tokenizer, so its cache cannot be filled from text",
            hint="put the tokenizer's files beside its weights",
        )
    return tokenizer


def refuse_early(request: DecodeRequest, info: ModelInfo, context: int) -> None:
    """Raise what a worker would raise for want of a tokenizer or text once it has loaded the model.

    Only where that costs no download: for models in folders, and texts that were named.
    """
    source = source_of(request.model)
    if info.weights != "trained" or not isinstance(source, FolderSource):
        return
    tokenizer = require_tokenizer(request.model, source.tokenizer())
    if request.text is None:
        return
    text = read_text(request.text)
    for tokens, count in _needed(request, info, context):
        windows(tokenizer, text, tokens, count, request.seed)


def _needed(request: DecodeRequest, info: ModelInfo, context: int) -> Iterator[tuple[int, int]]:
    """Tokens of a window and how many there are: the prompts, then what quality is judged on."""
    yield context + TEXT_STEPS, request.batch
    if request.quality is not None:
        counts = counts_of(request.quality, context).within(info.max_context)
        yield counts.tokens, counts.windows
