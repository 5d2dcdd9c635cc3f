"""transformers' Llama, with a training forward that adds dropout and compiles by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, linear
from transformers import LlamaConfig, LlamaForCausalLM

from training.schedule import Recipe

Block = Callable[[nn.Module, Tensor, tuple[Tensor, Tensor], float], Tensor]


def new_model(recipe: Recipe, bos: int, eos: int) -> LlamaForCausalLM:
    """Random weights; projections back into the residual stream start small (GPT-2's rule)."""
    config = LlamaConfig(
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        intermediate_size=recipe.intermediate,
        vocab_size=recipe.vocabulary,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=None,
        initializer_range=0.02,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_((2 * recipe.layers) ** -0.5)
            layer.mlp.down_proj.weight.mul_((2 * recipe.layers) ** -0.5)
    return model


def block(layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor], rate: float) -> Tensor:
    """One decoder layer on x [B, N, hidden], dropping out from what it adds to the residual stream.

    No mask is passed, so that causal attention stays on the fast kernels.
    """
    attended, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(x), position_embeddings=rotary, attention_mask=None
    )
    x = x + dropout(attended, rate)
    return x + dropout(layer.mlp(layer.post_attention_layernorm(x)), rate)


def weighted_losses(
    x: Tensor, vocabulary: Tensor, targets: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted mean cross-entropy in nats (scalar), and every token's own [B, N], detached."""
    logits = linear(x, vocabulary.to(x.dtype)).float()
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view_as(targets)
    return (losses * weight).sum() / weight.sum(), losses.detach()


class Trainee:
    """A model with its training forward, compiled or not as asked; never switched silently."""

    def __init__(self, model: LlamaForCausalLM, dropout_rate: float, compiled: bool) -> None:
        self.model = model
        self.dropout_rate = dropout_rate
        self._block: Block = block
        self._losses = weighted_losses
        if compiled:
            self._block = torch.compile(block, fullgraph=True, dynamic=False)
            self._losses = torch.compile(weighted_losses, fullgraph=True, dynamic=False)

    def losses(self, inputs: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Forward inputs [B, N]; see `weighted_losses`."""
        body = self.model.model
        device_type = inputs.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
            x = dropout(body.embed_tokens(inputs), self.dropout_rate)
            positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
            rotary = body.rotary_emb(x, position_ids=positions)
            for layer in body.layers:
                x = self._block(layer, x, rotary, self.dropout_rate)
            return self._losses(body.norm(x), self.model.lm_head.weight, targets, weight)


def save_bf16(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a bfloat16 copy of the model that `from_pretrained(folder)` loads."""
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)


def parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
