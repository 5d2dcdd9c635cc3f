"""The bands of the quality gates: which figures pass, and which kill, unless a protocol says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from math import inf, isinf, nextafter
from types import MappingProxyType

PERPLEXITY_WINDOWS = 5  # fewer text offsets do not make a perplexity gate
LOGIT_STEPS = 64  # fewer steps a window do not make a gate of logits
NEEDLES = 10  # fewer facts do not make a gate of retrieval
ABLE = 0.8  # of the facts that a model must retrieve under SDPA for their loss to mean anything


class Gate(StrEnum):
    """The gates, each named by what fails when it fails."""

    NON_FINITE = "non-finite"
    NON_DETERMINISTIC = "non-deterministic"
    MEAN_COSINE = "mean-cosine"
    P1_COSINE = "p1-cosine"
    LOWEST_HEAD = "lowest-head"
    NORM_RATIO = "norm-ratio"
    LOGIT_KL = "logit-kl"
    TOP1 = "top-1"
    PERPLEXITY = "perplexity"
    NEEDLE = "needle"


class Band(IntEnum):
    """Where a figure lies, worst last."""

    PASS = 0
    MARGINAL = 1
    KILL = 2


@dataclass(frozen=True)
class Bands:
    """PASS and not-KILL ranges of a figure; both include their ends."""

    figure: str
    passes: tuple[float, float]
    lives: tuple[float, float]

    @property
    def wanted(self) -> str:
        """What passes, in words."""
        low, high = self.passes
        if low == high:
            return f"should be {low:g}"
        if isinf(high):
            return f"passes from {low:g}"
        return f"passes to {high:g}" if isinf(low) else f"passes from {low:g} to {high:g}"

    @property
    def kills(self) -> str:
        """What kills, in words."""
        low, high = self.lives
        if isinf(high):
            return f"kills below {low:g}"
        return f"kills above {high:g}" if isinf(low) else f"kills below {low:g} or above {high:g}"

    def of(self, value: float) -> Band:
        if not self.lives[0] <= value <= self.lives[1]:
            return Band.KILL
        return Band.PASS if self.passes[0] <= value <= self.passes[1] else Band.MARGINAL


GateBands = Mapping[Gate, tuple[Bands, ...]]

# The gates that one figure decides. Low and high norm ratio are one gate: the worse one counts. At
# 20 points below SDPA a needle kills.
DEFAULT_BANDS: GateBands = MappingProxyType(
    {
        Gate.NON_FINITE: (Bands("non_finite", (0, 0), (0, 0)),),
        Gate.NON_DETERMINISTIC: (Bands("deterministic", (1, 1), (0, 1)),),
        Gate.MEAN_COSINE: (Bands("cosine_mean", (0.99, inf), (0.95, inf)),),
        Gate.P1_COSINE: (Bands("cosine_p1", (0.90, inf), (0.60, inf)),),
        Gate.LOWEST_HEAD: (Bands("cosine_lowest_head", (0.80, inf), (0.50, inf)),),
        Gate.NORM_RATIO: tuple(
            Bands(figure, (0.9, 1.1), (0.7, 1.4))
            for figure in ("norm_ratio_low", "norm_ratio_high")
        ),
        Gate.LOGIT_KL: (Bands("kl_mean_nats", (-inf, 0.02), (-inf, 0.2)),),
        Gate.TOP1: (Bands("top1_agreement", (0.95, inf), (0.80, inf)),),
        Gate.PERPLEXITY: (Bands("perplexity_change", (-inf, 0.01), (-inf, 0.05)),),
        Gate.NEEDLE: (Bands("needle_change", (-0.05, inf), (nextafter(-0.20, 0), inf)),),
    }
)


def changed_bands(bands: GateBands) -> dict[str, str]:
    """What differs from the default, by gate, in words."""
    return {
        gate.value: f"{parts[0].wanted} and {parts[0].kills}"
        for gate, parts in bands.items()
        if parts != DEFAULT_BANDS[gate]
    }
