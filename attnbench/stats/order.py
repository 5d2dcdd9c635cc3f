"""What a visit's place costs: drift along a block, and what an arm leaves behind for the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PlacedVisit:
    """One visit in a session; `follows` is the arm visited right before, empty for none."""

    arm: str
    block: int
    position: int
    follows: str
    log_time: float


@dataclass(frozen=True)
class OrderEffects:
    """Log changes: from first to last position, and of the visits right after the arm asked for."""

    position: float
    carry_over: float


def order_effects(visits: Sequence[PlacedVisit], arm: str) -> OrderEffects | None:
    """Least squares of log time on arm, block, position and "follows `arm`", in one session.

    None where the orders that ran cannot tell these apart.
    """
    place = np.array([visit.position for visit in visits], dtype=np.float64)
    design = np.column_stack(
        [
            place / max(1.0, place.max()),
            np.array([visit.follows == arm for visit in visits], dtype=np.float64),
            _indicators([visit.arm for visit in visits]),
            _indicators([visit.block for visit in visits])[:, 1:],
        ]
    )
    times = np.array([visit.log_time for visit in visits])
    coefficients, _, rank, _ = np.linalg.lstsq(design, times, rcond=None)
    if rank < design.shape[1]:
        return None
    return OrderEffects(position=float(coefficients[0]), carry_over=float(coefficients[1]))


def _indicators(labels: Sequence[str] | Sequence[int]) -> NDArray[np.float64]:
    distinct = sorted(set(labels))  # type: ignore[type-var]
    return np.array([[label == one for one in distinct] for label in labels], dtype=np.float64)
