"""What AETHER's implementations keep and declare: the exact cache, summaries, and the last step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from attnbench.methods.aether import Aether
from attnbench.methods.aether_certificate import Certificate
from attnbench.methods.base import CacheView, LayerShape
from attnbench.methods.block_store import BlockStore, blocks_in, rows_kept, spread
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.selection import grouped


@dataclass(frozen=True)
class LastStep:
    """What a step did, `tokens` being those it could see; 0 of them before the first."""

    tokens: int
    mask: Tensor  # bool [B,Hkv,G,C], blocks that each query head attended to
    rescued: Tensor  # bool [B,Hkv,G], heads that would have kept nothing
    computed: Tensor  # int64 [B,Hkv,G], scores that the choice needed


class AetherLayer(ExactCacheLayer):
    """Keeps the exact cache and the summaries."""

    store: BlockStore

    def __init__(self, method: Aether, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Summarise the prompt."""
        super().prefill(cache, q)
        method = self.method
        self.store = BlockStore(self.shape, method.formula, method.block, method.levels, method.fan)
        self.store.fill(cache.k[:, :, : self.prefilled])

    @abstractmethod
    def last(self) -> LastStep:
        """What the last step did."""

    @abstractmethod
    def certificate(self) -> Certificate:
        """Of the last step; `UsageError` where the scores are no bounds."""

    def attended_rows(self, q: Tensor) -> Tensor:
        """The tokens of the blocks that were kept."""
        del q
        step = self.last()
        return spread(step.mask, self.method.block)[..., : step.tokens].flatten(1, 2)

    def logit_bounds(self, q: Tensor) -> tuple[Tensor, int]:
        """The variant's scores, which its source takes for bounds."""
        formula, scale = self.method.formula, self.shape.scale
        queries = grouped(q, self.shape.kv_heads).double()
        scores = formula.score(queries, self.store.seen(self.visible), scale)
        return formula.logits(scores, scale).flatten(1, 2), self.method.block

    def reset(self) -> None:
        """Summaries of the prompt; what the last step did stays."""
        super().reset()
        self.store.reset(self.cache.k[:, :, : self.prefilled])

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and summaries."""
        yield from super().tensors()
        yield from self.store.tensors()

    def bytes_read(self) -> int:
        """Of the last step: the summaries that one head of each group needed at least, and keys and
        values of the blocks that a group's heads kept together. Before the first, the least that a
        step may read: the summaries of its largest blocks."""
        summary = self.store.row_bytes()
        pairs = self.shape.batch * self.shape.kv_heads
        step = self.last()
        if not step.tokens:
            return blocks_in(self.visible, self.store.spans[-1]) * pairs * summary
        computed = int(step.computed.amax(dim=2).sum())
        loaded = int(rows_kept(step.mask.any(dim=2), step.tokens, self.method.block).sum())
        return computed * summary + loaded * self.shape.row_bytes // pairs

    def witness(self) -> Mapping[str, float]:
        """Of the last step: tokens and blocks that a query head attended to on average, blocks read
        by a group, scores that were needed, heads that would have kept nothing, and the worst
        head's certificate where the scores are bounds. `dense_steps` is 1 where all heads kept all
        blocks."""
        step = self.last()
        count = blocks_in(step.tokens, self.method.block)
        rows = float(rows_kept(step.mask, step.tokens, self.method.block).double().mean())
        kept = float(step.mask.sum(dim=-1).double().mean())
        found = {
            "kept_share": rows / max(step.tokens, 1),
            "attended_tokens": rows,
            "blocks": float(count),
            "blocks_kept": kept,
            "blocks_read": float(step.mask.any(dim=2).sum(dim=-1).double().mean()),
            "bounds_computed": float(step.computed.double().mean()),
            "rescued": float(step.rescued.double().mean()),
            "dense_steps": float(step.tokens > 0 and kept == count),
        }
        if self.method.formula.is_bound:
            mass, error = self.certificate()
            found["skipped_mass_bound"] = float(mass.max())
            found["output_error_bound"] = float(error.max())
        return found
