"""What is known of a model before and after its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from attnbench.errors import UsageError


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a model, from its configuration; per-layer truth comes from the survey."""

    spec: str
    kind: str  # embedded | preset | local | gguf | hub
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    max_context: int  # tokens
    weights: str  # trained | random
    parameters: int  # tied weights counted once
    # sha256 of the weight files (of the configuration, for a preset); empty only where `inspect`
    # looked at a hub model whose weights are not on this machine yet.
    identity: str
    # Rotary positions go on past `max_context`; a table of learned positions ends there.
    rotary: bool = True

    @property
    def name(self) -> str:
        """What to call the model wherever it lies: a folder or file by its own name."""
        if self.kind not in ("local", "gguf"):
            return self.spec
        return Path(self.spec).expanduser().resolve().name


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, ready to be routed."""

    module: nn.Module
    info: ModelInfo
    tokenizer: Any | None  # a transformers tokenizer; None for presets


def beyond_positions(info: ModelInfo, tokens: int, steps: int = 1) -> str:
    """What to know where decoded tokens lie beyond the positions that the model was made for."""
    if not info.rotary or tokens + steps <= info.max_context:
        return ""
    return (
        f"{tokens} cached tokens leave none of the model's {info.max_context} positions to decode "
        "at: steps are timed past them, as rotary positions allow"
    )


def check_context(info: ModelInfo, tokens: int, steps: int = 1) -> None:
    """Raise `UsageError` unless the model can decode `steps` tokens after `tokens` cached ones.

    A rotary model may cache its whole context and decode past it; one with learned positions
    needs a position for every decoded token too.
    """
    if tokens < 1:
        raise UsageError(
            f"a context of {tokens} tokens makes no sense", hint="use at least one token"
        )
    largest = info.max_context if info.rotary else info.max_context - steps
    if tokens > largest:
        raise UsageError(
            f"a context of {tokens} tokens is beyond {info.spec}, which knows "
            f"{info.max_context} positions",
            hint=f"the largest context for this model is {largest}",
        )
