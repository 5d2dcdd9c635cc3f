"""What a protocol's run says of its claim: each cell by the claim's bound, then the file's rule.

A pure function of results. The positive control is asked last of all: where an effect that is known
to be there was not found, nothing that the run says counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import msgspec
from msgspec import UNSET

from attnbench.protocol.appraisal import ArmQuality
from attnbench.protocol.calibration_result import Bias, CalibrationResult
from attnbench.protocol.cell import Cell, Role
from attnbench.protocol.claim import (
    NEXT_STEP,
    ClaimReason,
    ClaimVerdict,
    Direction,
    Observation,
    Outcome,
    claim_verdict,
)
from attnbench.protocol.document import CellPart, ControlPart, ProtocolFile, Quantity, Rule
from attnbench.protocol.order_effect import BLOCKS, SEQUENTIAL
from attnbench.protocol.result import ArmResult, Interval
from attnbench.protocol.verdict import Verdict

# Of several cells or results that all have to hold, the first of these that there is.
AGAINST_ALL = (
    Outcome.FALSIFIED,
    Outcome.VOID,
    Outcome.UNTESTABLE,
    Outcome.INCONCLUSIVE,
    Outcome.SUPPORTED,
)


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the effect that is known to be there was found: all intervals within the limits."""

    what: str
    least: float | None
    greatest: float | None
    found: bool
    intervals: tuple[Interval, ...]


class CellJudgement(msgspec.Struct, frozen=True, kw_only=True):
    """One cell: the value with its intervals (by each centre), the control, and what follows."""

    cell: Cell
    intervals: tuple[Interval, ...]
    control: Control
    verdict: ClaimVerdict
    required: tuple[Control, ...] = ()

    @property
    def value(self) -> float | None:
        """By the first centre; None where it was not measured."""
        return self.intervals[0].estimate if self.intervals else None


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """The claim's verdict, the cell that decided, and all cells in the file's order."""

    verdict: ClaimVerdict
    decisive: CellJudgement
    cells: tuple[CellJudgement, ...]


@dataclass(frozen=True)
class Seen:
    """What was measured in one cell: of the claim, and of the control."""

    cell: Cell
    claimed: Observation
    control: Observation
    required: tuple[Observation, ...] = ()


def judge(file: ProtocolFile, seen: Sequence[Seen]) -> Judgement:
    """The verdict on the file's claim from what was seen in each of its cells, in order."""
    cells = tuple(_judge_cell(file, each, part) for each, part in zip(seen, file.cell, strict=True))
    deciding = cells[: file.deciding] if file.decision.rule is Rule.FIRST else cells
    decisive = min(deciding, key=lambda cell: AGAINST_ALL.index(cell.verdict.outcome))
    return Judgement(verdict=decisive.verdict, decisive=decisive, cells=cells)


def published(file: ProtocolFile, verdict: ClaimVerdict) -> str:
    """The text that applies; where nothing was decided, that and why. A universal claim that held
    here has its text for this one place."""
    if verdict.reason is ClaimReason.ONE_PLACE:
        return f"In one place, which cannot support it everywhere: {file.publish.if_holds}"
    decided = {
        Outcome.SUPPORTED: file.publish.if_holds,
        Outcome.FALSIFIED: file.publish.if_fails,
    }
    undecided = (
        f"Nothing is said of this claim: {verdict.outcome.value} ({verdict.reason.value}). "
        f"{verdict.next_step[:1].upper()}{verdict.next_step[1:]}."
    )
    return decided.get(verdict.outcome, undecided)


def seen_in(file: ProtocolFile, results: Sequence[ArmResult], labels: Mapping[str, str]) -> Seen:
    """What the arms of one cell say; `labels` are the arms' names in the run, by those of the file.

    Raises StopIteration for a cell without results.
    """
    baseline = next(result for result in results if result.role is Role.BASELINE)
    by_method = {
        result.method: result for result in results if result.role is not Role.BASELINE_AGAIN
    }
    observe = _bytes_of if file.claim.quantity is Quantity.KV_BYTES else _speed_of
    control = file.control
    assert isinstance(control, ControlPart)  # the file was checked
    return Seen(
        cell=baseline.cell,
        claimed=observe(by_method[labels[file.claim.arm]], baseline),
        control=observe(by_method[labels[control.arm]], baseline),
    )


def quality_seen(
    file: ProtocolFile, part: CellPart, results: Sequence[ArmQuality], labels: Mapping[str, str]
) -> Seen:
    """What the gates of one cell say; `labels` are the arms' names in the run."""
    by_arm = {result.arm: result for result in results}
    control = file.control
    assert isinstance(control, ControlPart)  # the file was checked
    quantity = file.claim.quantity
    at = results[0].cell
    return Seen(
        cell=Cell(
            model=at.model,
            context=at.context,
            batch=part.batch,
            dtype=at.dtype,
            scope=part.scope,
            mode=part.mode,
            device=at.device,
        ),
        claimed=_gated(by_arm[labels[file.claim.arm]], quantity),
        control=_gated(by_arm[labels[control.arm]], quantity),
        required=tuple(_gated(by_arm[labels[it.arm]], it.quantity) for it in file.require),
    )


