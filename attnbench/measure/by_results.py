"""A claim decided by what the ledger holds already: by every live result that its rule is about.

Such a verdict is retrospective: nobody promised it before the results were there. So none of them
is chosen. Each that counts is held against the bound, all of them share the rule's error rate, one
that misses the bound falsifies, and all have to hold it for support.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import msgspec

from attnbench.errors import UsageError
from attnbench.ledger import Json, Kind, Ledger, Record, State, Status, fold
from attnbench.ledger.promises import is_opening
from attnbench.measure.evidence import Evidence
from attnbench.measure.recorded import RecordedRun, Unreadable, place_of
from attnbench.protocol.adjudication import Adjudicated
from attnbench.protocol.blocks import session_blocks
from attnbench.protocol.cell import Role, SessionSamples
from attnbench.protocol.claim import Claim, ClaimVerdict, Observation, claim_verdict
from attnbench.protocol.claim_file import ImportedClaim, Rule
from attnbench.protocol.claim_log import BY_RECORDED_RESULTS, Standing, require_imported, standings
from attnbench.protocol.comparison import Comparison, ratio_interval
from attnbench.protocol.decided import BY_RESULTS, STRONGEST, Decided, Measure, same_method
from attnbench.protocol.judgement import AGAINST_ALL
from attnbench.protocol.recomputed.observed import rounded
from attnbench.protocol.registration import registrations
from attnbench.protocol.result import Interval, read_ms
from attnbench.protocol.verdict import Verdict
from attnbench.stats.student import mean_interval

NOTE = "retrospective: by results that were in the ledger before it was decided"


class NothingCounts(UsageError):
    """No live result decides a claim."""


@dataclass(frozen=True)
class Weighed:
    """The verdict, what a record says of it, and what it cites."""

    verdict: ClaimVerdict
    body: dict[str, Json]
    cites: tuple[str, ...]


@dataclass(frozen=True)
class Counted:
    """A result that counts: the sessions' samples of its cell, and what the arms are called."""

    record: Record
    samples: tuple[SessionSamples, ...]
    read_bytes: int
    arm: str
    baseline: str


class Shelf:
    """The records of a ledger up to some point, and the evidence behind their results."""

    def __init__(self, ledger: Ledger, records: Sequence[Record]) -> None:
        self.records = records
        self._ledger = ledger
        self._evidences: dict[tuple[str, ...], Mapping[Any, Evidence]] = {}

    @cached_property
    def state(self) -> State:
        return fold(self.records)

    @cached_property
    def _by_id(self) -> dict[str, Record]:
        return {record.id: record for record in self.records}

    @cached_property
    def results(self) -> list[Record]:
        """Live results of arms, A′ aside, oldest first."""
        return [
            record
            for record in self.records
            if record.kind is Kind.RESULT
            and "arm" in record.body
            and record.body["role"] != Role.BASELINE_AGAIN
            and self.state.statuses[record.id] is Status.LIVE
        ]

    def beside(self, record: Record) -> list[Record]:
        """The results of the same run and cell, itself too."""
        about = (record.body["run"], record.body["cell"])
        return [each for each in self.results if (each.body["run"], each.body["cell"]) == about]

    def evidence(self, record: Record) -> Evidence:
        """What the sessions of a result sent; raises Unreadable and BadBlob."""
        if record.cites not in self._evidences:
            self._evidences[record.cites] = self._recorded(record).evidences(self._ledger)
        places = self._evidences[record.cites]
        if place_of(record) not in places:
            raise Unreadable("its samples give no result for it")
        return places[place_of(record)]

    def _recorded(self, record: Record) -> RecordedRun:
        together = [r for r in self.records if r.kind is Kind.RESULT and r.cites == record.cites]
        cited = [self._by_id[id] for id in record.cites if id in self._by_id]
        closed = [each for each in cited if each.kind is Kind.SESSION]
        opened = {
            each.id: self._by_id[id]
            for each in closed
            for id in each.cites
            if id in self._by_id and is_opening(self._by_id[id])
        }
        promised = {str(r.body["file_sha256"]): r for r in registrations(self.records)}
        return RecordedRun(together, closed, opened, promised)


def is_decided_by_results(claim: ImportedClaim) -> bool:
    """Whether its rule is about a figure of recorded results."""
    decided = claim.entry.rule.decided
    return isinstance(decided, Decided) and decided.quantity in BY_RESULTS


