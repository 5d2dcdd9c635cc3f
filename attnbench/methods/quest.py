"""Quest: attention to the pages whose keys may score highest (Tang et al. 2024, arXiv 2406.10774).

Of each page of keys the least and the greatest of every channel are kept. No key of the page has a
product with q above the sum over channels of max(q_d least_d, q_d greatest_d), and the pages with
the highest such bounds are attended to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from attnbench.errors import UsageError
from attnbench.methods.base import (
    CacheView,
    Family,
    KernelConfig,
    LayerShape,
    Method,
    MethodLayer,
)
from attnbench.methods.block_store import blocks_in
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.oracle_topk import highest
from attnbench.methods.random_k import gathered, mask_of
from attnbench.methods.reference import exact_attention
from attnbench.methods.selection import grouped, require_groups, share_of


@dataclass(frozen=True)
class Quest(Method):
    """Attend to as many whole pages as hold `share` of all tokens, of each query head its own.

    The last page, which is still being filled, is one of them; of equal bounds the earlier page is
    taken. The paper gives a number of tokens instead, whatever the length; as there, the first
    `dense_layers` layers attend to everything. Keeps the whole cache: saves reads, not memory.
    By kernels a dense layer is the project's exact one.
    """

    share: float = 0.15
    page: int = 16
    dense_layers: int = 2
    impl: str = ""

    name: ClassVar[str] = "quest"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "arXiv:2406.10774"
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"quest: share={self.share} is not a share", hint="0 < share <= 1")
        if self.page < 1 or self.dense_layers < 0:
            raise UsageError(
                f"quest: page={self.page}, dense_layers={self.dense_layers}",
                hint="page from 1 token, dense_layers from 0",
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default, and one that leaves tokens out of a short cache."""
        del device_type
        return (cls(), cls(share=0.3, page=5))

    @property
    def dynamic_length(self) -> bool:
        """The kernels read the length from the device; PyTorch takes it from a shape."""
        return self.impl == "triton"

    @property
    def together(self) -> int:
        """Of a page."""
        return self.page

    def full_budget(self, tokens: int) -> Self:
        """Every page."""
        del tokens
        return replace(self, share=1.0)

    def pages_kept(self, tokens: int, layer: int) -> int:
        """Pages to keep of so many tokens in this layer of the model, the last included."""
        if layer < self.dense_layers:
            return blocks_in(tokens, self.page)
        return math.ceil(share_of(self.share, tokens) / self.page)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention of each query head over the tokens of its pages."""
        out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
        for b in range(q.shape[0]):
            for head in range(shape.kv_heads):
                keys, values = k[b, head], v[b, head]
                pages = torch.split(keys.double(), self.page)
                least = torch.stack([page.amin(dim=0) for page in pages])
                greatest = torch.stack([page.amax(dim=0) for page in pages])
                for h in range(head * shape.group, (head + 1) * shape.group):
                    asked = q[b, h, 0].double()
                    bounds = torch.maximum(asked * least, asked * greatest).sum(dim=-1)
                    rows = self.rows_of(bounds.tolist(), len(keys), shape.layer)
                    kept, worth = keys[None, None, rows], values[None, None, rows]
                    one = exact_attention(q[b, h][None, None], kept, worth, shape.scale)
                    out[b, h] = one[0, 0]
        return out

    def rows_of(self, bounds: list[float], tokens: int, layer: int) -> list[int]:
        """Tokens that a query head attends to, by the bounds of its pages."""
        last = len(bounds) - 1
        order = sorted(range(len(bounds)), key=lambda at: (at != last, -bounds[at], at))
        chosen = sorted(order[: self.pages_kept(tokens, layer)])
        spans = (range(at * self.page, min((at + 1) * self.page, tokens)) for at in chosen)
        return [row for span in spans for row in span]

    def check(self, shape: LayerShape) -> None:
        """Whole groups, and what the kernels need."""
        super().check(shape)
        require_groups(self.label, shape)
        if self.impl == "triton":
            from attnbench.methods.block_kernels import require_block_kernels

            require_block_kernels(self.label, shape, self.page)

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Rows of a tile of the attention, splits, warps and stages."""
        if self.impl != "triton":
            return ()
        from attnbench.methods.block_kernels import kept_configurations

        return kept_configurations(shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the chosen implementation; that in PyTorch gathers the pages of each head."""
        method = self.resolved(shape.device)
        if method.impl == "torch":
            method.check(shape)
            return QuestLayer(method, shape)
        from attnbench.methods.flash_decode import FlashDecode
        from attnbench.methods.quest_kernels import QuestTritonLayer

        if shape.layer < self.dense_layers:
            return FlashDecode().layer(replace(shape, kernel=None))
        return QuestTritonLayer(method, shape, shape.kernel or method.configurations(shape)[0])


def page_bounds(queries: Tensor, least: Tensor, greatest: Tensor) -> Tensor:
    """The most that q·k can be in each page: [..,G,D], [..,n,D] twice -> float64 [..,G,n]."""
    asked = queries.double()
    return asked.clamp_min(0) @ greatest.double().mT + asked.clamp_max(0) @ least.double().mT


class QuestLayer(ExactCacheLayer):
    """Keeps the exact cache, and the ends of every channel of every page."""

    least: Tensor  # [B,Hkv,C,D] in the cache's dtype; zero where there is no token yet
    greatest: Tensor

    def __init__(self, method: Quest, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Note the ends of the prompt's pages."""
        super().prefill(cache, q)
        shape, page = self.shape, self.method.page
        room = (shape.batch, shape.kv_heads, blocks_in(shape.capacity, page), shape.head_dim)
        self.least = torch.zeros(room, dtype=cache.k.dtype, device=cache.k.device)
        self.greatest = torch.zeros_like(self.least)
        whole = self.prefilled // page
        pages = cache.k[:, :, : whole * page].reshape(*room[:2], whole, page, room[3])
        if whole:
            self.least[:, :, :whole] = pages.amin(dim=3)
            self.greatest[:, :, :whole] = pages.amax(dim=3)
        if self.prefilled % page:
            self._note(cache.k[:, :, : self.prefilled])

    def _note(self, keys: Tensor) -> None:
        """The last page of keys [B,Hkv,N,D]."""
        last = (keys.shape[2] - 1) // self.method.page
        rows = keys[:, :, last * self.method.page :]
        self.least[:, :, last], self.greatest[:, :, last] = rows.amin(dim=2), rows.amax(dim=2)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, bound all pages, gather the chosen ones, attend in float32."""
        keys, values = self.append(k, v)
        self._note(keys)
        queries = grouped(q, self.shape.kv_heads)
        rows, inside = self._rows(queries)
        gathered_keys, gathered_values = (self._of_heads(kv, rows) for kv in (keys, values))
        scores = (gathered_keys @ queries.float()[..., None])[..., 0] * self.shape.scale
        weights = torch.softmax(scores.masked_fill(~inside, -torch.inf), dim=-1)
        out = weights[..., None, :] @ gathered_values
        return out.reshape(q.shape).to(q.dtype)

    def _rows(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the pages of each head, int64 [B,Hkv,G,K], and which of them there are."""
        count = blocks_in(self.visible, self.method.page)
        bounds = page_bounds(queries, self.least[:, :, :count], self.greatest[:, :, :count])
        bounds[..., -1] = torch.inf
        pages = highest(bounds, self.pages)
        places = torch.arange(self.method.page, device=pages.device)
        rows = (pages[..., None] * self.method.page + places).flatten(3)
        return rows.clamp(max=self.visible - 1), rows < self.visible

    def attended_rows(self, q: Tensor) -> Tensor:
        """The tokens of the pages, chosen once more."""
        rows, inside = self._rows(grouped(q, self.shape.kv_heads))
        rows = rows.masked_fill(~inside, self.visible)
        return mask_of(rows, self.visible + 1)[..., :-1].flatten(1, 2)

    def logit_bounds(self, q: Tensor) -> tuple[Tensor, int]:
        """By the ends of every channel."""
        count = blocks_in(self.visible, self.method.page)
        ends = self.least[:, :, :count], self.greatest[:, :, :count]
        bounds = page_bounds(grouped(q, self.shape.kv_heads), *ends) * self.shape.scale
        return bounds.flatten(1, 2), self.method.page

    def _of_heads(self, cache: Tensor, rows: Tensor) -> Tensor:
        """Rows [B,Hkv,G,K] of a cache [B,Hkv,N,D] in float32: [B,Hkv,G,K,D]."""
        return gathered(cache, rows.flatten(2)).reshape(*rows.shape, -1).float()

    def reset(self) -> None:
        """The prompt's pages."""
        super().reset()
        for ends in (self.least, self.greatest):
            ends[:, :, self.prefilled // self.method.page :].zero_()
        if self.prefilled % self.method.page:
            self._note(self.cache.k[:, :, : self.prefilled])

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and the ends of its pages."""
        yield from super().tensors()
        yield from (self.least, self.greatest)

    @property
    def pages(self) -> int:
        """That each query head attends to, the last among them."""
        return self.method.pages_kept(self.visible, self.shape.layer)

    @property
    def attended(self) -> int:
        """Tokens of these pages, of which the last may be short."""
        short = -self.visible % self.method.page
        return self.pages * self.method.page - short

    @property
    def is_dense(self) -> bool:
        """Whether all pages are attended to, so that no bound is needed."""
        return self.attended == self.visible

    def bytes_read(self) -> int:
        """The ends of all pages, where there is a choice, and the tokens of one head's pages: those
        of a group may be the same."""
        ends = 0 if self.is_dense else blocks_in(self.visible, self.method.page)
        return (ends + self.attended) * self.shape.row_bytes

    def witness(self) -> Mapping[str, float]:
        """The attended share, in pages too; `dense_steps` is 1 where all are attended to."""
        return {
            "kept_share": self.attended / self.visible,
            "attended_tokens": float(self.attended),
            "pages_kept": float(self.pages),
            "pages": float(blocks_in(self.visible, self.method.page)),
            "dense_steps": float(self.is_dense),
        }
