"""Quest's decode state for kernels: a step reads the ends of all pages, and the pages it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from attnbench.kernels.choose_blocks import Rule
from attnbench.methods.base import CacheView, KernelConfig, LayerShape
from attnbench.methods.block_kernels import BlockKernels
from attnbench.methods.block_store import rows_kept, spread
from attnbench.methods.dcr_topk import as_fraction
from attnbench.methods.quest import Quest, QuestLayer


class QuestTritonLayer(QuestLayer):
    """Two launches a step; a page that several heads of a group keep is read once."""

    kernels: BlockKernels

    def __init__(self, method: Quest, shape: LayerShape, config: KernelConfig) -> None:
        super().__init__(method, shape)
        numerator, denominator = as_fraction(method.share)
        self.config = config
        self.rule = Rule(
            formula="quest",
            rule="share",
            block=method.page,
            numerator=numerator,
            denominator=denominator * method.page,
            of_tokens=True,
            local=1,
        )

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Note the ends of the prompt's pages, and allocate workspaces."""
        super().prefill(cache, q)
        self.kernels = BlockKernels(self.shape, self.config, self.rule, own=True)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, note the last page's ends, bound, choose; then attend."""
        return self.kernels.decode(q, k, v, self.cache, (self.least, self.greatest))

    def attended_rows(self, q: Tensor) -> Tensor:
        """The tokens of the pages that were kept."""
        del q
        rows = spread(self.kernels.mask(), self.method.page)
        return rows[..., : self.kernels.tokens].flatten(1, 2)

    def bytes_read(self) -> int:
        """The ends of all pages, and of the last step the pages that a group's heads kept together;
        before the first those of one head."""
        tokens = self.kernels.tokens
        if not tokens or self.is_dense:
            return super().bytes_read()
        loaded = int(rows_kept(self.kernels.mask().any(dim=2), tokens, self.method.page).sum())
        pairs = self.shape.batch * self.shape.kv_heads
        return -(-tokens // self.method.page) * self.shape.row_bytes + (
            loaded * self.shape.row_bytes // pairs
        )

    def witness(self) -> Mapping[str, float]:
        """Counted in the last step; pages that a group's heads read together besides."""
        found = dict(super().witness())
        tokens = self.kernels.tokens
        if tokens:
            mask = self.kernels.mask()
            rows = float(rows_kept(mask, tokens, self.method.page).double().mean())
            found["kept_share"], found["attended_tokens"] = rows / tokens, rows
            found["pages_kept"] = float(mask.sum(dim=-1).double().mean())
            found["pages"] = float(-(-tokens // self.method.page))
            found["pages_read"] = float(mask.any(dim=2).sum(dim=-1).double().mean())
            found["dense_steps"] = float(found["pages_kept"] == found["pages"])
        return found

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache, the ends of its pages, and what the launches write down."""
        yield from super().tensors()
        yield from self.kernels.tensors()
