"""What a configuration says about a model, and which models are refused before loading weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attnbench.errors import ModelError
from attnbench.models.adapter import refuse_off_interface
from attnbench.models.info import ModelInfo
from attnbench.models.prefill import refuse_whole_logits
from attnbench.models.survey import refuse_by_configuration


def describe(config: Any, spec: str, kind: str, weights: str, identity: str) -> ModelInfo:
    """Facts of the model that `config` describes, without its weights.

    Raises `ModelError` where no method could be put into it.
    """
    module = _without_weights(config, spec)
    refuse_off_interface(type(module))
    refuse_whole_logits(type(module))
    text = config.get_text_config()
    refuse_by_configuration(text)
    return ModelInfo(
        spec=spec,
        kind=kind,
        architecture=type(module).__name__,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        hidden=text.hidden_size,
        vocab=text.vocab_size,
        max_context=_max_context(text, spec),
        weights=weights,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        identity=identity,
        rotary=bool(getattr(text, "rope_parameters", None)),
    )


def first_sentence(error: Exception) -> str:
    """Of what a library says; the paragraphs that follow are about its own installation."""
    return " ".join(str(error).split("\n\n")[0].split()).split(". ")[0].rstrip(".:")


def build(config: Any, **options: Any) -> nn.Module:
    """A causal language model of `config`, freshly initialised where torch's default device is."""
    from transformers import AutoModelForCausalLM

    from_config: Any = AutoModelForCausalLM.from_config
    module: nn.Module = from_config(config, trust_remote_code=False, **options)
    return module


def _without_weights(config: Any, spec: str) -> nn.Module:
    """The model on the meta device: its class and its sizes."""
    try:
        with torch.device("meta"):
            return build(config)
    except (ValueError, ImportError, AttributeError, TypeError) as e:
        raise ModelError(
            f"{spec}: transformers has no causal language model for {config.model_type}: "
            f"{first_sentence(e)}",
            hint="causal decoders such as Llama, Qwen, Mistral, Gemma 3 or Phi-3 are supported",
        ) from e


def _max_context(config: Any, spec: str) -> int:
    limit = getattr(config, "max_position_embeddings", None)
    if not limit:
        raise ModelError(f"{spec} does not say how many positions it knows")
    return int(limit)
