"""Named protocols: how many steps, blocks and sessions, and the levels that decide."""

from __future__ import annotations

import difflib
from itertools import pairwise

import msgspec

from attnbench.errors import UsageError

FEWEST_SESSIONS = 3  # fewer decide nothing


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """How one run is measured and decided.

    `level` is the confidence of intervals and of the verdict, `aa_level` that of the control
    A'/A; `equivalence_margin` is a ratio minus one (0.01: within 1 %). `looks` are the session
    counts after which one may look and stop, the last of them `sessions`; empty: only at the end.
    `level` is that of all looks together (`protocol.looks` splits it).
    """

    name: str
    warmup_steps: int
    untimed_steps: int
    timed_steps: int
    min_visit_ms: float
    blocks: int
    groups: int
    sessions: int
    level: float = 0.95
    aa_level: float = 0.99
    equivalence_margin: float = 0.01
    looks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = (self.warmup_steps, self.timed_steps, self.blocks, self.groups, self.sessions)
        if min(counts) < 1 or self.untimed_steps < 0 or self.min_visit_ms < 0:
            raise UsageError(f"protocol {self.name!r} has a count below one or a negative figure")
        if self.groups > self.blocks:
            raise UsageError(f"{self.groups} groups cannot share {self.blocks} blocks")
        if not (0.5 < self.level < 1 and 0.5 < self.aa_level < 1 and self.equivalence_margin > 0):
            raise UsageError(
                f"protocol {self.name!r}: levels lie between 0.5 and 1, the margin above 0"
            )
        self._check_looks()

    def _check_looks(self) -> None:
        """Each look sees more than the one before, and enough to decide; the last sees all."""
        if not self.looks:
            return
        ascending = all(before < after for before, after in pairwise(self.looks))
        if not ascending or self.looks[0] < FEWEST_SESSIONS or self.looks[-1] != self.sessions:
            planned = ", ".join(map(str, self.looks))
            raise UsageError(
                f"protocol {self.name!r} cannot look after {planned} of {self.sessions} sessions",
                hint=f"looks ascend, from {FEWEST_SESSIONS} at the least to the last session",
            )


# What three sessions of four groups cannot hold (tests/calibration): an arm that alone runs at one
# of two speeds by session is falsely called faster or slower in about 23 % of runs (7 % with eight
# sessions); one that is 5 % slow in a fifth of its groups, and on average no slower, in about 8 %,
# because .8^12 of all runs meet no slow group. RIGOROUS holds the latter.
CANONICAL = Protocol(
    name="canonical",
    warmup_steps=50,
    untimed_steps=5,
    timed_steps=30,
    min_visit_ms=20.0,
    blocks=12,
    groups=4,
    sessions=3,
)
RIGOROUS = msgspec.structs.replace(CANONICAL, name="rigorous", blocks=40, groups=10, sessions=8)
# The error rate of 5 % is spent on three looks, nearly all of it on the last: large differences end
# the run early, and small ones are tested at the end almost as `rigorous` tests them.
SEQUENTIAL = msgspec.structs.replace(RIGOROUS, name="sequential", looks=(3, 5, 8))
# One short session shows that everything runs; it can earn no verdict.
QUICK = Protocol(
    name="quick",
    warmup_steps=20,
    untimed_steps=1,
    timed_steps=5,
    min_visit_ms=0.0,
    blocks=4,
    groups=2,
    sessions=1,
)
PRESETS = {protocol.name: protocol for protocol in (CANONICAL, RIGOROUS, SEQUENTIAL, QUICK)}


def preset(name: str) -> Protocol:
    """The protocol of that name; `UsageError` with the nearest one otherwise."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PRESETS)}"
    raise UsageError(f"no protocol is called {name!r}", hint=hint)
