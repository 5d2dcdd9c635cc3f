"""CY-Sieve's sequences: growth, what is left of it, and the distances that its sieve keeps.

S(n) = sum over k of C(n,k)^p C(n+k,k): S20 has p = 4, S15 has p = 3. By Laplace's method at the
saddle x of the summands S(n) ~ C λ^n n^(-p/2): each of the p binomials brings n^(-1/2), the other
one too, and the sum over k takes one of them back. Source of the bias, the ladder, the sieve and
the tables: xaviercallens/Mirror-Map-Sieve @476e92e. Whole numbers are `protocol.recomputed.s20`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from attnbench.protocol.recomputed.s20 import (
    ORDER,
    by_recurrence,
    direct,
    log_growth_by_saddle,
    polynomial,
    recurrence_of,
    saddle,
)

Name = Literal["s20", "s15"]
Constant = Literal["continuity", "true"]
Tail = Literal["asymptotic", "exact"]
POWERS: dict[Name, int] = {"s20": 4, "s15": 3}
EXACT_WINDOW = 13  # the last distance whose S20 fits in 63 bits
FIXED_POINT_SHIFT = 62
LARGEST_INT64 = 2**63 - 1
SIEVE_MODULUS = 251
NEGLIGIBLE = 0.01  # of the weight at distance 0: where the effective context ends
LARGEST_DISTANCE = 1 << 26


@dataclass(frozen=True)
class Sequence:
    """S20 or S15."""

    name: Name = "s20"

    @property
    def power(self) -> int:
        """Of C(n,k) in the definition."""
        return POWERS[self.name]

    @property
    def exponent(self) -> float:
        """β in S(n) ~ C λ^n n^-β."""
        return self.power / 2

    @cached_property
    def log_growth(self) -> float:
        """ln λ."""
        return log_growth_by_saddle(self.power)

    @cached_property
    def log_constant(self) -> float:
        """ln C, by Laplace's method."""
        x, power = saddle(self.power), self.power
        bend = power / (x * (1 - x)) + 1 / x - 1 / (1 + x)
        return 0.5 * (
            math.log((1 + x) / (2 * math.pi * x))
            + math.log(2 * math.pi / bend)
            - power * math.log(2 * math.pi * x * (1 - x))
        )

    def terms(self, count: int) -> list[int]:
        """S(0) … S(count - 1) in whole numbers, by the recurrence."""
        return by_recurrence(count, self.power)

    def logarithms(self, last: int) -> tuple[float, ...]:
        """ln S(0) … ln S(last)."""
        return _logarithms(self, last)

    def joining_constant(self, exact_window: int = EXACT_WINDOW) -> float:
        """The ln C with which the tail takes the exact value at the end of the exact window."""
        end = math.log(direct(exact_window, self.power))
        return end - exact_window * self.log_growth + self.exponent * math.log(exact_window)

    def int64_window(self) -> int:
        """The last n whose S(n) fits in a signed number of 64 bits."""
        n = 0
        while direct(n + 1, self.power) <= LARGEST_INT64:
            n += 1
        return n

    def fixed_point_table(self) -> tuple[int, ...]:
        """⌊2^62 / S(d)⌋ for the distances of the INT64 window."""
        last = self.int64_window()
        return tuple(2**FIXED_POINT_SHIFT // direct(d, self.power) for d in range(last + 1))

    def modulo(self, count: int, modulus: int = SIEVE_MODULUS) -> npt.NDArray[np.int64]:
        """S(0) … S(count - 1) modulo a prime, by the recurrence modulo that prime; [count].

        Where the recurrence's leading polynomial vanishes it says nothing: such a term is taken
        from the definition (`reseeded` says which these are).
        """
        recurrence = recurrence_of(self.power)
        values = [direct(n, self.power) % modulus for n in range(min(count, ORDER))]
        for n in range(count - ORDER):
            leading = polynomial(recurrence[ORDER], n) % modulus
            if leading == 0:
                values.append(direct(n + ORDER, self.power) % modulus)
                continue
            known = sum(polynomial(recurrence[j], n) * values[n + j] for j in range(ORDER))
            values.append(-known * pow(leading, -1, modulus) % modulus)
        return np.array(values, dtype=np.int64)

    def reseeded(self, count: int, modulus: int = SIEVE_MODULUS) -> list[int]:
        """Terms below `count` that a recurrence modulo a prime cannot reach."""
        leading = recurrence_of(self.power)[ORDER]
        return [n + ORDER for n in range(count - ORDER) if polynomial(leading, n) % modulus == 0]

    def kept_by_sieve(self, count: int, modulus: int = SIEVE_MODULUS) -> npt.NDArray[np.bool_]:
        """Which distances 0 … count - 1 have S(d) ≡ 0; S(0) = 1, so 0 is never one; [count].

        S(n) is congruent to the product of S of n's digits in base p, for a prime p: a congruence
        of Lucas' kind, which these sums satisfy as C(n,k) does.
        """
        digits_that_vanish = self.modulo(min(count, modulus), modulus) == 0
        kept, rest = np.zeros(count, dtype=np.bool_), np.arange(count)
        while rest.any():
            kept |= digits_that_vanish[rest % modulus]
            rest //= modulus
        return kept


@cache
def _logarithms(sequence: Sequence, last: int) -> tuple[float, ...]:
    return tuple(math.log(term) for term in sequence.terms(last + 1))


S20 = Sequence("s20")
S15 = Sequence("s15")


@dataclass(frozen=True)
class LogSeries:
    """ln S(d) as CY-Sieve computes it: exact up to a distance, d ln λ - β ln d + ln C beyond; or,
    with an exact `tail`, from whole numbers all the way."""

    sequence: Sequence = S20
    exact_window: int = EXACT_WINDOW
    constant: Constant = "continuity"
    tail: Tail = "asymptotic"

    @cached_property
    def exact(self) -> tuple[float, ...]:
        """ln S(0) … ln S(exact_window)."""
        return self.sequence.logarithms(self.exact_window)

    @cached_property
    def log_constant(self) -> float:
        """ln C of the tail: the one that joins, or the true one."""
        if self.constant == "true":
            return self.sequence.log_constant
        return self.sequence.joining_constant(self.exact_window)

    def at(self, distance: int) -> float:
        """Its value at one distance."""
        if distance <= self.exact_window:
            return self.exact[distance]
        if self.tail == "exact":
            return self.sequence.logarithms(distance)[distance]
        curved = self.sequence.exponent * math.log(distance)
        return distance * self.sequence.log_growth - curved + self.log_constant


def bias(distance: int, tau: float, series: LogSeries | None = None) -> float:
    """b_τ(d) = -ln S(d) / τ."""
    return -(series or LogSeries()).at(distance) / tau


def geometric_slopes(heads: int) -> tuple[float, ...]:
    """2^(-8 h / H) for h = 1 … H: the slopes of ALiBi (Press et al. 2022, arXiv 2108.12409)."""
    return tuple(2.0 ** (-8.0 * h / heads) for h in range(1, heads + 1))


def tau_ladder(heads: int, sequence: Sequence = S20) -> tuple[float, ...]:
    """τ_h = ln λ / 2^(-8 h / H): the bias then falls as ALiBi's does, less its curvature."""
    return tuple(sequence.log_growth / slope for slope in geometric_slopes(heads))


def effective_context(
    tau: float, series: LogSeries | None = None, least: float = NEGLIGIBLE
) -> int:
    """The largest distance whose weight e^b is at least `least`: by bisection, as b falls."""
    known = series or LogSeries()
    low, high = 0, 1
    while high < LARGEST_DISTANCE and bias(high, tau, known) >= math.log(least):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bias(middle, tau, known) >= math.log(least) else (low, middle)
    return low
