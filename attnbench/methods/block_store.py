"""Summaries of the blocks of one layer's keys, kept up to date as tokens are appended.

A block is a number of consecutive tokens; the last may hold fewer. Blocks of blocks, `fan` to one,
are summarised by their members' balls: the mean of the means, each weighed by its tokens, and the
greatest distance to a member's mean plus that member's radius, which no key of theirs exceeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnbench.methods.aether_bounds import Summary, Variant, rounded_up
from attnbench.methods.base import LayerShape


def blocks_in(tokens: int, block: int) -> int:
    """Blocks of so many tokens, the last of which may hold fewer."""
    return -(-tokens // block)


def tokens_in(blocks: slice, tokens: int, block: int, device: torch.device) -> Tensor:
    """How many of `tokens` each of these blocks holds, int64; made on the device, so that a step
    that asks may be captured."""
    place = torch.arange(blocks.start, blocks.stop, device=device)
    return (tokens - place * block).clamp(max=block)


def rows_kept(mask: Tensor, tokens: int, block: int) -> Tensor:
    """How many of so many tokens lie in the blocks of a mask [..,C]: int64 [..]."""
    every = slice(0, mask.shape[-1])
    return (mask * tokens_in(every, tokens, block, mask.device).clamp_min(0)).sum(dim=-1)


def spread(mask: Tensor, times: int) -> Tensor:
    """Each element of [..,n] so many times in a row: [..,n times]."""
    return mask[..., None].expand(*mask.shape, times).flatten(-2)


def merged(members: Summary, held: Tensor) -> Summary:
    """The ball around balls [..,m] that hold so many tokens each, [m]."""
    centres = members.centre.double()
    share = held.double() / held.sum()
    centre = (share[:, None] * centres).sum(dim=-2).float()
    off: Tensor = (centres - centre.double()[..., None, :]).norm(dim=-1)
    reach = (off + members.figures[..., 0].double()).amax(dim=-1, keepdim=True)
    return Summary(centre, rounded_up(reach))


class BlockStore:
    """`levels` sizes of blocks: `levels[0]` is of `block` tokens, each next one of `fan` times as
    many. Each is a Summary [B,Hkv,C] with room for the whole cache; what holds no token is zero."""

    def __init__(
        self, shape: LayerShape, variant: Variant, block: int, levels: int = 1, fan: int = 4
    ) -> None:
        self.variant, self.fan = variant, fan
        self.spans = [block * fan**level for level in range(levels)]
        empty = torch.zeros((), dtype=torch.float32, device=shape.device)
        heads = (shape.batch, shape.kv_heads)
        self.levels = [
            Summary(
                empty.new_zeros((*heads, blocks_in(shape.capacity, span), shape.head_dim)),
                empty.new_zeros((*heads, blocks_in(shape.capacity, span), variant.figures)),
            )
            for span in self.spans
        ]

    def fill(self, keys: Tensor) -> None:
        """Summarise the prompt's keys [B,Hkv,N,D], a KV head at a time to save memory."""
        tokens, block = keys.shape[2], self.spans[0]
        whole = tokens // block
        for head in range(keys.shape[1] if whole else 0):
            rows = keys[:, head, : whole * block].reshape(keys.shape[0], whole, block, -1)
            for kept, found in zip(self.levels[0], self.variant.summarise(rows), strict=True):
                kept[:, head, :whole] = found
        if whole * block < tokens:
            self._put(0, whole, self.variant.summarise(keys[:, :, whole * block :]))
        for level in range(1, len(self.levels)):
            for place in range(blocks_in(tokens, self.spans[level])):
                self._merge(level, place, tokens)

    def append(self, keys: Tensor) -> None:
        """Summarise anew the blocks that hold the last of keys [B,Hkv,N,D]; no other changes."""
        tokens = keys.shape[2]
        last = (tokens - 1) // self.spans[0]
        self._put(0, last, self.variant.summarise(keys[:, :, last * self.spans[0] :]))
        for level in range(1, len(self.levels)):
            self._merge(level, (tokens - 1) // self.spans[level], tokens)

    def reset(self, keys: Tensor) -> None:
        """Back to the prompt's keys [B,Hkv,N,D]."""
        tokens = keys.shape[2]
        for span, level in zip(self.spans, self.levels, strict=True):
            for kept in level:
                kept[:, :, tokens // span :].zero_()
        if tokens:
            self.append(keys)

    def _merge(self, level: int, place: int, tokens: int) -> None:
        below = self.spans[level - 1]
        members = slice(place * self.fan, min((place + 1) * self.fan, blocks_in(tokens, below)))
        held = tokens_in(members, tokens, below, self.levels[0].centre.device)
        balls = Summary(*(kept[:, :, members] for kept in self.levels[level - 1]))
        self._put(level, place, merged(balls, held))

    def _put(self, level: int, place: int, found: Summary) -> None:
        for kept, new in zip(self.levels[level], found, strict=True):
            kept[:, :, place] = new

    def seen(self, tokens: int, level: int = 0) -> Summary:
        """The blocks of so many tokens."""
        count = blocks_in(tokens, self.spans[level])
        return Summary(*(kept[:, :, :count] for kept in self.levels[level]))

    def row_bytes(self, level: int = 0) -> int:
        """Of the summary of one block."""
        return sum(kept.shape[-1] * kept.itemsize for kept in self.levels[level])

    def tensors(self) -> Iterator[Tensor]:
        """All summaries."""
        for level in self.levels:
            yield from level
