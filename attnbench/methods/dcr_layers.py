"""The decode state of direction-cosine ranking: in PyTorch, and by kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import CacheView, LayerShape
from attnbench.methods.dcr_topk import GENERATIONS, SHORTEST, DcrTopK
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.oracle_topk import of_kv_head
from attnbench.methods.random_k import gathered, mask_of


class DcrLayer(ExactCacheLayer):
    """What all generations keep and declare."""

    def __init__(self, method: DcrTopK, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    @property
    def attended(self) -> int:
        """Tokens whose values enter the output of each query head."""
        return self.method.kept(self.visible)

    def masked(self, rows: Tensor) -> Tensor:
        """Rows [B,H,K] of each query head, or [B,Hkv,K] of each group, as `attended_rows`."""
        found = mask_of(rows.long(), self.visible)
        return found.repeat_interleave(self.shape.heads // rows.shape[1], dim=1)

    def bytes_read(self) -> int:
        """All keys, and of the values what one head keeps: a group's heads may keep the same."""
        return (self.visible + self.attended) * self.shape.row_bytes // 2

    def witness(self) -> Mapping[str, float]:
        """The attended share, and whether the step attended to all there is."""
        return {**super().witness(), "dense_steps": float(self.attended == self.visible)}


class DcrTorchLayer(DcrLayer):
    """M1: one KV head after another, since its scores are sums in float64."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, score, choose, attend to a copy of the chosen rows."""
        keys, values = self.append(k, v)
        heads = [
            self._attend(
                of_kv_head(q, head, self.shape),
                keys[:, head : head + 1],
                values[:, head : head + 1],
            )
            for head in range(self.shape.kv_heads)
        ]
        return torch.cat(heads, dim=1)

    def attended_rows(self, q: Tensor) -> Tensor:
        """The tokens of the highest scores, chosen once more."""
        keys = self.cache.k[:, :, : self.visible]
        rows = [
            self.method.chosen(
                of_kv_head(q, head, self.shape), keys[:, head : head + 1], self.shape
            )
            for head in range(self.shape.kv_heads)
        ]
        return self.masked(torch.cat(rows, dim=1))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One KV head: queries [B,G,1,D], keys and values [B,1,N,D] -> [B,G,1,D]."""
        rows = self.method.chosen(queries, keys, self.shape)
        choices = rows.shape[1]
        return scaled_dot_product_attention(
            queries,
            gathered(keys.expand(-1, choices, -1, -1), rows),
            gathered(values.expand(-1, choices, -1, -1), rows),
            scale=self.shape.scale,
            enable_gqa=choices < self.shape.group,
        )


class DcrKernelLayer(DcrLayer):
    """M4 to M6: passes in Triton, by the library's product, and by PyTorch's sort.

    Scores and indices live for a step alone, and the layers of a model use the same memory.
    """

    def __init__(self, method: DcrTopK, shape: LayerShape) -> None:
        from attnbench.methods.split_kv import split_configurations

        super().__init__(method, shape)
        self.config = shape.kernel or method.configurations(shape)[0]
        key_bytes = shape.head_dim * shape.dtype.itemsize
        self.scoring = split_configurations(shape, key_bytes)[0]
        self.passes = GENERATIONS[method.generation]
        self.most = method.kept(shape.capacity)

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view and allocate the workspaces of pass 3."""
        from attnbench.kernels.splits import SplitWorkspace

        super().prefill(cache, q)
        shape = self.shape
        shared = self.method.sharing == "group"
        self.workspace = SplitWorkspace.allocate(
            shape.batch * (shape.kv_heads if shared else shape.heads),
            self.config.splits,
            shape.group if shared else 1,
            shape.head_dim,
            shape.device,
        )

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and score, choose, attend."""
        from attnbench.kernels.gather_decode import gather_decode

        return gather_decode(
            q,
            self.cache.k,
            self.cache.v,
            self.choose(self.score(q, k, v)),
            self.cache.length.tensor,
            self.method.budget,
            self.workspace,
            scale=self.shape.scale,
            block_n=self.config.block_n,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
        )

    def attended_rows(self, q: Tensor) -> Tensor:
        """The tokens that the passes choose, run once more on the newest row as it is cached."""
        newest = slice(self.visible - 1, self.visible)
        scores = self.score(q, self.cache.k[:, :, newest], self.cache.v[:, :, newest])
        rows = self.choose(scores)[:, : self.attended]
        return self.masked(rows.reshape(self.shape.batch, -1, self.attended))

    def score(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append the new row; scores [B·H, W], or weights of whole groups [B·Hkv, W]."""
        if self.passes.with_gemm(self.shape.batch):
            return self._product(q, self.append(k, v)[0])
        from attnbench.kernels.token_scores import score_tokens

        return score_tokens(
            q,
            k,
            v,
            self.cache.k,
            self.cache.v,
            self.cache.length.tensor,
            dtype=self.method.stored(self.shape.dtype),
            block_n=self.scoring.block_n,
            splits=self.scoring.splits,
            num_warps=self.scoring.num_warps,
            num_stages=self.scoring.num_stages,
            shared_scale=self.shape.scale if self.method.sharing == "group" else None,
        )

    def _product(self, q: Tensor, keys: Tensor) -> Tensor:
        """Scores by the library: sums of the original query's products, in float32, over its
        length; q [B,H,1,D], keys [B,Hkv,N,D]."""
        from attnbench.kernels.topk_select import row_width

        shape, tokens = self.shape, keys.shape[2]
        asked = q.reshape(-1, shape.group, shape.head_dim)
        sums = products(asked, keys.flatten(0, 1).mT).view(-1, tokens)
        length = q.float().norm(dim=-1).clamp_min(SHORTEST).view(-1, 1)
        scores = sums.new_empty(
            (sums.shape[0], row_width(shape.capacity)), dtype=self.method.stored(shape.dtype)
        )
        torch.div(sums, length, out=scores[:, :tokens])
        return scores

    def choose(self, scores: Tensor) -> Tensor:
        """Indices of the kept tokens, int32 [rows, at least K], ascending."""
        if self.passes.choosing == "argsort":
            return sorted_out(scores[:, : self.visible], self.attended)
        from attnbench.kernels.topk_select import select_highest

        return select_highest(scores, self.cache.length.tensor, self.method.budget, self.most)

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and the workspaces."""
        yield from super().tensors()
        yield from self.workspace.tensors()


def products(asked: Tensor, keys: Tensor) -> Tensor:
    """asked [P,G,D] @ keys [P,D,N] with sums in float32, which a GPU takes of 16-bit elements."""
    if asked.dtype == torch.float32:
        return asked @ keys
    if asked.is_cuda:
        return torch.bmm(asked, keys, out_dtype=torch.float32)
    return asked.float() @ keys.float()


def sorted_out(scores: Tensor, count: int) -> Tensor:
    """The `count` highest of [R,N] by a stable sort, as the source's fourth generation does it:
    int32 [R,count], ascending. A stable sort puts what is no number first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[:, :count].sort(dim=-1).values.to(torch.int32)
