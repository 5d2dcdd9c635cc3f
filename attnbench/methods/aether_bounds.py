"""What AETHER keeps of a block of keys, and what its variants say of q·k over that block.

The sources have five formulas of one idea, and call all of them bounds. With μ the mean of a
block's keys and r the greatest distance of one of them from it, q·k = q·μ + q·(k - μ) ≤ q·μ + |q| r
(Cauchy and Schwarz): `raw` and `scaled` are bounds, and so is the looser |q| (|μ| + r) of `rust`.
The others look at unit keys k̂ and are no bounds of q·k: a longer key exceeds them. The potentials
of `trt` are lowered by a factor besides, and |q| (q̂·μ̂ + sin θ) of `cone` does not even bound q·k̂
where the query points away from the block.

Means and radii are summed in float64 and kept in float32: the radius is that about the mean as it
is kept, and is rounded up, so that rounding makes no bound false.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

VariantName = Literal[
    "raw", "scaled", "rust", "cone", "trt", "trt_docs", "trt_basic", "trt_backend"
]
LEAST_NORM = 1e-12  # of a key or a mean that is divided by its length
LEAST_CONCENTRATION = 0.1
KERNEL_FLOOR = 0.3  # of the kernel's factor .3 + .7 concentration
AGE_GAIN = 0.05  # by which the first block's potential is raised, the last one's by nearly nothing


class Summary(NamedTuple):
    """Blocks: `centre` float32 [..,D], and the variant's `figures` float32 [..,F]."""

    centre: Tensor
    figures: Tensor


@dataclass(frozen=True)
class Variant:
    """One formula: `summarise` takes the rows [..,R,D] of a block, without padding; `score` takes
    float64 queries [..,G,D], summaries [..,n] and the scale, and gives float64 [..,G,n]."""

    summarise: Callable[[Tensor], Summary]
    score: Callable[[Tensor, Summary, float], Tensor]
    figures: int
    is_bound: bool  # never below a logit of its block, whatever q and k are
    in_logits: bool  # the score has the scale in it

    def logits(self, scores: Tensor, scale: float) -> Tensor:
        """Scores in the units of logits."""
        return scores if self.in_logits else scores * scale


def rounded_up(exact: Tensor) -> Tensor:
    """The least float32 that is not below."""
    near = exact.float()
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return torch.where(near.double() < exact, above, near)


def ball(rows: Tensor) -> Summary:
    """The mean key, and the radius about it."""
    wide = rows.double()
    centre = wide.mean(dim=-2).float()
    off: Tensor = (wide - centre.double()[..., None, :]).norm(dim=-1)
    return Summary(centre, rounded_up(off.amax(dim=-1, keepdim=True)))


def unit(rows: Tensor) -> Tensor:
    """Rows of length one, in float64."""
    wide = rows.double()
    length: Tensor = wide.norm(dim=-1, keepdim=True)
    return wide / length.clamp_min(LEAST_NORM)


def directions(rows: Tensor) -> Summary:
    """The mean direction, and of the unit keys the radius about it, the mean squared distance from
    it, and the concentration: their mean cosine with it, from .1 to 1."""
    keys = unit(rows)
    centre = unit(keys.mean(dim=-2))
    off: Tensor = (keys - centre[..., None, :]).norm(dim=-1)
    cosine = (keys @ centre[..., None])[..., 0]
    concentration = cosine.mean(dim=-1).clamp(LEAST_CONCENTRATION, 1.0)
    figures = (off.amax(dim=-1), off.square().mean(dim=-1), concentration)
    return Summary(centre.float(), torch.stack(figures, dim=-1).float())


def cone(rows: Tensor) -> Summary:
    """The mean direction, and the least cosine of a key with it."""
    keys = unit(rows)
    centre = unit(keys.mean(dim=-2))
    cosine = (keys @ centre[..., None])[..., 0]
    return Summary(centre.float(), cosine.amin(dim=-1, keepdim=True).float())


def along(q: Tensor, blocks: Summary) -> Tensor:
    """q·μ: [..,G,D], [..,n] -> [..,G,n]."""
    return q @ blocks.centre.double().mT


def length(q: Tensor) -> Tensor:
    """|q|: [..,G,D] -> [..,G,1]."""
    found: Tensor = q.norm(dim=-1, keepdim=True)
    return found


def figure(blocks: Summary, number: int) -> Tensor:
    """One figure of every block, in float64: [..,1,n]."""
    return blocks.figures[..., number].double()[..., None, :]


def raw_score(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """q·μ + |q| r."""
    del scale
    return along(q, blocks) + length(q) * figure(blocks, 0)


def scaled_score(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """The same in the units of logits."""
    return raw_score(q, blocks, scale) * scale


def rust_score(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """|q| (|μ| + r)."""
    del scale
    centre: Tensor = blocks.centre.double().norm(dim=-1)
    return length(q) * (centre[..., None, :] + figure(blocks, 0))


def cone_score(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """|q| (q̂·μ̂ + sin θ), θ the widest angle of a key."""
    del scale
    sine = (1 - figure(blocks, 0).square()).clamp_min(0).sqrt()
    return along(q, blocks) + length(q) * sine


def trt_basic(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """(q·μ̂ + |q| r) s."""
    return raw_score(q, blocks, scale) * scale


def trt_backend(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """The same over 1 + variance."""
    return trt_basic(q, blocks, scale) / (1 + figure(blocks, 1))


def trt_spread(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """(q·μ̂ + |q| r (1 + √variance)) s."""
    reach = length(q) * figure(blocks, 0) * (1 + figure(blocks, 1).sqrt())
    return (along(q, blocks) + reach) * scale


def trt_kernel(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """That times .3 + .7 concentration, and older blocks by up to a twentieth more."""
    factor = KERNEL_FLOOR + (1 - KERNEL_FLOOR) * figure(blocks, 2)
    return trt_spread(q, blocks, scale) * factor * age_factor(blocks)


def trt_docs(q: Tensor, blocks: Summary, scale: float) -> Tensor:
    """The same with the concentration itself for a factor, as the documentation says."""
    return trt_spread(q, blocks, scale) * figure(blocks, 2) * age_factor(blocks)


def age_factor(blocks: Summary) -> Tensor:
    """1 + .05 (1 - i/n) for block i of n: what the source calls recency favours the oldest."""
    count = blocks.centre.shape[-2]
    place = torch.arange(count, dtype=torch.float64, device=blocks.centre.device)
    return 1 + AGE_GAIN * (1 - place / count)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "raw": Variant(ball, raw_score, 1, is_bound=True, in_logits=False),
        "scaled": Variant(ball, scaled_score, 1, is_bound=True, in_logits=True),
        "rust": Variant(ball, rust_score, 1, is_bound=True, in_logits=False),
        "cone": Variant(cone, cone_score, 1, is_bound=False, in_logits=False),
        "trt": Variant(directions, trt_kernel, 3, is_bound=False, in_logits=True),
        "trt_docs": Variant(directions, trt_docs, 3, is_bound=False, in_logits=True),
        "trt_basic": Variant(directions, trt_basic, 3, is_bound=False, in_logits=True),
        "trt_backend": Variant(directions, trt_backend, 3, is_bound=False, in_logits=True),
    }
)
BOUNDS = tuple(name for name, variant in VARIANTS.items() if variant.is_bound)
