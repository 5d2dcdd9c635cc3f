"""The text that caches are filled from: how much of it is needed, and whether it is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.errors import ModelError
from attnbench.models.folder import FolderSource
from attnbench.models.sources import source_of
from attnbench.quality.figures import LOGIT_STEPS
from attnbench.quality.text import read_text, windows

TEXT_STEPS = 64  # tokens of the text after the prompt, the first to be decoded
QUALITY_WINDOWS = 2


@dataclass(frozen=True)
class TextNeed:
    """What a run reads: `batch` prompts of `context` tokens, and windows to judge quality on."""

    model: str
    text: Path | None
    context: int
    batch: int
    seed: int
    judged_context: int | None  # None: quality is not judged

    def windows(self) -> Iterator[tuple[int, int]]:
        """Tokens of a window, and how many there are."""
        yield self.context + TEXT_STEPS, self.batch
        if self.judged_context is not None:
            yield self.judged_context + LOGIT_STEPS + 1, QUALITY_WINDOWS


def require_tokenizer(model: str, tokenizer: Any | None) -> Any:
    """The tokenizer; `ModelError` where there is none."""
    if tokenizer is None:
        raise ModelError(
            f"{model} has no tokenizer, so its cache cannot be filled from text",
            hint="put the tokenizer's files beside its weights",
        )
    return tokenizer


def refuse_early(request: TextNeed) -> None:
    """Raise what a worker would raise for want of a tokenizer or text once it has loaded the model.

    Only where that costs no download: for models in folders, and texts that were named.
    """
    source = source_of(request.model)
    if not isinstance(source, FolderSource):
        return
    tokenizer = require_tokenizer(request.model, source.tokenizer())
    if request.text is None:
        return
    text = read_text(request.text)
    for tokens, count in request.windows():
        windows(tokenizer, text, tokens, count, request.seed)
