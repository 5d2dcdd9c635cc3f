"""Known architectures with random weights: nothing to download, enough for latency and memory."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from attnbench.errors import UsageError
from attnbench.models.architecture import build, describe
from attnbench.models.info import LoadedModel, ModelInfo

PREFIX = "preset:"

# Copied fact by fact from the configuration that each model's authors publish with it.
_LLAMA_3 = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.2-1b": (
        "llama",
        {
            **_LLAMA_3,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "head_dim": 64,
            "rope_parameters": {**_LLAMA_3_ROPE, "factor": 32.0},
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.1-8b": (
        "llama",
        {
            **_LLAMA_3,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "head_dim": 128,
            "rope_parameters": {**_LLAMA_3_ROPE, "factor": 8.0},
            "tie_word_embeddings": False,
        },
    ),
    "qwen3-0.6b": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": True,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
    ),
    "mistral-7b": (  # v0.3: no sliding window
        "mistral",
        {
            "vocab_size": 32768,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
}


@dataclass(frozen=True)
class PresetSource:
    """`preset:NAME`."""

    spec: str

    def inspect(self) -> ModelInfo:
        """Facts of the preset; its identity is the hash of its configuration."""
        return describe(self.config(), self.spec, "preset", "random", self._identity())

    def load(self, dtype: torch.dtype, device: torch.device, seed: int) -> LoadedModel:
        """Random weights from `seed`, drawn on the device in `dtype`."""
        info = self.inspect()
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            module = build(self.config(), dtype=dtype, attn_implementation="sdpa")
        return LoadedModel(module.eval().requires_grad_(False), info, None)

    @property
    def _name(self) -> str:
        name = self.spec.removeprefix(PREFIX)
        if name not in PRESETS:
            raise UsageError(f"there is no preset named {name!r}", hint=_nearest_preset(name))
        return name

    def config(self) -> Any:
        """The configuration alone."""
        from transformers import AutoConfig

        model_type, settings = PRESETS[self._name]
        return AutoConfig.for_model(model_type, **settings)

    def _identity(self) -> str:
        return hashlib.sha256(json.dumps(PRESETS[self._name], sort_keys=True).encode()).hexdigest()


def _nearest_preset(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.4)
    if near:
        return f"did you mean {PREFIX}{near[0]}?"
    return f"there are {', '.join(PREFIX + name for name in PRESETS)}"


def suggest_preset(name: str) -> str:
    """A hint that names the preset nearest to a model's name, or all of them."""
    wanted = name.rsplit("/", 1)[-1].lower()
    near = difflib.get_close_matches(wanted, PRESETS, n=1, cutoff=0.6)
    if near:
        return f"use {PREFIX}{near[0]}: the same or a similar architecture with random weights"
    return f"there are {', '.join(PREFIX + name for name in PRESETS)}"
