"""Whether an arm's place in a block, or the arm before it, changed the times of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from attnbench.protocol.cell import Role
from attnbench.protocol.result import ArmResult, Interval, Statistics

POSITION = "position (last place over first)"
CARRY_OVER = "carry-over (visits right after an arm over others)"


def marked(result: ArmResult) -> str:
    """The method; of the baseline pair with what tells the two apart."""
    marks = {Role.BASELINE: " (A)", Role.BASELINE_AGAIN: " (A′)"}
    return result.method + marks.get(result.role, "")


@dataclass(frozen=True)
class _Effect:
    """A ratio of times of one arm, and what it is of."""

    arm: str
    what: str
    ratio: Interval

    @property
    def is_seen(self) -> bool:
        return not self.ratio.low <= 1 <= self.ratio.high

    def __str__(self) -> str:
        ratio = self.ratio
        interval = f"{ratio.low - 1:+.2%} to {ratio.high - 1:+.2%}"
        return f"{self.arm} {ratio.estimate - 1:+.2%} ({interval})"


def order_note(results: Sequence[ArmResult]) -> Iterator[str]:
    """One line, where the orders that ran can tell: the effects seen, or how small they all are."""
    effects = [effect for result in results for effect in _effects(result)]
    if not effects:
        return
    seen = [effect for effect in effects if effect.is_seen]
    if seen:
        said = " · ".join(f"{what}: {_joined(of)}" for what, of in _by_kind(seen))
        yield f"order: {said}; {len(seen)} of {len(effects)} intervals, by chance 1 in 20."
        return
    largest = [f"{what}, largest {max(of, key=_size)}" for what, of in _by_kind(effects)]
    yield f"order: no effect of {', nor of '.join(largest)}."


def _by_kind(effects: Sequence[_Effect]) -> Iterator[tuple[str, list[_Effect]]]:
    for what in dict.fromkeys(effect.what for effect in effects):
        yield what, [effect for effect in effects if effect.what == what]


def _joined(effects: Sequence[_Effect]) -> str:
    return ", ".join(map(str, effects))


def _size(effect: _Effect) -> float:
    return abs(effect.ratio.estimate - 1)


def _effects(result: ArmResult) -> Iterator[_Effect]:
    if result.statistics is UNSET:
        return
    found: Statistics = result.statistics
    for what, ratio in ((POSITION, found.position_effect), (CARRY_OVER, found.carry_over)):
        if ratio is not UNSET:
            yield _Effect(marked(result), what, ratio)
