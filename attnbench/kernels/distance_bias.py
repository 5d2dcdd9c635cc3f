"""A bias by distance, made in registers: what the kernels of attention with such a bias share.

A head's logit is g q·k scale - s base(d) + c ln max(d', 1), where d' = max(d - SHIFT, 0) and `base`
of it is by KIND: nothing; d' (ALiBi); ln S20 or ln S15 by CY-Sieve's formula, read from a table up
to LAST and d' ln λ - β ln d' + ln C beyond; or ln S20 by the sequence's own recurrence beyond LAST
(xaviercallens/Mirror-Map-Sieve @476e92e says its kernel does that; it never did).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(math.log2(math.e))
LINE, SERIES, RECURRENCE = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


class Kind(IntEnum):
    """KIND of a launch."""

    NONE = 0
    LINE = 1
    SERIES = 2
    RECURRENCE = 3


@dataclass(frozen=True)
class HeadNumbers:
    """Of each head, float32 [H]; `reach` int32 [H]: keys at this distance and beyond are masked."""

    slope: Tensor
    curvature: Tensor
    gain: Tensor
    reach: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (self.slope, self.curvature, self.gain, self.reach)


@dataclass(frozen=True)
class BiasForm:
    """What a kernel is compiled for, and the numbers of the tail; a table holds ln S(0 … last)."""

    kind: Kind = Kind.NONE
    curved: bool = False
    bounded: bool = False  # whether any head's reach is less than everything
    shift: int = 0
    last: int = 0
    growth: float = 0.0
    exponent: float = 0.0
    constant: float = 0.0

    def compiled(self) -> dict[str, int | bool]:
        """Constants of the kernel."""
        return {
            "KIND": int(self.kind),
            "CURVED": self.curved,
            "BOUNDED": self.bounded,
            "SHIFT": self.shift,
            "LAST": self.last,
        }

    def tail(self) -> tuple[float, float, float]:
        """Arguments of the kernel."""
        return (self.growth, self.exponent, self.constant)


@triton.jit
def _base(
    distance,
    table_ptr,
    growth,
    exponent,
    constant,
    KIND: tl.constexpr,
    SHIFT: tl.constexpr,
    LAST: tl.constexpr,
    NEAR: tl.constexpr,
):
    """base of int32 distances, float32. Unless NEAR, none is within the table."""
    rest = distance - SHIFT
    if NEAR or SHIFT > 0:
        rest = tl.maximum(rest, 0)
    far = rest.to(tl.float32)
    if KIND == SERIES:
        value = far * growth - exponent * tl.log(tl.maximum(far, 1.0)) + constant
        if NEAR:
            within = rest <= LAST
            value = tl.where(within, tl.load(table_ptr + rest, mask=within, other=0.0), value)
    else:
        value = far
    return value


@triton.jit
def _logarithm(distance, SHIFT: tl.constexpr):
    """ln max(d', 1) of int32 distances, float32."""
    return tl.log(tl.maximum(distance - SHIFT, 1).to(tl.float32))


@triton.jit
def _horner(x, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13):
    """c0 + x (c1 + x (c2 + …))."""
    value = c12 + x * c13
    value = c11 + x * value
    value = c10 + x * value
    value = c9 + x * value
    value = c8 + x * value
    value = c7 + x * value
    value = c6 + x * value
    value = c5 + x * value
    value = c4 + x * value
    value = c3 + x * value
    value = c2 + x * value
    value = c1 + x * value
    return c0 + x * value


@triton.jit
def _next_ratio(term, ratio, before, before_that):
    """S20(n+1) / S20(n) by the recurrence of order 4: n is `term`, and the ratios are those of
    n to n-1, n-1 to n-2 and n-2 to n-3. Its polynomials are taken at m = n - 3 over m^13, and over
    the leading coefficient of the last (protocol/recomputed/s20.py has them in whole numbers).
    """
    x = 1.0 / (term - 3)
    p0 = _horner(
        x,
        -27.0,
        -725.0674956,
        -8842.80858,
        -64805.78733,
        -318205.5909,
        -1104744.854,
        -2788439.23,
        -5178314.925,
        -7072633.984,
        -7015240.956,
        -4911415.495,
        -2298531.514,
        -644670.6827,
        -81871.68833,
    )
    p1 = _horner(
        x,
        -6451.0,
        -186139.4227,
        -2456041.23,
        -19619888.85,
        -105863528.3,
        -407415946.6,
        -1150553209.0,
        -2414135637.0,
        -3763829778.0,
        -4306816039.0,
        -3516080414.0,
        -1939708687.0,
        -648207567.1,
        -99119922.16,
    )
    p2 = _horner(
        x,
        -799.0,
        -24652.627,
        -348600.6605,
        -2990533.347,
        -17360534.54,
        -71998225.2,
        -219402724.7,
        -497280094.8,
        -838073454.2,
        -1036995033.0,
        -915470937.5,
        -545915750.5,
        -197055786.2,
        -32513061.14,
    )
    p3 = _horner(
        x,
        -21.0,
        -689.9413854,
        -10367.00584,
        -94302.72149,
        -579226.7463,
        -2536142.453,
        -8141900.974,
        -19400093.83,
        -34302308.98,
        -44444455.72,
        -41010364.93,
        -25517641.66,
        -9595650.936,
        -1646869.031,
    )
    p4 = _horner(
        x,
        1.0,
        34.85435169,
        553.9783719,
        5314.679335,
        34326.05102,
        157569.5485,
        528740.1064,
        1312886.665,
        2411791.937,
        3236785.284,
        3084347.184,
        1976027.272,
        762863.8457,
        134038.9813,
    )
    return -(p3 + (p2 + (p1 + p0 / before_that) / before) / ratio) / p4


@triton.jit
def _after_table(table_ptr, LAST: tl.constexpr):
    """Where the recurrence begins: ln S(LAST), and the three ratios up to there."""
    log = tl.load(table_ptr + LAST)
    first, second, third = (
        tl.load(table_ptr + LAST - 1),
        tl.load(table_ptr + LAST - 2),
        tl.load(table_ptr + LAST - 3),
    )
    return log, tl.exp(log - first), tl.exp(first - second), tl.exp(second - third)


@triton.jit
def _recurred(term, until, log, ratio, before, before_that):
    """ln S(until) and its ratios, from those of `term`, one step after another."""
    for n in range(term, until):
        following = _next_ratio(n, ratio, before, before_that)
        before_that = before
        before = ratio
        ratio = following
        log += tl.log(ratio)
    return log, ratio, before, before_that
