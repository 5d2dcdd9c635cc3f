"""CY-Sieve's bias: logits fall with a sequence's logarithm (xaviercallens/Mirror-Map-Sieve)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch

from attnbench.errors import UsageError
from attnbench.methods.cy_sequence import (
    EXACT_WINDOW,
    SIEVE_MODULUS,
    Constant,
    LogSeries,
    Name,
    Sequence,
    Tail,
    effective_context,
    tau_ladder,
)
from attnbench.methods.distance_bias import UNBOUNDED, DistanceRule, HeadCoefficients
from attnbench.methods.distance_method import DistanceMethod

Mode = Literal["fixed", "holo", "comet", "nested", "linlog", "content_balance", "softmax_temp"]
Curvature = Literal["own", "theory", "zero", "free"]
SERIES_MODES = ("fixed", "holo", "comet")
# The curvature that a mode has unless it is told otherwise.
OWN_CURVATURE: dict[str, Curvature] = {
    "fixed": "theory",
    "holo": "theory",
    "comet": "theory",
    "nested": "free",
    "linlog": "free",
    "content_balance": "zero",
    "softmax_temp": "zero",
}
MOST_EXACT = 63


@dataclass(frozen=True)
class CyBias(DistanceMethod):
    """b(d) = -ln S(d) / τ, by S20 or S15; exact up to a window, asymptotic beyond; or what the
    source made of it later, with numbers that each head learns.

    `mode`: `fixed`; `holo`, -γ ln S(d) with γ learned; `comet`, the same of d - `shift`, and 0 up
    to there; `nested`, -a d + b ln d with a learned and b by `curvature`; `linlog`, the same with b
    learned from 0; `content_balance`, c q·k - a d with c and a learned; `softmax_temp`, that sum
    over a learned temperature. Where numbers are learned they begin as τ has them.

    `tau`: a number for all heads, or `ladder`, with which heads fall as ALiBi's do far out.
    `curvature` of ln d: `theory` (β = 2 of S20, 1.5 of S15), `zero`, `free` (learned, from what
    theory says), or the mode's `own`. `least_weight` of `fixed` cuts a head off where its weight
    e^b falls below it.
    `tail=exact` is ln S without the asymptotic, which the kernel has from the recurrence of S20.
    `sieve`: of the distances above 0 only those whose term this prime divides (the source's: 251).
    """

    sequence: Name = "s20"
    tau: str = "ladder"
    mode: Mode = "fixed"
    curvature: Curvature = "own"
    shift: int = 512
    exact_window: int = EXACT_WINDOW
    constant: Constant = "continuity"
    tail: Tail = "asymptotic"
    least_weight: float = 0.0
    sieve: int = 0
    impl: str = ""

    name: ClassVar[str] = "cy_bias"
    source: ClassVar[str] = "xaviercallens/Mirror-Map-Sieve @476e92e"

    def __post_init__(self) -> None:
        for wrong, hint in self._faults():
            raise UsageError(f"cy_bias: {wrong}", hint=hint)

    def _faults(self) -> list[tuple[str, str]]:
        """What is wrong with the parameters, each with what to do."""
        return [
            (wrong, hint)
            for is_wrong, wrong, hint in (
                (
                    not _is_tau(self.tau),
                    f"tau={self.tau!r} is no temperature",
                    "tau=ladder, or a number above 0",
                ),
                (
                    not 1 <= self.exact_window <= MOST_EXACT,
                    f"exact_window={self.exact_window}",
                    f"from 1 to {MOST_EXACT}",
                ),
                (self.shift < 1, f"shift={self.shift}", "from 1"),
                (
                    self.mode in ("linlog", "content_balance", "softmax_temp")
                    and self.curvature not in ("own", OWN_CURVATURE[self.mode]),
                    f"mode={self.mode} has a curvature of its own",
                    "leave curvature out, or take mode=nested",
                ),
                (
                    not 0 <= self.least_weight < 1,
                    f"least_weight={self.least_weight}",
                    "from 0 to below 1; 0 cuts nothing off",
                ),
                (
                    self.least_weight > 0 and (self.mode, self.beta) != ("fixed", "theory"),
                    "least_weight cuts off a bias that stays as it is",
                    "take mode=fixed with its own curvature",
                ),
                (
                    bool(self.sieve) and not _is_prime(self.sieve),
                    f"sieve={self.sieve} is no prime",
                    f"sieve={SIEVE_MODULUS} is the source's, 0 none",
                ),
                (
                    bool(self.sieve) and self.mode != "fixed",
                    "the sieve belongs to the fixed bias",
                    "take mode=fixed",
                ),
            )
            if is_wrong
        ]

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """Each mode, both sequences, a flat τ, a cut and the sieve; on a GPU the recurrence too,
        which an interpreter goes through for minutes."""
        recurred = (cls(tau="20", tail="exact"),) if device_type == "cuda" else ()
        return (
            *recurred,
            cls(),
            cls(tau="20"),
            cls(sequence="s15", tau="128", constant="true"),
            cls(tau="20", least_weight=0.01),
            cls(tau="20", sieve=7),
            cls(mode="holo", curvature="zero"),
            cls(mode="comet", shift=16),
            cls(mode="nested"),
            cls(mode="softmax_temp"),
        )

    @property
    def beta(self) -> Curvature:
        """The curvature, the mode's own where none was asked for."""
        return OWN_CURVATURE[self.mode] if self.curvature == "own" else self.curvature

    @property
    def series(self) -> LogSeries:
        """ln S(d)."""
        return LogSeries(Sequence(self.sequence), self.exact_window, self.constant, self.tail)

    def taus(self, heads: int) -> tuple[float, ...]:
        """τ of each head."""
        if self.tau == "ladder":
            return tau_ladder(heads, Sequence(self.sequence))
        return (float(self.tau),) * heads

    def rule(self) -> DistanceRule:
        """ln S(d) or d, and whether ln d is added to it."""
        if self.mode in SERIES_MODES:
            return DistanceRule(
                kind="series",
                curved=self.beta != "theory",
                shift=self.shift if self.mode == "comet" else 0,
                series=self.series,
                sieve=self.sieve,
            )
        return DistanceRule(kind="line", curved=self.beta != "zero")

    def coefficients(self, heads: int, dtype: torch.dtype) -> HeadCoefficients:
        """Slopes by τ; the curvature as it is asked for."""
        sequence, taus = Sequence(self.sequence), self.taus(heads)
        if self.mode in SERIES_MODES:
            return HeadCoefficients(
                [1 / tau for tau in taus],
                learn_slope=self.mode != "fixed",
                # ln S holds -β ln d already
                curvature_a_slope=-sequence.exponent if self.beta == "zero" else 0.0,
                free_curvature=[0.0] * heads if self.beta == "free" else None,
                dtype=dtype,
            )
        slopes = [sequence.log_growth / tau for tau in taus]
        theory = sequence.exponent / sequence.log_growth  # of ln d, a slope
        start = 0.0 if self.mode == "linlog" else theory
        return HeadCoefficients(
            slopes,
            learn_slope=True,
            curvature_a_slope=theory if self.beta == "theory" else 0.0,
            free_curvature=[start * slope for slope in slopes] if self.beta == "free" else None,
            learn_gain=self.mode in ("content_balance", "softmax_temp"),
            learn_temperature=self.mode == "softmax_temp",
            dtype=dtype,
        )

    def reaches(self, heads: int) -> tuple[int, ...]:
        """All tokens, or those of the effective context."""
        if not self.least_weight:
            return (UNBOUNDED,) * heads
        series, least = self.series, self.least_weight
        return tuple(1 + effective_context(tau, series, least) for tau in self.taus(heads))


def _is_tau(text: str) -> bool:
    """Whether it is the ladder or a temperature."""
    if text == "ladder":
        return True
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, math.isqrt(number) + 1))
