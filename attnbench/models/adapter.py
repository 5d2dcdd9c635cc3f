"""The one place that touches transformers' protocols: its cache, and its attention interface.

A model under `attention_router` calls a `Router` wherever it attends, and the router says what
happens there. Nothing is patched at import, and the registry and the configuration are as before
after the context ends. An attention function of one's own gets no mask from transformers, so
windows come from the survey.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.errors import ModelError
from attnbench.methods.base import CacheLength, CacheView, LayerShape, MethodLayer
from attnbench.models.exact import causal_attention
from attnbench.models.opaque import attend_opaquely, turn

FOLD_SEED = 2026  # of the multipliers that fold a cached row into 64 bits
# What the model passes to its attention function, and the output [B,H,n,D] it gets.
Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class SurveyedLayer:
    """One attention layer as the model drives it; `window` in tokens, None: full attention."""

    shape: LayerShape
    window: int | None


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function, as the model made it."""

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    arguments: dict[str, Any]


class _Lengths:
    """The part of the transformers cache protocol that answers questions of length."""

    length: CacheLength

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Cached tokens, without those of the forward pass under way."""
        del layer_idx
        return self.length.tokens

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the first new token."""
        del layer_idx
        return self.length.tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that a mask would cover, and the position of the first of them."""
        del layer_idx
        return self.length.tokens + query_length, 0


class ExactCache(_Lengths):
    """The run's one exact cache: k and v of every layer, [B, Hkv, capacity, D], spare rows zero.

    Speaks the transformers cache protocol while a prompt is prefilled.
    """

    def __init__(self, shapes: Sequence[LayerShape]) -> None:
        self.shapes = tuple(shapes)
        self.length = CacheLength(self.shapes[0].device)
        self.views = tuple(
            CacheView(k=_empty_rows(shape), v=_empty_rows(shape), length=self.length)
            for shape in self.shapes
        )

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.shapes[0].capacity

    def reset(self, tokens: int) -> None:
        """Go back to the first `tokens` cached tokens; every row after them becomes zero."""
        self.length.set(tokens)
        for view in self.views:
            view.k[:, :, tokens:].zero_()
            view.v[:, :, tokens:].zero_()

    def sha256(self) -> str:
        """Hash of the length and of every row, the spare ones too: a dirty tail shows.

        Each row is first folded into 64 bits on the device, by a fixed random multiplier for every
        place in it: gigabytes need not come to the host, and a moved or changed bit still shows.
        """
        digest = hashlib.sha256(str(self.length.tokens).encode())
        for view in self.views:
            for rows in (view.k, view.v):
                digest.update(str(tuple(rows.shape)).encode())
                digest.update(folded_rows(rows).cpu().numpy().tobytes())
        return digest.hexdigest()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens after the cached ones; return all rows up to the last new one.

        The tokens of one sequence are written to every sequence of the cache.
        """
        view, start = self.views[layer_idx], self.length.tokens
        given, end = len(key_states), start + key_states.shape[-2]
        view.k[:, :, start:end].copy_(key_states)
        view.v[:, :, start:end].copy_(value_states)
        return view.k[:given, :, :end], view.v[:given, :, :end]


class PassingCache(_Lengths):
    """What the model holds as its cache while methods keep the real one: hands k and v through."""

    def __init__(self, length: CacheLength) -> None:
        self.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """The new token's k and v, as they came."""
        del layer_idx
        return key_states, value_states


