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
    follows = np.array([visit.follows == arm for visit in visits], dtype=np.float64)
    arms = _codes([visit.arm for visit in visits])
    blocks = _codes([visit.block for visit in visits])
    columns = [
        place / max(1.0, place.max()),
        follows,
        *(arms == code for code in range(1, arms.max() + 1)),
        np.array([visit.log_time for visit in visits]),
    ]
    within = _within_blocks(np.column_stack(columns), blocks)
    design, times = within[:, :-1], within[:, -1]
    coefficients, _, rank, _ = np.linalg.lstsq(design, times, rcond=None)
    if rank < design.shape[1]:
        return None
    return OrderEffects(position=float(coefficients[0]), carry_over=float(coefficients[1]))


def _within_blocks(columns: NDArray[np.float64], blocks: NDArray[np.intp]) -> NDArray[np.float64]:
    """Each value less its block's mean, which fits a level of its own to every block.

    Frisch and Waugh 1933: the other coefficients are those of the regression with the blocks in it.
    """
    sums = np.zeros((blocks.max() + 1, columns.shape[1]))
    np.add.at(sums, blocks, columns)
    return columns - (sums / np.bincount(blocks)[:, None])[blocks]


def _codes(labels: Sequence[str] | Sequence[int]) -> NDArray[np.intp]:
    """Each label's number among the distinct ones."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], dtype=np.intp)
