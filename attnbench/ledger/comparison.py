"""What changed between two sets of results, aligned by cell and arm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.ledger.entry import (
    VERDICTS,
    Entry,
    Estimate,
    cell_key,
    circumstances,
    entry,
)
from attnbench.ledger.folding import State, Status
from attnbench.ledger.record import Record


@dataclass(frozen=True)
class Side:
    """Results to compare, what to call them, and the standing of the records they are among."""

    label: str
    results: tuple[Record, ...]
    state: State


@dataclass(frozen=True)
class Change:
    """One arm in one cell, before and after; a side that lacks it is None.

    `latency_ratio` is the median time after over the median before, without an interval: the times
    come from different runs, whose machine states did not cancel. `speedup_ratio` is the speed-up
    over the baseline after over before (see `ratio_of_ratios`).
    """

    cell: Mapping[str, Any]
    arm: str
    before: Entry | None
    after: Entry | None
    latency_ratio: float | None
    speedup_ratio: Estimate | None
    verdict_changes: Mapping[str, tuple[str, str]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A circumstance that is not the same on both sides."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Diff:
    """Two sides, arm by arm. `not_comparable` says why nothing could be aligned, or is empty.

    `unchanged` counts the results that are the same record on both sides, standing as they did:
    they are in no change, since a record is not independent of itself.
    """

    before: str
    after: str
    not_comparable: str
    unchanged: int
    changes: tuple[Change, ...]
    circumstances: tuple[Difference, ...]
    only_before: tuple[Mapping[str, Any], ...]
    only_after: tuple[Mapping[str, Any], ...]


def diff(before: Side, after: Side) -> Diff:
    """Align two sides by cell and arm, or by method where the arm's name changed.

    Where a side has several results for one arm, the last one that is live counts; where none is,
    the last tainted or retracted one, which is marked. Two single results of one cell are compared
    whatever their arms.
    """
    befores, afters = _by_cell(before), _by_cell(after)
    shared = [key for key in befores if key in afters]
    aligned = [pair for key in shared for pair in _pairs(befores[key], afters[key])]
    pairs = [pair for pair in aligned if not _is_unchanged(*pair, before.state, after.state)]
    return Diff(
        before=before.label,
        after=after.label,
        not_comparable="" if shared else _why_not(before, after),
        unchanged=len(aligned) - len(pairs),
        changes=tuple(_change(old, new, before.state, after.state) for old, new in pairs),
        circumstances=tuple(_differences(pairs)),
        only_before=tuple(_cells(befores, afters)),
        only_after=tuple(_cells(afters, befores)),
    )


def ratio_of_ratios(before: Estimate, after: Estimate) -> Estimate:
    """Return after / before, with the interval of two independent estimates.

    On the log scale the estimates subtract and their half-widths add in quadrature, each limit with
    the half-widths that face it (the method of variance estimates recovery, Zou and Donner 2008,
    Statistics in Medicine 27:1693; for symmetric intervals: h = √(h₁² + h₂²)). There is none where
    an interval is missing or their levels differ. What two runs of one machine share, such as a
    driver, makes them less independent than this assumes.
    """
    estimate = after.estimate / before.estimate
    old, new = _log_limits(before), _log_limits(after)
    if old is None or new is None or before.level != after.level:
        return Estimate(estimate)
    down = math.hypot(new[1] - new[0], old[2] - old[1])
    up = math.hypot(new[2] - new[1], old[1] - old[0])
    return Estimate(estimate, estimate * math.exp(-down), estimate * math.exp(up), after.level)


def _log_limits(value: Estimate) -> tuple[float, float, float] | None:
    if value.low is None or value.high is None:
        return None
    return math.log(value.low), math.log(value.estimate), math.log(value.high)


_Arms = dict[str, Record]


def _by_cell(side: Side) -> dict[str, _Arms]:
    standing = {Status.LIVE: 2, Status.TAINTED: 1, Status.RETRACTED: 0}
    cells: dict[str, _Arms] = {}
    for record in side.results:
        arms, arm = cells.setdefault(cell_key(record), {}), str(record.body.get("arm", ""))
        rank = standing[side.state.statuses[record.id]]
        if arm not in arms or rank >= standing[side.state.statuses[arms[arm].id]]:
            arms[arm] = record
    return cells


def _pairs(before: _Arms, after: _Arms) -> Iterator[tuple[Record | None, Record | None]]:
    if len(before) == len(after) == 1:
        yield next(iter(before.values())), next(iter(after.values()))
        return
    left_over = {arm: record for arm, record in after.items() if arm not in before}
    for arm, old in before.items():
        yield old, after.get(arm) or _pop_same_method(old, left_over)
    for new in left_over.values():
        yield None, new


def _pop_same_method(old: Record, left_over: _Arms) -> Record | None:
    method = old.body.get("method")
    same = [arm for arm, new in left_over.items() if new.body.get("method") == method]
    return left_over.pop(same[0]) if len(same) == 1 else None


def _is_unchanged(
    old: Record | None, new: Record | None, old_state: State, new_state: State
) -> bool:
    if old is None or new is None or old.id != new.id:
        return False
    return old_state.statuses[old.id] is new_state.statuses[new.id]


def _change(old: Record | None, new: Record | None, old_state: State, new_state: State) -> Change:
    shown = [record for record in (old, new) if record is not None][-1]
    before = entry(old, old_state) if old else None
    after = entry(new, new_state) if new else None
    both = (before, after) if before and after else None
    return Change(
        cell=shown.body["cell"],
        arm=str(shown.body.get("arm", "")),
        before=before,
        after=after,
        latency_ratio=_latency_ratio(*both) if both else None,
        speedup_ratio=_speedup_ratio(*both) if both else None,
        verdict_changes=_verdict_changes(*both) if both else {},
        notes=tuple(_notes(*both)) if both else (),
    )


def _latency_ratio(before: Entry, after: Entry) -> float | None:
    if not before.median_ms or not after.median_ms:
        return None
    return after.median_ms / before.median_ms


def _speedup_ratio(before: Entry, after: Entry) -> Estimate | None:
    if before.speedup is None or after.speedup is None:
        return None
    return ratio_of_ratios(before.speedup, after.speedup)


def _verdict_changes(before: Entry, after: Entry) -> dict[str, tuple[str, str]]:
    pairs = {
        part: (before.verdicts.get(part, ""), after.verdicts.get(part, "")) for part in VERDICTS
    }
    return {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}


def _notes(before: Entry, after: Entry) -> Iterator[str]:
    """Say what was not the same thing on both sides, so that the ratio may mean something else."""
    for what in ("arm", "method", "baseline"):
        old, new = getattr(before, what), getattr(after, what)
        if old != new:
            yield f"{what} {old} → {new}"
    if before.source_sha256 != after.source_sha256:
        yield "the method's source changed"
    if before.kernel != after.kernel:
        yield f"kernel: {_unlike(before.kernel, after.kernel)}"


def _differences(
    pairs: Iterable[tuple[Record | None, Record | None]],
) -> Iterator[Difference]:
    compared = [(circumstances(old), circumstances(new)) for old, new in pairs if old and new]
    for what in sorted({what for pair in compared for side in pair for what in side}):
        before, after = (_values(what, [pair[side] for pair in compared]) for side in (0, 1))
        if before != after:
            yield Difference(what, before, after)


def _values(what: str, sides: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(sorted({side.get(what, "not recorded") for side in sides}))


def _cells(cells: Mapping[str, _Arms], others: Mapping[str, _Arms]) -> Iterator[Mapping[str, Any]]:
    for key, arms in cells.items():
        if key not in others:
            yield next(iter(arms.values())).body["cell"]


def _why_not(before: Side, after: Side) -> str:
    for side in (before, after):
        if not side.results:
            return f"{side.label} holds no results"
    cells = [next(iter(side.results)).body["cell"] for side in (before, after)]
    if any(len(_by_cell(side)) > 1 for side in (before, after)):
        return "they have no cell in common"
    how = _unlike(*cells) or "the file of the model holds other weights"
    return f"their cells differ: {how}"


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name)} → {after.get(name)}" for name in names)
