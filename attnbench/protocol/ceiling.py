"""Amdahl's bound: no attention method is faster than a step whose attention costs nothing.

A speed-up is at most A over the zero-cost arm of the same run (Amdahl 1967): what the arm saves
beyond that it saved outside attention, or did not do at all. Since A stands on both sides, the arm
is compared with the zero-cost arm itself, block by block.

It is asked of the whole step alone, where it says more than the byte floor: of a step of
Llama-3.2-1B (32768 tokens, batch 4, one H100) the zero-cost arm leaves 2.44 ms, and the bytes of
the arms 0.97 to 2.17 ms, because the rest of a step does not read at full bandwidth. Of attention
alone nothing is left, so that Amdahl's law bounds nothing; the bytes do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from attnbench.protocol.blocks import session_blocks
from attnbench.protocol.cell import Arm, Role, Scope, SessionSamples
from attnbench.protocol.comparison import Comparison
from attnbench.protocol.presets import FEWEST_SESSIONS

# The zero-cost arm appends k and v and copies q in launches of their own, which a method that does
# all in one saves honestly. They were 5.7 µs a layer on an H100: 3.7 % of that model's step.
SAVED_LAUNCHES = 0.05
LEVEL = 0.95


def ceiling_for(arm: Arm, scope: Scope, arms: Sequence[Arm], zero_cost: str) -> str | None:
    """The label of the zero-cost arm, if it is among `arms` and bounds this one.

    Controls claim no speed-up, and the baseline is what the bound is made of.
    """
    bounded = arm.role is Role.CANDIDATE and scope is Scope.STEP and arm.label != zero_cost
    return zero_cost if bounded and any(each.label == zero_cost for each in arms) else None


def above_ceiling(sessions: Sequence[SessionSamples], arm: str, ceiling: str) -> str:
    """By how much `arm` is surely faster than the zero-cost arm; empty when it is not.

    Both centres' intervals must say so, over at least three sessions that hold both arms.
    """
    blocks = [kept for s in sessions if (kept := session_blocks(s, (arm, ceiling)).kept)]
    if len(blocks) < FEWEST_SESSIONS:
        return ""
    pair = Comparison.of(blocks, ceiling, arm)
    surely = min(pair.mean(LEVEL).low, pair.robust(LEVEL).low)
    if surely <= math.log1p(SAVED_LAUNCHES):
        return ""
    return f"at least {math.expm1(surely):.1%} faster than {ceiling}, whose attention costs nothing"