class Router:
    """What an attention call of the routed model does: `survey`, `prefill` or `decode`."""

    def __init__(self) -> None:
        self.name = f"attnbench_{id(self):x}"
        self.surveyed: tuple[SurveyedLayer, ...] = ()
        self._attend: Attend = _nothing_selected

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, None]:
        """The attention function that transformers calls: [B,H,n,D] in, [B,n,H,D] out."""
        if torch.compiler.is_compiling():
            output = attend_opaquely(module, query, key, value)
        else:
            output = self._attend(module, query, key, value, attention_mask, arguments)
        return output.transpose(1, 2), None

    def survey(self) -> list[AttentionCall]:
        """Record every call from now on in the returned list; the output is only well shaped."""
        calls: list[AttentionCall] = []

        def record(
            module: nn.Module,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            mask: Tensor | None,
            arguments: dict[str, Any],
        ) -> Tensor:
            calls.append(AttentionCall(module, q, k, v, mask, arguments))
            return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)

        self._attend = record
        return calls

    def prefill(self, cache: ExactCache) -> None:
        """Attend exactly and causally over `cache`, with the surveyed scales and windows."""
        if len(self.surveyed) != len(cache.views):
            raise ModelError(
                "the model was not surveyed in this context, or the cache is another model's",
                hint="call survey() before prefill() inside one attention_router",
            )
        layers = self.surveyed

        def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
            layer = layers[_layer_index(module)]
            return causal_attention(q, k, v, layer.shape.scale, layer.window)

        self._attend = attend

    def decode(self, layers: Sequence[MethodLayer]) -> None:
        """Hand q, k and v of the new token to `layers`, by number; they may be strided views."""

        def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
            return layers[_layer_index(module)].decode(q, k, v)

        self._attend = attend
        turn.layers = layers


@contextmanager
def attention_router(module: nn.Module) -> Iterator[Router]:
    """Route every attention call of `module` (a transformers model) for the length of the context.

    Raises `ModelError` where the model does not call attention through the interface.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    refuse_off_interface(type(module))
    router = Router()
    before = [(c, c._attn_implementation) for c in _configurations(module)]
    ALL_ATTENTION_FUNCTIONS[router.name] = router
    try:
        for config, _ in before:
            config._attn_implementation = router.name
        yield router
    finally:
        for config, name in before:  # parents first: setting one sets its sub-configurations too
            config._attn_implementation = name
        ALL_ATTENTION_FUNCTIONS.pop(router.name)


def refuse_off_interface(architecture: type) -> None:
    """Raise `ModelError` for a model class that transformers would only warn about."""
    if not getattr(architecture, "_supports_attention_backend", False):
        raise ModelError(
            f"{architecture.__name__} does not call attention through transformers' interface",
            hint="no method can be put into this model; most newer architectures are on it",
        )


def _configurations(module: nn.Module) -> list[Any]:
    """Every configuration object that a part of `module` may ask, parents before children."""
    from transformers import PreTrainedConfig

    found: dict[int, Any] = {}

    def add(config: Any) -> None:
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            for name in config.sub_configs:
                add(getattr(config, name, None))

    for part in module.modules():
        add(getattr(part, "config", None))
    return list(found.values())


def _layer_index(module: nn.Module) -> int:
    index: int = module.layer_idx  # type: ignore[assignment]
    return index


def folded_rows(rows: Tensor) -> Tensor:
    """[B,Hkv,capacity,D] of any dtype -> int64 [B,Hkv,capacity]: the sum of each row's bits, read
    as integers, times odd random multipliers, modulo 2^64."""
    words = words_of(rows)
    return (words * fold_multipliers(words)).sum(dim=-1)


def words_of(rows: Tensor) -> Tensor:
    """The rows' bits as the widest integers that a row holds a whole number of."""
    width = math.gcd(8, rows.shape[-1] * rows.element_size())
    return rows.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width])


def fold_multipliers(words: Tensor) -> Tensor:
    """The odd random number of each column of words [.., W]: int64 [W], on their device."""
    return _multipliers(words.shape[-1], words.device)


@functools.cache
def _multipliers(width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(FOLD_SEED)
    multipliers = torch.randint(-(1 << 62), 1 << 62, (width,), generator=generator) * 2 + 1
    return multipliers.to(device)


def _empty_rows(shape: LayerShape) -> Tensor:
    return torch.zeros(
        (shape.batch, shape.kv_heads, shape.capacity, shape.head_dim),
        dtype=shape.dtype,
        device=shape.device,
    )


def _nothing_selected(*_: Any) -> Tensor:
    raise ModelError(
        "the model was called before the router was told what attention does",
        hint="select survey(), prefill() or decode() first",
    )
