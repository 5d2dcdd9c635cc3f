"""What is known of a model before and after its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, ready to be routed."""

    module: nn.Module
    info: ModelInfo
    tokenizer: Any | None  # a transformers tokenizer; None for presets


def check_context(info: ModelInfo, tokens: int) -> None:
    """Raise `UsageError` unless the model has positions for `tokens` cached tokens and one more."""
    if tokens < 1:
        raise UsageError(
            f"a context of {tokens} tokens makes no sense", hint="use at least one token"
        )
    if tokens + 1 > info.max_context:
        raise UsageError(
            f"{info.spec} knows {info.max_context} positions; "
            f"{tokens} cached tokens and one decoded need {tokens + 1}",
            hint=f"the largest context of this model is {info.max_context - 1}",
        )
