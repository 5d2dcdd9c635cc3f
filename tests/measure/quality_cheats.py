"""Methods that tamper with the process in which quality is judged, or end it."""

from __future__ import annotations

import gc
import os
from typing import ClassVar

import torch

import attnbench.quality.compounded as compounded
import attnbench.quality.local as local
import attnbench.quality.needles as needles
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention
from attnbench.quality.metrics import head_metrics
from tests.measure.broken import Good

FEW = 8


class FewTokensLayer(ExactCacheLayer):
    """Attends to the last few tokens, and says that it attends to all."""

    def decode(self, q, k, v):
        keys, values = (rows[:, :, -FEW:] for rows in self.append(k, v))
        return exact_attention(q, keys, values, self.shape.scale).to(q.dtype)


class FewTokens(Good):
    """Nothing worse than bad."""

    name: ClassVar[str] = "few_tokens"
    spoilt = FewTokensLayer


class JudgesItself(FewTokens):
    """Replaces what each gate compares with, when it is first set up."""

    name: ClassVar[str] = "judges_itself"

    class spoilt(FewTokensLayer):  # noqa: N801
        def prefill(self, cache, q=None):
            super().prefill(cache, q)
            own = compounded.compare_logits
            compounded.compare_logits = lambda logits, sdpa, targets: own(sdpa, sdpa, targets)
            local.head_metrics = lambda output, exact: head_metrics(exact, exact)
            needles._scored = lambda logits, asked: needles.Answer(0.0, 1)


class JudgesItselfOnce(FewTokens):
    """Replaces what compares outputs by what puts the own one back as soon as it is called."""

    name: ClassVar[str] = "judges_itself_once"

    class spoilt(FewTokensLayer):  # noqa: N801
        def decode(self, q, k, v):
            def flattering(output, exact):
                local.head_metrics = head_metrics
                return head_metrics(exact, exact)

            local.head_metrics = flattering
            return super().decode(q, k, v)


class PatchesInTheModel(FewTokens):
    """Waits until it is inside the model."""

    name: ClassVar[str] = "patches_in_the_model"

    class spoilt(FewTokensLayer):  # noqa: N801
        def prefill(self, cache, q=None):
            super().prefill(cache, q)
            # The cache of one replay is a pair of slices; the model's layers have tensors each.
            if cache.k.untyped_storage().data_ptr() != cache.v.untyped_storage().data_ptr():
                own = compounded.compare_logits
                compounded.compare_logits = lambda logits, sdpa, targets: own(sdpa, sdpa, targets)


class LeavesTorchChanged(Good):
    """Exact, and torch computes with another function afterwards."""

    name: ClassVar[str] = "leaves_torch_changed"

    class spoilt(ExactCacheLayer):  # noqa: N801
        def decode(self, q, k, v):
            keys, values = self.append(k, v)
            output = exact_attention(q, keys, values, self.shape.scale).to(q.dtype)
            torch.Tensor.norm = torch.Tensor.sum
            return output


class EndsTheWorker(Good):
    """As a library does that gives up."""

    name: ClassVar[str] = "ends_the_worker"

    class spoilt(ExactCacheLayer):  # noqa: N801
        def decode(self, q, k, v):
            raise SystemExit(0)


class KillsTheWorker(Good):
    """Without a last word."""

    name: ClassVar[str] = "kills_the_worker"

    class spoilt(ExactCacheLayer):  # noqa: N801
        def decode(self, q, k, v):
            os._exit(3)


class EditsTheModel(FewTokens):
    """Makes attention count for nothing: what it does to the model is then no loss."""

    name: ClassVar[str] = "edits_the_model"

    class spoilt(FewTokensLayer):  # noqa: N801
        def prefill(self, cache, q=None):
            super().prefill(cache, q)
            if self.shape.layer:
                return
            for found in gc.get_objects():
                if type(found).__name__ == "LlamaAttention":
                    found.o_proj.weight.data.zero_()
