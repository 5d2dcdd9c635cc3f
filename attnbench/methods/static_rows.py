"""A cache from which tokens were evicted once, at prefill, and none after that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import CacheLength, CacheView, LayerShape, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.random_k import gathered


class StaticRowsLayer(MethodLayer):
    """A copy of the chosen rows in the order of their choice, with room for the tokens to come, all
    of which are attended to.

    `choose` takes the prompt's keys [B,Hkv,N,D] and returns rows [B,Hkv,K].
    """

    length: CacheLength
    keys: Tensor  # [B,Hkv,K + room,D]
    values: Tensor

    def __init__(self, shape: LayerShape, choose: Callable[[Tensor], Tensor]) -> None:
        self.shape = shape
        self.choose = choose
        self.prefilled = self.kept = 0

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Choose, and copy what was chosen."""
        del q
        self.length = cache.length
        self.prefilled = cache.length.tokens
        keys, values = cache.k[:, :, : self.prefilled], cache.v[:, :, : self.prefilled]
        rows = self.choose(keys)
        self.kept = rows.shape[-1]
        room = self.kept + self.shape.capacity - self.prefilled
        self.keys = keys.new_zeros((*keys.shape[:2], room, keys.shape[3]))
        self.values = self.keys.clone()
        self.keys[:, :, : self.kept] = gathered(keys, rows)
        self.values[:, :, : self.kept] = gathered(values, rows)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new row; returns all keys and values that are kept."""
        row = self.stored - 1
        self.keys[:, :, row : row + 1].copy_(k)
        self.values[:, :, row : row + 1].copy_(v)
        return self.keys[:, :, : row + 1], self.values[:, :, : row + 1]

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, and attend to all that is kept."""
        keys, values = self.append(k, v)
        return scaled_dot_product_attention(
            q, keys, values, scale=self.shape.scale, enable_gqa=self.shape.group > 1
        )

    def reset(self) -> None:
        """Zero the rows appended since prefill."""
        self.keys[:, :, self.kept :].zero_()
        self.values[:, :, self.kept :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        """The kept rows."""
        yield self.keys
        yield self.values

    @property
    def visible(self) -> int:
        """Tokens of the sequence, the newest included."""
        return self.length.tokens + 1

    @property
    def stored(self) -> int:
        """Rows kept of the prompt, and all since, the newest included."""
        return self.kept + self.visible - self.prefilled

    @property
    def attended(self) -> int:
        """Tokens that each query head attends to."""
        return self.stored

    def bytes_read(self) -> int:
        """Keys and values of all that is kept."""
        return self.stored * self.shape.row_bytes

    def witness(self) -> Mapping[str, float]:
        """The attended share of what is visible; `dense` is 1 where that is all."""
        return {
            "kept_share": self.attended / self.visible,
            "attended_tokens": float(self.attended),
            "dense": float(self.attended == self.visible),
        }


class StaticChoice(Protocol):
    """A definition that chooses rows of a prompt once, and attends to some of them ever after."""

    def chosen(self, keys: Tensor) -> Tensor:
        """Rows [B,Hkv,K] of the prompt's keys [B,Hkv,N,D]."""
        ...

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, prompt: int, shape: LayerShape
    ) -> Tensor:
        """In float64, over all keys and values, of which the first `prompt` were chosen from."""
        ...


class StaticReferenceLayer(ExactCacheLayer):
    """The definition over the exact cache, with the rows that were chosen at prefill."""

    def __init__(self, method: StaticChoice, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Choose the rows."""
        super().prefill(cache, q)
        self.rows = self.method.chosen(cache.k[:, :, : self.prefilled])

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend; the output is float64."""
        keys, values = self.append(k, v)
        return self.method.attend(q, keys, values, self.rows, self.prefilled, self.shape)
