"""Where the rows lie that a coded selection attends to: in the exact cache, or in eight bits.

A row of eight bits has one scale for each channel, of keys and of values alike, and holds key and
value of a token side by side: what is gathered is then one piece of memory a token, without a scale
of its own beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape
from attnbench.methods.int8_kv import LARGEST_CODE, key_scales, nearest_codes

CODE_BYTES = 1


class Rows(ABC):
    """Keys and values of a layer, [B,Hkv,capacity,D] each."""

    keys: Tensor
    values: Tensor
    worth: tuple[Tensor, Tensor] | None = None  # of a code, by channel; None: rows are exact

    @abstractmethod
    def append(self, k: Tensor, v: Tensor, row: int) -> None:
        """Write one token [B,Hkv,1,D]."""

    @abstractmethod
    def widened(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The first `tokens` in float32."""

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """All that is kept."""

    @property
    @abstractmethod
    def token_bytes(self) -> int:
        """Of key and value of one token, in every sequence and KV head."""

    def bytes_beside(self) -> int:
        """Read in a step whatever is kept."""
        return 0

    def reset(self, tokens: int) -> None:
        """Zero what comes after so many."""
        self.keys[:, :, tokens:].zero_()
        self.values[:, :, tokens:].zero_()

    def at_limit(self, tokens: int) -> dict[str, float]:
        """For a witness: codes after so many tokens that may have been cut off."""
        del tokens
        return {}


class ExactRows(Rows):
    """The exact cache itself."""

    def __init__(self, cache: CacheView, shape: LayerShape) -> None:
        self.keys, self.values = cache.k, cache.v
        self._shape = shape

    def append(self, k: Tensor, v: Tensor, row: int) -> None:
        """As it is."""
        self.keys[:, :, row : row + 1].copy_(k)
        self.values[:, :, row : row + 1].copy_(v)

    def widened(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Converted."""
        return self.keys[:, :, :tokens].float(), self.values[:, :, :tokens].float()

    def tensors(self) -> Iterator[Tensor]:
        """Keys and values."""
        yield from (self.keys, self.values)

    @property
    def token_bytes(self) -> int:
        """In the cache's dtype."""
        return self._shape.row_bytes


class RoundedRows(Rows):
    """Codes int8 [B,Hkv,capacity,2,D], whose scales are taken of the prompt; later ones saturate at
    them."""

    worth: tuple[Tensor, Tensor]

    def __init__(self, cache: CacheView, shape: LayerShape) -> None:
        tokens = cache.length.tokens
        size = (shape.batch, shape.kv_heads, shape.capacity, 2, shape.head_dim)
        self._codes = torch.zeros(size, dtype=torch.int8, device=shape.device)
        self.keys, self.values = self._codes.unbind(dim=3)
        self.worth = row_worth(cache.k[:, :, :tokens], cache.v[:, :, :tokens])
        for sequence in range(shape.batch):  # one after another to save memory
            one = slice(sequence, sequence + 1)
            for place, rows in enumerate((cache.k, cache.v)):
                codes = nearest_codes(rows[one, :, :tokens], self.worth[place][one, :, None])
                self._codes[one, :, :tokens, place] = codes.to(torch.int8)

    def append(self, k: Tensor, v: Tensor, row: int) -> None:
        """Rounded."""
        for place, new in enumerate((k, v)):
            codes = nearest_codes(new, self.worth[place][:, :, None]).to(torch.int8)
            self._codes[:, :, row : row + 1, place] = codes

    def widened(self, tokens: int) -> tuple[Tensor, Tensor]:
        """What the codes are worth."""
        k_worth, v_worth = (worth[:, :, None] for worth in self.worth)
        return self.keys[:, :, :tokens] * k_worth, self.values[:, :, :tokens] * v_worth

    def tensors(self) -> Iterator[Tensor]:
        """Codes and scales."""
        yield from (self._codes, *self.worth)

    @property
    def token_bytes(self) -> int:
        """A byte an element."""
        return self._codes[:, :, 0].numel() * CODE_BYTES

    def bytes_beside(self) -> int:
        """The scales."""
        return sum(worth.nbytes for worth in self.worth)

    def at_limit(self, tokens: int) -> dict[str, float]:
        """Counted."""
        appended = self._codes[:, :, tokens:].to(torch.int16).abs()
        return {"appended_codes_at_limit": float((appended == LARGEST_CODE).sum())}


def row_worth(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What a code of eight bits is worth in each channel of keys and values [B,Hkv,N,D]: float32
    [B,Hkv,D] each."""
    return key_scales(k), key_scales(v)


def rounded(rows: Tensor, worth: Tensor) -> Tensor:
    """Rows [..,N,D] as their codes say, in float64; `worth` [..,D]."""
    each = worth[..., None, :]
    return nearest_codes(rows, each).double() * each
