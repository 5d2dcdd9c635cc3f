"""Work that recurs in a long run of steps, and whether timed steps hold it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

SLOW = 2.0  # times the steps around it
AROUND = 16  # steps before it, and after it
# Of the time of usual steps, what work that no timed step holds may take.
UNTIMED_SHARE = 0.01
# A visit as long as one and a half periods holds one of them or two, according to where it begins.
PHASE = 2.0


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one layer in a row. `slow` of them took twice what those around them took and more;
    `excess_us` is what they took beyond. `rarest`: the most steps from the first, or from a slow
    one, to the next slow one; 0 where there is none."""

    steps: int
    total_us: float
    slow: int
    excess_us: float
    rarest: int

    @property
    def share(self) -> float:
        """What recurs, over the time that the steps take without."""
        return self.excess_us / (self.total_us - self.excess_us) if self.steps else 0.0


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """Of an arm: steps while its cache grows by one token each, those that go on from there at one
    length, and as many as a visit has, as they are timed."""

    grown: Stretch
    stood: Stretch
    timed: Stretch

    @property
    def worse(self) -> Stretch:
        """Of the first two the one of which more recurs: what comes with the length is in the first
        alone, and what comes seldom perhaps in the second."""
        return max(self.grown, self.stood, key=lambda stretch: stretch.share)


def stretch_of(steps_us: Sequence[float]) -> Stretch:
    """What is slow beside its neighbours; steps that grow slower and slower are not."""
    slow: dict[int, float] = {}
    for number, us in enumerate(steps_us):
        usual = median(steps_us[max(0, number - AROUND) : number + AROUND + 1])
        if us >= SLOW * usual:
            slow[number + 1] = us - usual
    gaps = [after - before for before, after in zip((0, *slow), slow, strict=False)]
    return Stretch(
        steps=len(steps_us),
        total_us=sum(steps_us),
        slow=len(slow),
        excess_us=sum(slow.values()),
        rarest=max(gaps, default=0),
    )


def looks_untimed(seen: Growth) -> bool:
    """Whether more recurs in a long run of steps than in those of a visit."""
    return seen.worse.share > PHASE * seen.timed.share + UNTIMED_SHARE
