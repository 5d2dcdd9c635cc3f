"""AETHER's decode state in PyTorch: summaries that grow with the cache, and masked attention.

How many blocks a step keeps is known on the device alone, so everything is computed and masked:
this reads the whole cache, and its time says nothing for the method. What it declares is what the
method must read: summaries, and the blocks that it kept in its last step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from attnbench.methods.aether import Aether
from attnbench.methods.aether_certificate import Certificate, longest_values, skipped_mass
from attnbench.methods.aether_choice import chosen
from attnbench.methods.aether_governors import STATE, Seen, moved, start
from attnbench.methods.aether_state import AetherLayer, LastStep
from attnbench.methods.base import CacheView, LayerShape
from attnbench.methods.block_store import blocks_in, rows_kept, spread, tokens_in
from attnbench.methods.selection import grouped


class AetherTorchLayer(AetherLayer):
    """Keeps the exact cache, the summaries, and what its last step did.

    The governor's state is kept by length, which makes a trajectory of it, and lets a step be
    repeated.
    """

    longest: Tensor  # float32 [B,Hkv,C], of each block's values; of no use but to certificates
    mask: Tensor  # bool [B,Hkv,G,C], blocks kept in the last step
    rescued: Tensor  # bool [B,Hkv,G], heads that would have kept nothing
    computed: Tensor  # int64 [B,Hkv,G], scores that the choice needed
    skipped: Tensor  # float64 [B,Hkv,G], by the certificate
    state: Tensor  # float64 [capacity + 1,B,4], by the length of the cache

    def __init__(self, method: Aether, shape: LayerShape) -> None:
        super().__init__(method, shape)
        self.tokens = 0  # that the last step could see

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Summarise the prompt."""
        super().prefill(cache, q)
        method, shape, device = self.method, self.shape, cache.k.device
        heads = (shape.batch, shape.kv_heads, shape.group)
        blocks = blocks_in(shape.capacity, method.block)
        self.mask = torch.zeros((*heads, blocks), dtype=torch.bool, device=device)
        self.rescued = torch.zeros(heads, dtype=torch.bool, device=device)
        self.computed = torch.zeros(heads, dtype=torch.int64, device=device)
        self.skipped = torch.zeros(heads, dtype=torch.float64, device=device)
        self.longest = torch.zeros((*heads[:2], blocks), device=device)
        found = longest_values(cache.v[:, :, : self.prefilled], method.block)
        self.longest[:, :, : found.shape[2]] = found
        self.tokens = 0
        self._begin(device)

    def _begin(self, device: torch.device) -> None:
        slots = self.shape.capacity + 1 if self.method.governor != "none" else 0
        self.state = torch.zeros((slots, self.shape.batch, STATE), device=device).double()
        if self.method.governor != "none":
            first = start(self.method.governor, self.method.preset, self.method.start)
            for number, figure in enumerate(first):
                self.state[self.prefilled, :, number] = figure

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, summarise the last block anew, score, choose, attend."""
        keys, values = self.append(k, v)
        self.tokens = keys.shape[2]
        self.store.append(keys)
        last = (self.tokens - 1) // self.method.block
        newest = longest_values(values[:, :, last * self.method.block :], self.method.block)
        self.longest[:, :, last : last + 1] = newest
        queries = grouped(q, self.shape.kv_heads).double()
        scores, candidates = self._scored(queries)
        heads = [
            self._attend(head, queries[:, head], scores[:, head], candidates[:, head], keys, values)
            for head in range(self.shape.kv_heads)
        ]
        self._govern()
        return torch.stack(heads, dim=1).reshape(q.shape).to(q.dtype)

    def _scored(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B,Hkv,G,n] and the blocks that the levels above let through."""
        let = None
        self.computed.zero_()
        for level in range(self.method.levels - 1, -1, -1):
            blocks = self.store.seen(self.tokens, level)
            scores = self.method.formula.score(queries, blocks, self.shape.scale)
            candidates = torch.ones_like(scores, dtype=torch.bool)
            if let is not None:
                members = spread(let, self.method.fan)
                candidates = members[..., : scores.shape[-1]]
            self.computed += candidates.sum(dim=-1)
            let = candidates & ~(scores < self._value(4))
        return scores, candidates

    def _value(self, dims: int) -> Tensor | float:
        """The threshold: a number, or the governor's of each sequence [B,1,..]."""
        if self.method.governor == "none":
            return self.method.value
        epsilon = self.state[self.tokens - 1, :, 0]
        return epsilon.reshape(-1, *[1] * (dims - 1))

    def _attend(
        self,
        head: int,
        queries: Tensor,
        scores: Tensor,
        candidates: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """One KV head: queries [B,G,D], keys and values [B,Hkv,N,D] -> float32 [B,G,D]."""
        count = scores.shape[-1]
        tokens = tokens_in(slice(0, count), self.tokens, self.method.block, scores.device)
        logits = queries @ keys[:, head].double().mT * self.shape.scale
        kept = chosen(
            self.method, scores, candidates, tokens, self._value(3), logits, self.shape.scale
        )
        nothing = ~kept.any(dim=-1)
        kept[..., -1] |= nothing
        if self.method.heads == "union":
            kept = kept.any(dim=1, keepdim=True).expand(kept.shape)
        self.rescued[:, head] = nothing
        self.mask[:, head].zero_()
        self.mask[:, head, :, :count] = kept
        rows = spread(kept, self.method.block)[..., : self.tokens]
        logits = logits.masked_fill(~rows, -torch.inf)
        if self.method.formula.is_bound:
            bounds = self.method.formula.logits(scores, self.shape.scale)
            most = skipped_mass(bounds, tokens, kept, logits.logsumexp(dim=-1))
            self.skipped[:, head] = most
        return torch.softmax(logits, dim=-1).float() @ values[:, head].float()

    def _govern(self) -> None:
        """What the governor makes of this step, for the next."""
        if self.method.governor == "none":
            return
        kept = self.mask.flatten(1, 2).double()
        count = blocks_in(self.tokens, self.method.block)
        seen = Seen(
            tokens=rows_kept(self.mask, self.tokens, self.method.block)
            .double()
            .flatten(1)
            .mean(dim=-1),
            kept_share=kept.sum(dim=-1).mean(dim=-1) / count,
        )
        at = self.tokens - 1
        self.state[at + 1] = moved(
            self.method.governor, self.method.preset, self.state[at], seen, at - self.prefilled
        )

    def last(self) -> LastStep:
        """What the last step did."""
        return LastStep(self.tokens, self.mask, self.rescued, self.computed)

    def certificate(self) -> Certificate:
        """Of the last step, by true bounds."""
        self.method.require_bound()
        longest: Tensor = self.longest.amax(dim=-1)[..., None].double()
        error = 2 * longest * self.skipped
        return Certificate(self.skipped.flatten(1), error.flatten(1))

    def reset(self) -> None:
        """Summaries of the prompt, and the governor's beginning; what the last step did stays."""
        super().reset()
        whole = self.prefilled // self.method.block
        self.longest[:, :, whole:].zero_()
        tail = longest_values(
            self.cache.v[:, :, whole * self.method.block : self.prefilled], self.method.block
        )
        self.longest[:, :, whole : whole + tail.shape[2]] = tail
        self.state[self.prefilled + 1 :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache, summaries, the governor's state and the last step's record."""
        yield from super().tensors()
        yield from (self.longest, self.mask, self.rescued, self.computed, self.skipped, self.state)

    def witness(self) -> Mapping[str, float]:
        """The same, and the governor's ε."""
        found = dict(super().witness())
        if self.method.governor != "none" and self.tokens:
            found["epsilon"] = float(self.state[self.tokens - 1, :, 0].mean())
        return found
