"""The sources' three ways to move a threshold from step to step, as they have them.

None says what the moved number ε is compared with, nor what is fed back; that is read into them
here. `g1` (rust) steers a count to 1000: ε is an absolute threshold, the count that of the tokens a
query head attends to. `g2` (python) steers a sparsity to one half: ε is the share of the blocks to
keep, which begins at 1 in the source; the feedback is positive. Its warm-up, of which the source
says only that it takes 500 steps, is left out. `g3` ("epsilon and phi") takes three features: the
share of blocks kept, the share skipped, and the change of the former since the step before; ε is a
threshold relative to the greatest score.

A state is float64 [..,4]: ε, the last error (`g1`) or φ (`g3`), the last kept share, and p (`g3`).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

GovernorName = Literal["none", "g1", "g2", "g3"]
PresetName = Literal["default", "hft", "gaming"]
STATE = 4
GOVERNED = {"g1": "absolute", "g2": "share", "g3": "relative"}

G1_START, G1_TARGET, G1_ALPHA, G1_BETA, G1_LEAST, G1_MOST = 0.1, 1000.0, 0.01, 0.05, 0.001, 10.0
G2_START, G2_TARGET, G2_ALPHA, G2_BETA, G2_LEAST = 1.0, 0.5, 0.1, 0.05, 0.01
G3_LEAST, G3_MOST = 0.1, 0.9


class Preset(NamedTuple):
    """Constants of `g3`."""

    epsilon: float
    phi: float
    gains: tuple[float, float, float]
    offset: float


PRESETS = {
    "default": Preset(0.5, 0.1, (0.1, 0.2, 0.3), 0.05),
    "hft": Preset(0.65, 0.05, (0.03, 0.08, 0.15), -0.02),
    "gaming": Preset(0.4, 0.2, (0.15, 0.25, 0.35), 0.05),
}


class Seen(NamedTuple):
    """What a step did, averaged over the query heads of each sequence: float64 [B]."""

    tokens: Tensor
    kept_share: Tensor  # of the blocks


def start(governor: GovernorName, preset: PresetName, epsilon: float) -> list[float]:
    """The state before the first step; an `epsilon` of 0 is the source's own."""
    chosen = PRESETS[preset]
    own = {"g1": G1_START, "g2": G2_START, "g3": chosen.epsilon}[governor]
    return [epsilon or own, chosen.phi if governor == "g3" else 0.0, 0.0, 0.0]


def moved(
    governor: GovernorName, preset: PresetName, state: Tensor, seen: Seen, step: int
) -> Tensor:
    """The state [B,4] after step `step`, counted from 0."""
    if governor == "g1":
        return _moved_g1(state, seen, step)
    return _moved_g2(state, seen, step) if governor == "g2" else _moved_g3(state, seen, preset)


def _moved_g1(state: Tensor, seen: Seen, step: int) -> Tensor:
    """ε - (α e + β de/dt) within its limits; the first step has no de/dt."""
    epsilon, before = state[..., 0], state[..., 1]
    error = G1_TARGET - seen.tokens
    change = error - before if step else torch.zeros_like(error)
    epsilon = (epsilon - (G1_ALPHA * error + G1_BETA * change)).clamp(G1_LEAST, G1_MOST)
    return torch.stack((epsilon, error, seen.kept_share, torch.zeros_like(error)), dim=-1)


def _moved_g2(state: Tensor, seen: Seen, step: int) -> Tensor:
    """ε - (α + β/t) (actual - target), from below; actual is the share of blocks skipped."""
    gain = G2_ALPHA + G2_BETA / max(step, 1)
    epsilon = state[..., 0] - gain * ((1 - seen.kept_share) - G2_TARGET)
    rest = torch.zeros_like(epsilon)
    return torch.stack((epsilon.clamp_min(G2_LEAST), rest, seen.kept_share, rest), dim=-1)


def _moved_g3(state: Tensor, seen: Seen, preset: PresetName) -> Tensor:
    """θ_i = 2 atan f_i; O1 moves ε, O2 moves φ, and p is the logistic of O3."""
    epsilon, phi, before, _ = state.unbind(dim=-1)
    kept, (first, second, third) = seen.kept_share, PRESETS[preset].gains
    angles = [2 * feature.atan() for feature in (kept, 1 - kept, kept - before)]
    o1 = (angles[0] + angles[1] + phi).cos()
    o2 = ((angles[0] + angles[1]) / 2 - phi).sin()
    p = torch.sigmoid(third * (angles[2] * phi).cos() + PRESETS[preset].offset)
    epsilon = (epsilon + first * o1).clamp(G3_LEAST, G3_MOST)
    return torch.stack((epsilon, (phi + second * o2) % (2 * math.pi), kept, p), dim=-1)
