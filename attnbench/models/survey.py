"""One dry step that finds out what each layer of a model really passes to attention.

Guesses from configuration attributes go wrong silently (scale, windows, soft-capping); here the
model tells, and whatever could not be reproduced exactly is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.errors import ModelError
from attnbench.methods.base import CacheLength, LayerShape
from attnbench.models.adapter import AttentionCall, PassingCache, Router, SurveyedLayer
from attnbench.models.info import LoadedModel
from attnbench.models.masks import MaskRecorder, recorded_masks
from attnbench.models.prefill import cache_argument

# Arguments that leave the result of one decode step as it is.
_HARMLESS = {
    "cache_position",
    "dropout",  # checked to be zero
    "is_causal",  # checked to be true
    "layer_idx",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "scaling",  # recorded
    "sliding_window",  # the recorded mask decides
    "use_cache",
}
_REASONS = {
    "s_aux": "attention sinks as parameters",
    "softcap": "soft-capped attention scores",
    "position_bias": "a position bias on attention scores",
}
_LAYER_TYPES = {"full_attention", "sliding_attention", "attention"}


@torch.no_grad()
def survey(
    loaded: LoadedModel,
    router: Router,
    batch: int,
    capacity: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[SurveyedLayer, ...]:
    """Shape, scale and window of every layer, for a cache of `capacity` tokens.

    A window that no position within the capacity reaches counts as full attention. Raises
    `ModelError` for what a method could not be put into faithfully. The router remembers the
    result, which its prefill needs.
    """
    whole_config: Any = loaded.module.config
    config = whole_config.get_text_config()
    refuse_by_configuration(config)
    passing = _KeepingCache(CacheLength(device))
    with recorded_masks(router.name) as masks:
        calls = router.survey()
        _dry_step(loaded, passing, batch, device)
    _refuse_unless_every_layer_attends_once(calls, passing, config.num_hidden_layers)
    calls.sort(key=lambda call: int(call.module.layer_idx))  # type: ignore[arg-type]
    router.surveyed = tuple(
        _surveyed(call, passing, masks, capacity, dtype, device) for call in calls
    )
    return router.surveyed


class _KeepingCache(PassingCache):
    """Remembers the k and v that every layer cached."""

    def __init__(self, length: CacheLength) -> None:
        super().__init__(length)
        self.passed: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """The new token's k and v, as they came."""
        self.passed[layer_idx] = (key_states, value_states)
        return key_states, value_states


def refuse_by_configuration(config: Any) -> None:
    """Raise `ModelError` for kinds of model that the configuration gives away."""
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if others:
        raise ModelError(f"the model has layers of other kinds than attention: {', '.join(others)}")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError("the model is an encoder-decoder; only decoders are supported")
    if getattr(config, "kv_lora_rank", None):
        raise ModelError("the model caches a latent (multi-head latent attention), not k and v")
    if getattr(config, "num_kv_shared_layers", None):
        raise ModelError("the model shares one layer's keys and values with others")


def _dry_step(
    loaded: LoadedModel, passing: _KeepingCache, batch: int, device: torch.device
) -> None:
    """One token at position 0; what the model's code cannot do with our cache is a refusal."""
    zeros = torch.zeros((batch, 1), dtype=torch.int64, device=device)
    try:
        held = {cache_argument(type(loaded.module)): passing}
        loaded.module(input_ids=zeros, position_ids=zeros, use_cache=True, **held)
    except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError) as e:
        raise ModelError(
            f"{loaded.info.architecture} does not run on a plain key-value cache: {e}",
            hint="state-space, hybrid and encoder-decoder models are not supported",
        ) from e


def _refuse_unless_every_layer_attends_once(
    calls: list[AttentionCall], passing: _KeepingCache, layers: int
) -> None:
    attending = [getattr(call.module, "layer_idx", None) for call in calls]
    if sorted(i for i in attending if i is not None) != list(range(layers)):
        raise ModelError(
            f"{layers} layers made {len(calls)} attention calls, numbered {attending}",
            hint="state-space, hybrid and shared layers are not supported",
        )
    missing = sorted(set(range(layers)) - set(passing.passed))
    if missing:
        raise ModelError(f"layers {missing} use another layer's keys and values")


def _surveyed(
    call: AttentionCall,
    passing: _KeepingCache,
    masks: MaskRecorder,
    capacity: int,
    dtype: torch.dtype,
    device: torch.device,
) -> SurveyedLayer:
    layer = int(call.module.layer_idx)  # type: ignore[arg-type]
    _refuse_arguments(call, layer)
    _refuse_shapes(call, passing, layer)
    if not getattr(call.module, "is_causal", True):
        raise ModelError(f"layer {layer} attends in both directions")
    batch, heads, _, head_dim = call.q.shape
    scale = call.arguments.get("scaling")
    shape = LayerShape(
        batch=batch,
        heads=heads,
        kv_heads=call.k.shape[1],
        head_dim=head_dim,
        capacity=capacity,
        dtype=dtype,
        device=device,
        layer=layer,
        scale=head_dim**-0.5 if scale is None else float(scale),
    )
    return SurveyedLayer(shape, _window(call, masks, capacity))


def _refuse_arguments(call: AttentionCall, layer: int) -> None:
    """Every argument must be known to change nothing, or absent."""
    for name, value in call.arguments.items():
        if value is not None and name not in _HARMLESS:
            what = _REASONS.get(name, f"an attention argument that is not understood: {name}")
            raise ModelError(f"layer {layer} has {what}", hint="such models are not supported yet")
    if call.arguments.get("dropout"):
        raise ModelError(f"layer {layer} drops attention out", hint="call eval() on the model")
    if call.arguments.get("is_causal") is False:
        raise ModelError(f"layer {layer} attends in both directions")


def _refuse_shapes(call: AttentionCall, passing: _KeepingCache, layer: int) -> None:
    """Attention must get the very k and v that the cache got, of the shapes the cache has."""
    k, v = passing.passed[layer]
    if call.k is not k or call.v is not v or call.k.shape != call.v.shape:
        raise ModelError(f"layer {layer} does not attend to what it caches (latent attention?)")
    if call.q.shape[-1] != k.shape[-1] or call.q.shape[1] % k.shape[1]:
        raise ModelError(
            f"layer {layer} has queries {tuple(call.q.shape)} and keys {tuple(k.shape)}"
        )


def _window(call: AttentionCall, masks: MaskRecorder, capacity: int) -> int | None:
    """From the mask where the model asks for one, which is what its own attention obeys."""
    if call.mask is not None:
        return masks.window(call.mask, capacity)
    window = call.arguments.get("sliding_window")
    return None if window is None or window >= capacity else int(window)