def order_seen(result: CalibrationResult) -> Seen:
    """What an order effect says: one arm after the other of the claim, blocks of the control."""
    biases = {} if result.order_effect is UNSET else {b.how: b for b in result.order_effect}
    return Seen(
        cell=result.cell,
        claimed=_bias(result, biases.get(SEQUENTIAL)),
        control=_bias(result, biases.get(BLOCKS)),
    )


def _judge_cell(file: ProtocolFile, seen: Seen, part: CellPart) -> CellJudgement:
    control = _control(file, seen.control)
    claim = file.claim_of(gpu=part.gpu or seen.cell.device, model=seen.cell.model)
    claimed = _as_share(seen.claimed, part.claimed)
    verdict = claim_verdict(claim, claimed)
    if not control.found and verdict.outcome not in (Outcome.VOID, Outcome.UNTESTABLE):
        advice = NEXT_STEP[ClaimReason.CONTROL_NOT_FOUND]
        verdict = ClaimVerdict(
            outcome=Outcome.VOID,
            reason=ClaimReason.CONTROL_NOT_FOUND,
            next_step=f"{advice}: {control.what} is {_in_words(control.intervals)}",
        )
    required = tuple(
        _within(each.least, each.greatest, f"{each.quantity.value} of {each.arm}", observed)
        for each, observed in zip(file.require, seen.required, strict=True)
    )
    missed = next((each for each in required if not each.found), None)
    if missed is not None and verdict.outcome not in (Outcome.VOID, Outcome.UNTESTABLE):
        advice = NEXT_STEP[ClaimReason.REQUIREMENT_MISSED]
        verdict = ClaimVerdict(
            outcome=Outcome.VOID,
            reason=ClaimReason.REQUIREMENT_MISSED,
            next_step=f"{advice}: {missed.what} is {_in_words(missed.intervals)}",
        )
    return CellJudgement(
        cell=seen.cell,
        intervals=claimed.intervals,
        control=control,
        verdict=verdict,
        required=required,
    )


def _as_share(seen: Observation, claimed: float) -> Observation:
    """Of what the claim names for its cell."""
    if claimed == 1:
        return seen
    intervals = (
        Interval(
            estimate=each.estimate / claimed,
            low=each.low / claimed,
            high=each.high / claimed,
            level=each.level,
        )
        for each in seen.intervals
    )
    return msgspec.structs.replace(seen, intervals=tuple(intervals))


def _control(file: ProtocolFile, seen: Observation) -> Control:
    least, greatest, what = _limits(file)
    return _within(least, greatest, what, seen)


def _within(least: float, greatest: float, what: str, seen: Observation) -> Control:
    found = bool(seen.intervals) and seen.latency != Verdict.VOID
    return Control(
        what=what,
        least=None if least == -inf else least,
        greatest=None if greatest == inf else greatest,
        found=found and all(least <= i.low and i.high <= greatest for i in seen.intervals),
        intervals=seen.intervals,
    )


def _limits(file: ProtocolFile) -> tuple[float, float, str]:
    """Between which the control must lie, and what it is."""
    control = file.control
    if not isinstance(control, ControlPart):
        margin = file.protocol().equivalence_margin
        return 1 / (1 + margin), 1 + margin, "one method over itself in blocks"
    what = f"{file.claim.quantity.value} of {control.arm}"
    if control.direction is Direction.AT_LEAST:
        return control.bound, inf, what
    return -inf, control.bound, what


def _in_words(intervals: Sequence[Interval]) -> str:
    if not intervals:
        return "not measured"
    return " and ".join(f"{each.low:.4g} to {each.high:.4g}" for each in intervals)


def _speed_of(result: ArmResult, baseline: ArmResult) -> Observation:
    del baseline  # the ratio is to it
    return Observation.of_speed(result)


def _bytes_of(result: ArmResult, baseline: ArmResult) -> Observation:
    """Bytes have no interval: what is counted is what there is. A doubtful count is VOID."""
    bare = Observation(
        intervals=(),
        gpu=result.cell.device,
        model=result.cell.model,
        latency=Verdict.VOID.value if result.verdict.memory == "VOID" else "",
        quality=result.verdict.quality,
        next_step=result.verdict.memory_reason,
    )
    if result.memory is UNSET or baseline.memory is UNSET:
        return bare
    share = int(result.memory["reachable_bytes"]) / int(baseline.memory["reachable_bytes"])
    counted = Interval(estimate=share, low=share, high=share, level=1.0)
    return msgspec.structs.replace(bare, intervals=(counted,))


def _gated(result: ArmQuality, quantity: Quantity) -> Observation:
    """A figure of the quality gates; an arm without samples has none."""
    found = {} if result.quantities is UNSET else result.quantities
    interval = found.get(quantity.value)
    return Observation(
        intervals=() if interval is None else (interval,),
        gpu=result.cell.device,
        model=result.cell.model,
        quality=result.verdict.quality,
        next_step=result.verdict.next_step,
    )


def _bias(result: CalibrationResult, bias: Bias | None) -> Observation:
    intervals = () if bias is None else (bias.ratio, bias.of_medians)
    return Observation(
        intervals=tuple(each for each in intervals if each is not UNSET),
        gpu=result.cell.device,
        model=result.cell.model,
    )
