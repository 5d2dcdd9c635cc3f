"""AETHER: attention to the blocks of keys whose bound on q·k is high enough.

Each block of keys keeps its mean and its radius; a query head attends to the blocks whose bound
reaches a threshold. The source is google-deepmind/penzai #133 (`variant=raw`, an absolute threshold
of .15, and no block that is always kept); its relatives differ in the formula (`aether_bounds.py`)
and in what is compared with it. What none of them has is a guarantee, as a bound on each logit says
nothing of how much softmax many small ones hold: `guarantee` is this project's, by the certificate
of `aether_certificate.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Self

from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.aether_bounds import BOUNDS, VARIANTS, Variant, VariantName
from attnbench.methods.aether_governors import GOVERNED, GovernorName, PresetName
from attnbench.methods.base import Family, KernelConfig, LayerShape, Method, MethodLayer
from attnbench.methods.selection import require_groups

BACKEND_LEAST_TOKENS = 128  # of `trt_backend`, which attends to all of a shorter context


@dataclass(frozen=True)
class Aether(Method):
    """Attend to the blocks of `block` tokens whose score by `variant` reaches a threshold.

    `threshold` says what `value` is: an `absolute` score, in the variant's own units (those of
    raw, rust and cone are without the scale); a share of the greatest score (`relative`); the part
    of the softmax that the scores promise, highest first (`mass`); the share of all blocks, highest
    first (`share`). The first `sinks` and last `local` blocks are always kept. A head that would
    keep nothing keeps the last block, and the witness counts it (`rescued`).

    `heads=union`: what one head of a KV group keeps all of them attend to, as it is read anyway.
    `guarantee` keeps the blocks of the highest bounds until no more than that part of the softmax
    can be outside. `governor` moves the threshold from step to step and says itself of what kind it
    is; it begins at `start`, or 0 for the source's own. `levels` above 1 scores blocks of `fan`
    blocks first, and only the members of those that reach the threshold.

    Keeps the whole cache, so it saves reads, not memory. The kernels know neither guarantee nor
    governor nor levels: with one of those `impl` is torch on every device.
    """

    variant: VariantName = "raw"
    block: int = 64
    threshold: Literal["absolute", "relative", "mass", "share"] = "absolute"
    value: float = 0.15
    guarantee: float = 0.0
    sinks: int = 0
    local: int = 0
    heads: Literal["union", "own"] = "union"
    governor: GovernorName = "none"
    preset: PresetName = "default"
    start: float = 0.0
    levels: int = 1
    fan: int = 4
    impl: str = ""

    name: ClassVar[str] = "aether"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "google-deepmind/penzai #133, xformers #1370, TensorRT-LLM #10305"
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    def __post_init__(self) -> None:
        for wrong, hint in (
            (self.block < 1 and f"block={self.block} holds no token", "block from 1"),
            (min(self.sinks, self.local) < 0 and "blocks cannot be fewer than none", "from 0"),
            (self.levels < 1 or self.fan < 2, "levels from 1, fan from 2"),
            (self._wrong_value(), "share and mass above 0 and to 1, relative to 1"),
            (self._wrong_guarantee(), f"0 < guarantee < 1 with variant {', '.join(BOUNDS)}"),
            (self._wrong_governor(), "governor=g1, g2 or g3 by itself; preset is of g3"),
            (self._wrong_levels(), f"levels with an absolute threshold and {', '.join(BOUNDS)}"),
            (self.impl == "triton" and self._beyond_kernels(), "impl=torch"),
        ):
            if wrong:
                what = wrong if isinstance(wrong, str) else "no such blocks of blocks"
                raise UsageError(f"aether: {what}", hint=hint)

    def _wrong_value(self) -> str:
        if math.isnan(self.value) or (self.threshold != "absolute" and self.value > 1):
            return f"value={self.value} is no {self.threshold} threshold"
        if self.threshold in ("mass", "share") and self.value <= 0:
            return f"value={self.value} keeps nothing"
        return ""

    def _wrong_guarantee(self) -> str:
        if not 0 <= self.guarantee < 1:
            return f"guarantee={self.guarantee} is no part of the softmax"
        if not self.guarantee:
            return ""
        if not self.formula.is_bound:
            return f"variant={self.variant} is no upper bound of q·k, so it can guarantee nothing"
        if self._has_threshold or self.governor != "none":
            return "a guarantee stands in place of a threshold and of a governor"
        return ""

    def _wrong_governor(self) -> str:
        if self.governor == "none" and self.start:
            return f"start={self.start} needs a governor"
        if self.governor != "g3" and self.preset != "default":
            return f"preset={self.preset} is of g3 alone"
        if self.governor != "none" and self._has_threshold:
            return f"{self.governor} has its own threshold, which is {GOVERNED[self.governor]}"
        return "" if 0 <= self.start < math.inf else f"start={self.start} is no threshold"

    def _wrong_levels(self) -> str:
        if self.levels == 1 or (self.kind == "absolute" and self.formula.is_bound):
            return ""
        return f"levels={self.levels} leaves out members unseen, which needs bounds and a threshold"

    def _beyond_kernels(self) -> str:
        asked = {
            f"guarantee={self.guarantee}": self.guarantee != 0,
            f"governor={self.governor}": self.governor != "none",
            f"levels={self.levels}": self.levels > 1,
        }
        unknown = ", ".join(name for name, given in asked.items() if given)
        return unknown and f"there is no kernel for {unknown}"

    @property
    def dynamic_length(self) -> bool:
        """The kernels read the length from the device; PyTorch takes it from a shape."""
        return self.impl == "triton"

    @property
    def available(self) -> tuple[str, ...]:
        """PyTorch alone for what the kernels do not know."""
        return ("torch",) if self._beyond_kernels() else self.implementations

    @property
    def _has_threshold(self) -> bool:
        defaults = {field.name: field.default for field in fields(self)}
        return any(getattr(self, name) != defaults[name] for name in ("threshold", "value"))

    @property
    def kind(self) -> str:
        """What decides: guarantee, absolute, relative, mass or share."""
        if self.guarantee:
            return "guarantee"
        return GOVERNED.get(self.governor, self.threshold)

    @property
    def formula(self) -> Variant:
        """Of the variant."""
        return VARIANTS[self.variant]

    def require_bound(self) -> None:
        """Raise `UsageError` where nothing follows from the scores."""
        if not self.formula.is_bound:
            raise UsageError(
                f"aether: variant={self.variant} is no upper bound of q·k, so it certifies nothing",
                hint=f"variant {', '.join(BOUNDS)} are",
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The seed, and others that leave blocks out of a short cache, one of each kind."""
        del device_type
        return (
            cls(),
            cls("scaled", 8, "share", 0.4, sinks=1, local=1),
            cls("rust", 16, "mass", 0.6, heads="own"),
            cls("trt", 8, "relative", 0.9, local=1),
            cls("cone", 5, "absolute", 6.0),
            cls("scaled", 16, guarantee=0.3),
            cls("raw", 16, governor="g2", start=0.6),
            cls("scaled", 8, "absolute", 5.0, levels=3, fan=2),
        )

    @property
    def together(self) -> int:
        """Of a block."""
        return self.block

    def full_budget(self, tokens: int) -> Self:
        """Every block."""
        del tokens
        every = replace(self, guarantee=0.0, governor="none", preset="default", start=0.0, levels=1)
        return replace(every, threshold="share", value=1.0)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """What one token after a prompt of all others attends to."""
        from attnbench.methods.aether_definition import attended_alone

        return attended_alone(self, q, k, v, shape)

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition with the governor's state."""
        from attnbench.methods.aether_definition import AetherReferenceLayer

        return AetherReferenceLayer(self, shape)

    def check(self, shape: LayerShape) -> None:
        """Whole groups, and a scale that keeps the order of logits."""
        super().check(shape)
        require_groups(self.label, shape)
        if not shape.scale > 0:
            raise Unsupported(f"{self.label}: a scale of {shape.scale} turns bounds round")
        if self.impl == "triton":
            from attnbench.methods.block_kernels import require_block_kernels

            require_block_kernels(self.label, shape, self.block)

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Rows of a tile of the attention, splits, warps and stages."""
        if self.impl != "triton":
            return ()
        from attnbench.methods.block_kernels import kept_configurations

        return kept_configurations(shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the chosen implementation; that in PyTorch reads all of the cache."""
        method = self.resolved(shape.device)
        if method.impl == "torch":
            from attnbench.methods.aether_layers import AetherTorchLayer

            method.check(shape)
            return AetherTorchLayer(method, shape)
        from attnbench.methods.aether_kernels import AetherTritonLayer

        config = shape.kernel or method.configurations(shape)[0]
        return AetherTritonLayer(method, shape, config)