def adjudicate_by_results(
    ledger: Ledger, claims: Sequence[ImportedClaim], *, all_of_them: bool = True
) -> list[Adjudicated]:
    """Judge these claims by all live results and record what was not recorded yet.

    Raises UsageError, before anything is recorded, for a claim that was not imported as it is, and
    for one that no live result decides, which is left out instead without `all_of_them`; and what
    reading and appending raise.
    """
    records = list(ledger.records())
    shelf, so_far = Shelf(ledger, records), standings(records)
    stands = [(claim, require_imported(claim, so_far.get(claim.key))) for claim in claims]
    weighed = []
    for claim, stand in stands:
        try:
            weighed.append((claim, stand, weigh(shelf, stand.imported)))
        except NothingCounts:
            if all_of_them:
                raise
    return [_recorded(ledger, *each) for each in weighed]


def weigh(shelf: Shelf, imported: Record) -> Weighed:
    """What all live results say of a claim; raises NothingCounts, and UsageError where its rule is
    about no figure of results."""
    rule = msgspec.convert(imported.body["rule"], Rule)
    decided = rule.decided
    key = imported.body["key"]
    if not isinstance(decided, Decided) or decided.quantity not in BY_RESULTS:
        raise UsageError(
            f"recorded results do not decide {key}: its rule is about {rule.measures!r}",
            hint=f"Its test: {imported.body['test']}.",
        )
    counted: list[Counted] = []
    left_out: list[dict[str, Json]] = []
    for record in shelf.results:
        if not _is_about(rule, decided, record):
            continue
        found = _counted(shelf, decided, record)
        if isinstance(found, Counted):
            counted.append(found)
        else:
            left_out.append({"result": record.id, "why": found})
    if not counted:
        raise NothingCounts(
            f"no live result of this ledger decides {key}",
            hint=f"{len(left_out)} are about it and do not count. Measure it: {rule.where}."
            if left_out
            else f"None is about it. Measure it: {rule.where}.",
        )
    return _weighed(imported, rule, decided, counted, left_out)


def _weighed(
    imported: Record,
    rule: Rule,
    decided: Decided,
    counted: Sequence[Counted],
    left_out: list[dict[str, Json]],
) -> Weighed:
    level = 1 - (1 - decided.level) / len(counted)
    claim = Claim(
        statement=imported.body["claim"],
        bound=rule.bound,
        direction=rule.direction,
        reach=rule.reach,
        tolerance=rule.tolerance,
        gpu=rule.gpu,
        model=rule.model,
        keeps_quality=rule.keeps_quality,
    )
    seen = [_intervals(decided, each, level) for each in counted]
    said = [
        claim_verdict(claim, _observed(decided, each, intervals))
        for each, intervals in zip(counted, seen, strict=True)
    ]
    verdict = min(said, key=lambda each: AGAINST_ALL.index(each.outcome))
    body: dict[str, Json] = {
        "claim": imported.body["claim"],
        "key": imported.body["key"],
        "system": imported.body["system"],
        "rule_record": imported.id,
        "basis": BY_RECORDED_RESULTS,
        "observed": {
            "low": rounded(min(i.low for intervals in seen for i in intervals)),
            "high": rounded(max(i.high for intervals in seen for i in intervals)),
            "level": rounded(level),
            "unit": rule.unit,
            "note": NOTE,
            "results": [
                _said(each, intervals, one)
                for each, intervals, one in zip(counted, seen, said, strict=True)
            ],
            "left_out": list(left_out),
        },
        "verdict": {
            "claim": verdict.outcome.value,
            "claim_reason": verdict.reason.value,
            "next_step": verdict.next_step,
        },
    }
    return Weighed(verdict, body, (imported.id, *(each.record.id for each in counted)))


def _said(each: Counted, intervals: Sequence[Interval], verdict: ClaimVerdict) -> dict[str, Json]:
    return {
        "result": each.record.id,
        "arm": each.record.body["arm"],
        "run": each.record.body["run"],
        "sessions": len(each.samples),
        "intervals": [
            {"estimate": rounded(i.estimate), "low": rounded(i.low), "high": rounded(i.high)}
            for i in intervals
        ],
        "claim": verdict.outcome.value,
        "claim_reason": verdict.reason.value,
    }


def _is_about(rule: Rule, decided: Decided, record: Record) -> bool:
    """Whether a result is of the arm and the cell that the rule names."""
    body = record.body
    cell = body["cell"]
    named = (("device", rule.gpu), ("model", rule.model))
    if any(there and cell[name] != there for name, there in named):
        return False
    if decided.models and cell["model"] not in decided.models:
        return False
    for name in ("context", "batch", "dtype", "scope", "mode"):
        there = getattr(decided, name)
        if there is not msgspec.UNSET and cell[name] != there:
            return False
    on_cuda = bool(body["environment"].get("cuda"))
    if decided.device is not msgspec.UNSET and on_cuda != (decided.device == "cuda"):
        return False
    return decided.is_arm(body["method"]) or (STRONGEST in decided.arms and _is_strongest(body))


