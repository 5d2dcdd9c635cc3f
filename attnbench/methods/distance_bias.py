"""What a head adds to its logits by distance alone, and what of it a head may learn.

With d = i - j ≥ 0 (query i, key j) a head's logit is g q·k scale - s base(d) + c ln max(d, 1).
`base` is one for all heads: nothing, d itself (ALiBi), or ln S(d) of a sequence (CY-Sieve). Keys at
d ≥ reach are not attended to. Slope s, curvature c and gain g are numbers of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from attnbench.methods.cy_sequence import LogSeries

Kind = Literal["none", "line", "series"]
UNBOUNDED = 2**31 - 1  # a reach beyond every context


@dataclass(frozen=True)
class DistanceRule:
    """What all heads share: the function of the distance, and from where on it counts.

    `shift`: up to this distance the base is 0, beyond it the base of the rest. `sieve`: a prime; of
    the distances above 0 only those are attended to whose term it divides.
    """

    kind: Kind = "none"
    curved: bool = False
    shift: int = 0
    series: LogSeries | None = None
    sieve: int = 0

    def base(self, distance: Tensor) -> Tensor:
        """base(d) of whole distances, in float64."""
        rest = (distance - self.shift).clamp(min=0).double()
        if self.series is None:
            return rest if self.kind == "line" else torch.zeros_like(rest)
        if self.series.tail == "exact":
            known = self.series.sequence.logarithms(int(rest.max()) if rest.numel() else 0)
            return rest.new_tensor(known)[rest.long()]
        exact = rest.new_tensor(self.series.exact)
        last = self.series.exact_window
        curve = self.series.sequence.exponent * rest.clamp(min=1).log()
        tail = rest * self.series.sequence.log_growth - curve + self.series.log_constant
        return torch.where(rest <= last, exact[rest.long().clamp(max=last)], tail)

    def logarithm(self, distance: Tensor) -> Tensor:
        """ln max(d, 1) of the same distances, in float64."""
        return (distance - self.shift).clamp(min=1).double().log()

    def kept(self, distance: Tensor) -> Tensor:
        """Which distances the sieve leaves; without one, all."""
        if not self.sieve or self.series is None:
            return torch.ones_like(distance, dtype=torch.bool)
        count = int(distance.max()) + 1
        left = torch.from_numpy(self.series.sequence.kept_by_sieve(count, self.sieve))
        left[0] = True  # the newest token, or a short context would leave nothing to attend to
        return left.to(distance.device)[distance]


class Coefficients(NamedTuple):
    """Numbers of each head, [H]."""

    slope: Tensor
    curvature: Tensor
    gain: Tensor


class HeadCoefficients(nn.Module):
    """Slope, curvature and gain of the heads of one layer, fixed or learned.

    A learned slope is softplus of its parameter; a curvature is nothing, a multiple of the slope,
    or a parameter; a learned gain and temperature are exponentials, 1 at the start. A temperature
    divides the whole sum.
    """

    def __init__(
        self,
        slope: Sequence[float],
        *,
        learn_slope: bool = False,
        curvature_a_slope: float = 0.0,
        free_curvature: Sequence[float] | None = None,
        learn_gain: bool = False,
        learn_temperature: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        heads = len(slope)
        self.learn_slope = learn_slope
        self.curvature_a_slope = curvature_a_slope
        start = torch.tensor(slope, dtype=torch.float64)
        if learn_slope:
            self.raw_slope = nn.Parameter((start + torch.log(-torch.expm1(-start))).to(dtype))
        else:
            self.register_buffer("fixed_slope", start.to(dtype))
        self.curvature = (
            None
            if free_curvature is None
            else nn.Parameter(torch.tensor(free_curvature, dtype=dtype))
        )
        self.log_gain = nn.Parameter(torch.zeros(heads, dtype=dtype)) if learn_gain else None
        self.log_temperature = (
            nn.Parameter(torch.zeros(heads, dtype=dtype)) if learn_temperature else None
        )

    def forward(self) -> Coefficients:
        """The numbers as they are now."""
        slope = (
            nn.functional.softplus(self.raw_slope)
            if self.learn_slope
            else self.get_buffer("fixed_slope")
        )
        curvature = slope * self.curvature_a_slope if self.curvature is None else self.curvature
        gain = torch.ones_like(slope) if self.log_gain is None else self.log_gain.exp()
        if self.log_temperature is None:
            return Coefficients(slope, curvature, gain)
        cold = (-self.log_temperature).exp()
        return Coefficients(slope * cold, curvature * cold, gain * cold)

    @property
    def learned(self) -> bool:
        """Whether anything here is trained."""
        return any(True for _ in self.parameters())


@dataclass(frozen=True)
class HeadBias:
    """The bias of one layer's heads: a rule, numbers [H] and reaches."""

    rule: DistanceRule
    numbers: Coefficients
    reach: tuple[int, ...]

    def of(self, distance: Tensor) -> Tensor:
        """The bias at whole distances [n]: [H,n] in the dtype of the numbers, -inf beyond reach."""
        slope, curvature, _ = self.numbers
        bias = -slope[:, None] * self.rule.base(distance).to(slope)
        if self.rule.curved:
            bias = bias + curvature[:, None] * self.rule.logarithm(distance).to(slope)
        return bias.masked_fill(~self.attended(distance), -math.inf)

    def attended(self, distance: Tensor) -> Tensor:
        """Which heads attend at which distances [n]: bool [H,n]."""
        reach = torch.tensor(self.reach, device=distance.device)
        return (distance < reach[:, None]) & self.rule.kept(distance)

    def frozen(self) -> HeadBias:
        """The same with the numbers as they are now, which no training moves."""
        now = Coefficients(*(number.detach().clone() for number in self.numbers))
        return HeadBias(self.rule, now, self.reach)

    @property
    def farthest(self) -> int:
        """The greatest reach of all heads."""
        return max(self.reach)

    def rows(self, visible: int) -> list[int]:
        """Tokens that each head attends to, of so many visible ones."""
        if not self.rule.sieve:
            return [min(reach, visible) for reach in self.reach]
        return self.attended(torch.arange(visible)).sum(dim=1).tolist()
