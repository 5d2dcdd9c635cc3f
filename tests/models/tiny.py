"""Tiny models with random weights, one an architecture, in float32 on the CPU."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from attnbench.models.info import LoadedModel, ModelInfo

VOCAB = 61
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
GEMMA = {**COMMON, "num_hidden_layers": 4, "head_dim": 64, "query_pre_attn_scalar": 5}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

WORKING = {
    "llama": ("llama", COMMON),
    "llama-biased": ("llama", {**COMMON, "attention_bias": True, "head_dim": 64}),
    "qwen2": ("qwen2", COMMON),
    "qwen3": ("qwen3", {**COMMON, "head_dim": 64}),
    "mistral": ("mistral", {**COMMON, "sliding_window": None}),
    "mistral-sliding": ("mistral", {**COMMON, "sliding_window": 7}),
    "gemma3": ("gemma3_text", {**GEMMA, "sliding_window": 5, "layer_types": MIXED}),
    "gpt2": ("gpt2", GPT2),
    "gpt2-scaled-by-layer": ("gpt2", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "phi3": ("phi3", COMMON),
    "olmo2": ("olmo2", COMMON),
    "smollm3": ("smollm3", COMMON),
    "granite": ("granite", {**COMMON, "attention_multiplier": 0.3}),
    "gpt_neox": ("gpt_neox", COMMON),
    "cohere": ("cohere", COMMON),
    "opt": (
        "opt",
        {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
    ),
}


def build(model_type: str, settings: dict) -> torch.nn.Module:
    """A random model whose attention is far from uniform, so that a wrong scale shows."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **settings)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return module


def loaded(name: str) -> LoadedModel:
    """One of `WORKING`."""
    return wrap(build(*WORKING[name]))


def wrap(module: torch.nn.Module) -> LoadedModel:
    """As `sources.load` would return it."""
    config = module.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    info = ModelInfo(
        spec="tiny",
        kind="local",
        architecture=type(module).__name__,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        max_context=config.max_position_embeddings,
        weights="random",
        parameters=sum(p.numel() for p in module.parameters()),
        identity="",
    )
    return LoadedModel(module, info, None)


def prompt(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, tokens), generator=generator)
