"""Which tokens a layer really sees: read from the mask function that its model asks for.

transformers builds masks only for attention functions that register a mask function. The survey
registers one that records what was asked, so that a window, a chunk or a bidirectional pattern is
evaluated at real positions and not guessed from attribute names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from attnbench.errors import ModelError

# (batch, head, query position, key position) -> may this query see this key?
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class MaskRecorder:
    """Stands in for a mask builder: returns a tensor to recognise the request by."""

    def __init__(self) -> None:
        self._asked: list[tuple[Tensor, MaskFunction]] = []

    def __call__(
        self,
        *,
        batch_size: int,
        q_length: int,
        kv_length: int,
        mask_function: MaskFunction,
        device: torch.device,
        **_: Any,
    ) -> Tensor:
        """A mask of the right shape that lets everything through."""
        mask = torch.ones((batch_size, 1, q_length, kv_length), dtype=torch.bool, device=device)
        self._asked.append((mask, mask_function))
        return mask

    def window(self, mask: Tensor, capacity: int) -> int | None:
        """Tokens that the layer which received `mask` sees, None for all of them.

        Raises `ModelError` where it is neither causal nor a causal sliding window.
        """
        for asked, function in self._asked:
            if _same_memory(asked, mask):
                return _window_of(function, capacity, _where(mask.device))
        raise ModelError("the model makes its own attention mask, which a method would not get")


@contextmanager
def recorded_masks(name: str) -> Iterator[MaskRecorder]:
    """Record the masks asked for under the attention implementation `name`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    recorder = MaskRecorder()
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, recorder)
    try:
        yield recorder
    finally:
        # `del` reaches only entries of the instance; models ask the shared mapping.
        del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[name]


def _same_memory(a: Tensor, b: Tensor) -> bool:
    # By the storage itself: without memory, as on device meta, every address is 0.
    same: bool = a.untyped_storage()._cdata == b.untyped_storage()._cdata
    return same


def _where(device: torch.device) -> torch.device:
    """Where positions are compared: a model without weights lies on no device."""
    return torch.device("cpu") if device.type == "meta" else device


def _window_of(function: MaskFunction, capacity: int, device: torch.device) -> int | None:
    """The window seen from the last position, checked at positions where other patterns differ."""
    last = capacity - 1
    query = torch.tensor([last, max(last - 1, 0), last // 2, 0], device=device)[:, None]
    key = torch.arange(capacity, device=device)[None, :]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    seen = function(zero, zero, query, key).expand(query.shape[0], capacity)
    window = int(seen[0].sum())
    expected = (key <= query) & (key > query - window)
    if not torch.equal(seen, expected):
        raise ModelError(
            "a layer attends neither causally nor within a causal sliding window",
            hint="chunked, prefix and bidirectional attention are not supported",
        )
    return None if window == capacity else window
