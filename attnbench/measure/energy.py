"""Energy of a GPU while one arm's steps run without a break, by the GPU's own counter.

The counter moves about every 100 ms, so that of a visit it tells nothing, and of visits in turns it
would give one arm what another spent. Here steps of one arm run back to back until the counter has
moved many times; what counts lies between two of its moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from attnbench.measure.answers import EnergySample

LEAST_S = 2.0
PATIENCE_S = 3.0  # for a counter that does not move
CHUNK_S = 0.025  # of steps that are asked for at once


class Fence(Protocol):
    """A point in the stream of work."""

    def synchronize(self) -> None:
        """Wait until the work before it is done."""


@dataclass(frozen=True)
class _Move:
    """The counter has just moved: when, to how many millijoules, after how many steps."""

    at_s: float
    millijoules: int
    steps: int


def spent(
    launch: Callable[[int], Fence],
    chunk: int,
    read_mj: Callable[[], int | None],
    now: Callable[[], float],
) -> EnergySample | None:
    """Run `chunk` steps at a time until the counter has told enough; None where it tells nothing.

    `launch` asks for so many steps without waiting for them: the counter is read while the device
    is busy, since a read takes milliseconds in which it would rest. Steps are counted a chunk late,
    at the first move as at the last.
    """
    began, first, last = now(), None, None
    before = read_mj()
    done, updates, fence = 0, 0, launch(chunk)
    while before is not None:
        following = launch(chunk)
        value, at_s = read_mj(), now()
        fence.synchronize()
        fence, done = following, done + chunk
        if value is not None and value != before:
            before, last = value, _Move(at_s, value, done)
            first, updates = first or last, updates + (first is not None)
        if last is not None and first is not None and last.at_s - first.at_s >= LEAST_S:
            break
        since = began if last is None else last.at_s
        if at_s - since > PATIENCE_S:
            break
    fence.synchronize()
    if first is None or last is None or not updates:
        return None
    return EnergySample(
        joules=(last.millijoules - first.millijoules) / 1e3,
        seconds=last.at_s - first.at_s,
        steps=last.steps - first.steps,
        updates=updates,
    )
