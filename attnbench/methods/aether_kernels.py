"""AETHER's decode state for kernels: a step reads the summaries, and the blocks that it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnbench.kernels.choose_blocks import Rule
from attnbench.methods.aether import BACKEND_LEAST_TOKENS, Aether
from attnbench.methods.aether_certificate import Certificate, longest_values, skipped_mass
from attnbench.methods.aether_state import AetherLayer, LastStep
from attnbench.methods.base import CacheView, KernelConfig, LayerShape
from attnbench.methods.block_kernels import BlockKernels
from attnbench.methods.block_store import blocks_in, tokens_in
from attnbench.methods.dcr_topk import as_fraction


def rule_of(method: Aether) -> Rule:
    """What the kernel is told."""
    share = as_fraction(method.value) if method.threshold == "share" else (1, 1)
    return Rule(
        formula=method.variant,
        rule=method.threshold,
        block=method.block,
        value=method.value,
        numerator=share[0],
        denominator=share[1],
        sinks=method.sinks,
        local=method.local,
        dense_below=BACKEND_LEAST_TOKENS if method.variant == "trt_backend" else 0,
    )


class AetherTritonLayer(AetherLayer):
    """Two launches a step; the certificate is worked out when it is asked for."""

    kernels: BlockKernels

    def __init__(self, method: Aether, shape: LayerShape, config: KernelConfig) -> None:
        super().__init__(method, shape)
        self.config = config

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Summarise the prompt, and allocate workspaces."""
        super().prefill(cache, q)
        own = self.method.heads == "own"
        self.kernels = BlockKernels(self.shape, self.config, rule_of(self.method), own=own)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, summarise the last block anew, score, choose; then attend."""
        summaries = self.store.levels[0]
        return self.kernels.decode(q, k, v, self.cache, (summaries.centre, summaries.figures))

    def last(self) -> LastStep:
        """What the last step did, by what it left on the device."""
        tokens, mask = self.kernels.tokens, self.kernels.mask()
        count = blocks_in(tokens, self.method.block)
        computed = torch.full(mask.shape[:3], count, device=mask.device)
        return LastStep(tokens, mask, self.kernels.without(), computed)

    def certificate(self) -> Certificate:
        """Of the last step, by bounds as the kernel computed them."""
        self.method.require_bound()
        step, block = self.last(), self.method.block
        count = blocks_in(step.tokens, block)
        held = tokens_in(slice(0, count), step.tokens, block, step.mask.device)
        scores = self.kernels.scores()[..., :count].double()
        bounds = self.method.formula.logits(scores, self.shape.scale)
        kept = step.mask[..., :count]
        skipped = skipped_mass(bounds, held, kept, self.kernels.kept_logits())
        longest = longest_values(self.cache.v[:, :, : step.tokens], block).amax(dim=-1)
        error = 2 * longest[..., None].double() * skipped
        return Certificate(skipped.flatten(1), error.flatten(1))

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache, summaries, and what the launches write down."""
        yield from super().tensors()
        yield from self.kernels.tensors()
