"""Whether a comparison shows that something became slower than a limit allows: for a build server.

What decides is the speed-up over the baseline, after against before, with its interval: times of
two runs say little on their own, because the state of the machine did not cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attnbench.errors import Exit
from attnbench.ledger.comparison import Change, Diff
from attnbench.ledger.entry import Estimate
from attnbench.ledger.folding import Status

_NOT_JUDGED = frozenset({"baseline", "baseline_again", "control"})


@dataclass(frozen=True)
class Gate:
    """What a limit says of a comparison: arms that are slower, and what cannot be told."""

    allowed: float
    slower: tuple[str, ...]
    open: tuple[str, ...]

    @property
    def exit_code(self) -> Exit:
        """Done only where every arm was shown to be no slower than allowed."""
        if self.slower:
            return Exit.FALSIFIED
        return Exit.INCONCLUSIVE if self.open else Exit.DONE


def gate(diff: Diff, allowed: float) -> Gate:
    """Judge each arm that is no baseline and no control; `allowed` is a ratio minus one.

    What is the same record on both sides became no slower.
    """
    if diff.not_comparable:
        return Gate(allowed, (), (f"nothing is comparable: {diff.not_comparable}",))
    judged = [change for change in diff.changes if _is_judged(change)]
    slower = tuple(text for change in judged for text in _slower(change, allowed))
    untold = tuple(text for change in judged for text in _untold(change, allowed))
    return Gate(
        allowed, slower, untold if judged or diff.unchanged else ("no arm is on both sides",)
    )


def _is_judged(change: Change) -> bool:
    known = change.after or change.before
    return known is not None and known.role not in _NOT_JUDGED


def _interval(change: Change) -> Estimate | None:
    """The change in speed-up, where two results that count have an interval."""
    ratio = change.speedup_ratio
    if ratio is None or ratio.low is None or ratio.high is None:
        return None
    sides = (change.before, change.after)
    return ratio if all(side and side.status is Status.LIVE for side in sides) else None


def _slower(change: Change, allowed: float) -> Iterator[str]:
    ratio = _interval(change)
    if ratio is not None and ratio.high is not None and ratio.high * (1 + allowed) < 1:
        yield f"{change.arm}: its speed-up changed by {ratio.estimate - 1:+.1%}"


def _untold(change: Change, allowed: float) -> Iterator[str]:
    ratio = _interval(change)
    if ratio is None or ratio.low is None or ratio.high is None:
        yield f"{change.arm}: {_why_untold(change)}"
    elif ratio.low * (1 + allowed) < 1 <= ratio.high * (1 + allowed):
        yield (
            f"{change.arm}: its speed-up changed by {ratio.low - 1:+.1%} to {ratio.high - 1:+.1%}, "
            "and the limit lies between"
        )


def _why_untold(change: Change) -> str:
    for name, side in (("before", change.before), ("after", change.after)):
        if side is None:
            return f"it has no result {name}"
        if side.status is not Status.LIVE:
            return f"its result {name} is {side.status.value}"
    return "its speed-ups carry no interval"
