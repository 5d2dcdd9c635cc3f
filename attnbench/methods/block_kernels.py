"""What methods that choose blocks by kernels share: a step of two launches, and what it kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.base import CacheView, KernelConfig, LayerShape
from attnbench.methods.block_store import blocks_in
from attnbench.methods.split_kv import (
    Candidates,
    require_triton,
    split_configurations,
    workspace,
)

if TYPE_CHECKING:
    from attnbench.kernels.choose_blocks import Rule

HEAD_DIMS = (64, 128)
# As `split_kv.EXACT_CANDIDATES`, of the attention to what is kept: it looks up where a row is
# before it asks for it, so that of its stages about half are rows in flight.
KEPT_CANDIDATES: Candidates = (
    (True, 4, 5, 4),
    (True, 4, 4, 4),
    (True, 4, 3, 4),
    (True, 4, 5, 3),
    (True, 4, 5, 2),
    (True, 4, 3, 6),
    (True, 2, 5, 6),
    (False, 4, 3, 2),
    (False, 4, 4, 2),
    (False, 8, 3, 2),
)


def kept_configurations(shape: LayerShape) -> tuple[KernelConfig, ...]:
    """Launch parameters of the attention worth trying."""
    return split_configurations(shape, 2 * shape.head_dim * shape.dtype.itemsize, KEPT_CANDIDATES)


def require_block_kernels(name: str, shape: LayerShape, block: int) -> None:
    """Raise `Unsupported` where these kernels cannot run."""
    from attnbench.kernels.choose_blocks import MOST_BLOCKS, MOST_GROUP

    require_triton(name, shape)
    count = blocks_in(shape.capacity, block)
    if shape.head_dim not in HEAD_DIMS:
        what = f"head dimension {shape.head_dim}: it has {', '.join(map(str, HEAD_DIMS))}"
    elif shape.group > MOST_GROUP:
        what = f"{shape.group} query heads of one KV head: it has up to {MOST_GROUP}"
    elif count > MOST_BLOCKS:
        what = f"{count} blocks of {block} tokens: it has up to {MOST_BLOCKS}"
    else:
        return
    raise Unsupported(f"{name} has no kernel for {what}", hint="impl=torch has no such limit")


class BlockKernels:
    """Chooses blocks and attends to them, of one layer; nothing of it waits for the host.

    `own`: each query head attends to the blocks that it keeps itself, else to its group's.
    """

    def __init__(self, shape: LayerShape, config: KernelConfig, rule: Rule, *, own: bool) -> None:
        from attnbench.kernels.choose_blocks import Choice

        self.shape, self.config, self.rule, self.own = shape, config, rule, own
        self.blocks = blocks_in(shape.capacity, rule.block)
        pairs = shape.batch * shape.kv_heads
        self.choice = Choice.allocate(pairs, shape.group, self.blocks, shape.device)
        self.work = workspace(shape, config)

    def decode(
        self, q: Tensor, k: Tensor, v: Tensor, cache: CacheView, summaries: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Append, summarise the newest block, choose, attend: as `choose_blocks` says."""
        from attnbench.kernels.choose_blocks import choose_blocks
        from attnbench.kernels.kept_decode import kept_decode

        length = cache.length.tensor
        choose_blocks(
            q,
            k,
            v,
            cache.k,
            cache.v,
            summaries,
            length,
            self.choice,
            rule=self.rule,
            scale=self.shape.scale,
        )
        return kept_decode(
            q,
            cache.k,
            cache.v,
            self.choice,
            length,
            self.work,
            block=self.rule.block,
            own=self.own,
            scale=self.shape.scale,
            block_n=self.config.block_n,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
        )

    @property
    def tokens(self) -> int:
        """That the last step could see; 0 before the first."""
        return int(self.choice.record[0, 2])

    def mask(self) -> Tensor:
        """Blocks that each query head attended to in the last step: bool [B,Hkv,G,C]."""
        chosen, owners = self.choice.chosen, self.choice.owners
        listed = torch.arange(chosen.shape[1], device=chosen.device) < self.choice.record[:, :1]
        heads = self._bits(owners)
        kept = listed[:, None] & (heads if self.own else torch.ones_like(heads))
        places = torch.where(listed, chosen, chosen.shape[1]).long()[:, None].expand(kept.shape)
        found = kept.new_zeros((*kept.shape[:2], chosen.shape[1] + 1)).scatter(2, places, kept)
        return self._by_head(found[:, :, : self.blocks])

    def without(self) -> Tensor:
        """Query heads that would have kept nothing: bool [B,Hkv,G]."""
        return self._by_head(self._bits(self.choice.record[:, 1:2])[:, :, 0])

    def _by_head(self, found: Tensor) -> Tensor:
        """[P,..] -> [B,Hkv,..]."""
        return found.reshape(self.shape.batch, self.shape.kv_heads, *found.shape[1:])

    def _bits(self, packed: Tensor) -> Tensor:
        """A bit for each query head: int32 [P,n] -> bool [P,G,n]."""
        heads = torch.arange(self.shape.group, device=packed.device, dtype=torch.int32)
        return (packed[:, None] >> heads[:, None]) & 1 == 1

    def scores(self) -> Tensor:
        """Of the last step: float32 [B,Hkv,G,C], of which those of the blocks there were count."""
        return self._by_head(self.choice.scores[:, :, : self.blocks])

    def kept_logits(self) -> Tensor:
        """The logsumexp of the logits that each head attended to in the last step: float64
        [B,Hkv,G]."""
        highest, total = self.work.highest.double(), self.work.total.double()
        return self._by_head(torch.logsumexp(highest * math.log(2) + total.log(), dim=1))

    def tensors(self) -> Iterator[Tensor]:
        """What the two launches write down for each other and for the host."""
        yield from self.choice.tensors()
        yield from self.work.tensors()