def _is_strongest(body: Mapping[str, Any]) -> bool:
    """Whether it is of the baseline, and that the pilot's choice."""
    return body["role"] == Role.BASELINE and not _named_baseline(body)


def _named_baseline(body: Mapping[str, Any]) -> str:
    return str(body.get("promise", {}).get("baseline", ""))


def _counted(shelf: Shelf, decided: Decided, record: Record) -> Counted | str:
    """The result with its samples, or why it does not count."""
    if _is_void(shelf, record):
        return "VOID by its own checks"
    baseline = _baseline(shelf, decided, record)
    if decided.baseline and not baseline:
        return f"its run has no {decided.baseline} to compare with"
    try:
        evidence = shelf.evidence(record)
    except (Unreadable, KeyError) as error:
        return f"its samples cannot be read: {error}"
    cell, arm = record.body["cell"], str(record.body["arm"])
    parts = [
        part
        for session in evidence.sessions
        for part in session.cells
        if (part.scope, part.mode) == (cell["scope"], cell["mode"]) and arm in part.read_bytes
    ]
    timed = [part for part in parts if _was_timed(part.samples, arm)]
    if len(timed) < max(2, decided.sessions):
        return f"{len(timed)} of {decided.sessions} sessions"
    return Counted(
        record=record,
        samples=tuple(part.samples for part in timed),
        read_bytes=timed[0].read_bytes[arm],
        arm=arm,
        baseline=baseline,
    )


def _is_void(shelf: Shelf, record: Record) -> bool:
    """By its own verdict or, of a baseline, which has none, by that of all that it judged."""
    if record.body["role"] != Role.BASELINE:
        return bool(record.body["verdict"]["latency"] == Verdict.VOID)
    judged = [
        each.body["verdict"]["latency"]
        for each in shelf.beside(record)
        if each.id != record.id and "latency_ms" in each.body
    ]
    return bool(judged) and all(latency == Verdict.VOID for latency in judged)


def _baseline(shelf: Shelf, decided: Decided, record: Record) -> str:
    """What the rule's baseline is called in the run of a result; empty where there is none."""
    body = record.body
    if decided.baseline == STRONGEST:
        return "" if _named_baseline(body) else str(body["baseline"])
    found = (
        str(each.body["arm"])
        for each in shelf.beside(record)
        if same_method(decided.baseline, each.body["method"])
    )
    return next(found, "") if decided.baseline else ""


def _was_timed(samples: SessionSamples, arm: str) -> bool:
    return any(visit.arm == arm for visit in samples.visits)


def _intervals(decided: Decided, each: Counted, level: float) -> tuple[Interval, ...]:
    """Over sessions, of the mean and, of a ratio, of the robust centre, too."""
    if decided.quantity is Measure.SPEED_UP:
        return tuple(_ratios(each, level))
    values = [_value(decided.quantity, each, samples) for samples in each.samples]
    found = mean_interval(values, level)
    return (Interval(estimate=found.mean, low=found.low, high=found.high, level=level),)


def _ratios(each: Counted, level: float) -> Iterator[Interval]:
    pair = (each.baseline, each.arm)
    kept = [found for it in each.samples if (found := session_blocks(it, pair).kept)]
    if len(kept) < 2:
        return
    compared = Comparison.of(kept, each.baseline, each.arm)
    yield ratio_interval(compared.mean(level), level)
    yield ratio_interval(compared.robust(level), level)


def _value(quantity: Measure, each: Counted, samples: SessionSamples) -> float:
    """A session's figure, in the unit of `decided.Measure`."""
    if quantity is Measure.BYTE_FLOOR:
        return read_ms(each.read_bytes, samples.bandwidth_gb_s)
    steps = [us for visit in samples.visits if visit.arm == each.arm for us in visit.steps_us]
    if quantity is Measure.READ_RATE:
        return each.read_bytes / median(steps) / 1e6
    return median(steps) / 1e3


def _observed(decided: Decided, each: Counted, intervals: tuple[Interval, ...]) -> Observation:
    body = each.record.body
    is_ratio = decided.quantity is Measure.SPEED_UP
    said = body["verdict"]
    return Observation(
        intervals=intervals,
        gpu=body["cell"]["device"],
        model=body["cell"]["model"],
        latency=said["latency"] if is_ratio else "",
        latency_reason=said["latency_reason"] if is_ratio else "",
        quality=said["quality"],
    )


def _recorded(
    ledger: Ledger, claim: ImportedClaim, so_far: Standing, weighed: Weighed
) -> Adjudicated:
    same = next((each for each in so_far.decisions if dict(each.body) == weighed.body), None)
    record = same or ledger.append(Kind.CLAIM, weighed.body, cites=weighed.cites)
    return Adjudicated(claim, weighed.verdict, record, is_new=same is None)
