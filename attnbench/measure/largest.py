"""The largest number for which something still holds, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Largest:
    """The largest number that held, 0 where none did, and the least that did not, 0 where all did.

    Both are within the resolution of each other, or the search met one of its ends.
    """

    held: int
    failed: int


def largest(
    holds: Callable[[int], bool], guess: int, *, least: int, most: int, resolution: float
) -> Largest:
    """Search from `guess` between `least` and `most` until both sides of the edge are known to
    within `resolution`, a share of the number that holds.

    `holds` must be true below an edge and false from it on. The first steps away from the guess are
    small, since a good guess is near the edge.
    """
    at = min(max(guess, least), most)
    held = failed = 0
    stride = max(1, round(at * resolution))
    while not (held and failed):
        if holds(at):
            held = at
            if at == most:
                return Largest(held, 0)
            at = min(at + stride, most) if not failed else at
        else:
            failed = at
            if at == least:
                return Largest(0, failed)
            at = max(at - stride, least) if not held else at
        stride *= 4
    while failed - held > max(1, int(held * resolution)):
        middle = (held + failed) // 2
        held, failed = (middle, failed) if holds(middle) else (held, middle)
    return Largest(held, failed)
