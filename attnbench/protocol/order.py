"""What an arm's place in a block cost, over all sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from attnbench.protocol.blocks import SessionBlocks, placed_visits
from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.comparison import ratio_interval
from attnbench.protocol.result import Interval
from attnbench.stats.order import order_effects
from attnbench.stats.student import mean_interval


@dataclass(frozen=True)
class PlaceCosts:
    """Ratios of times: last position over first, and visits after the arm over the others."""

    position: Interval | UnsetType
    carry_over: Interval | UnsetType


def place_costs(
    sessions: Sequence[SessionSamples], blocks: Sequence[SessionBlocks], arm: str, level: float
) -> PlaceCosts:
    """t intervals over sessions; unset below two sessions whose orders can tell the effects."""
    fits = [
        order_effects(placed_visits(session, of_session.kept), arm)
        for session, of_session in zip(sessions, blocks, strict=True)
        if of_session.kept
    ]
    found = [fit for fit in fits if fit is not None]
    return PlaceCosts(
        position=_over_sessions([fit.position for fit in found], level),
        carry_over=_over_sessions([fit.carry_over for fit in found], level),
    )


def _over_sessions(values: Sequence[float], level: float) -> Interval | UnsetType:
    if len(values) < 2:
        return UNSET
    return ratio_interval(mean_interval(values, level), level)
