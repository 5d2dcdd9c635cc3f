"""Every result of a ledger once more, from its raw samples, and every verdict on a claim from what
it cites; and what of it is not as recorded.

Nothing is measured and nothing recorded. Of a result of arms all members are built again; of a
calibration its findings. What a comparison of the two says of a record:

- SAME: every recorded member has these bytes in canonical JSON;
- ROUNDING: numbers differ by less than a billionth, since libraries add in another order;
- MORE: today's source says more than the record did, and what that said is the same;
- DIFFERS: a recorded member has another value today, or none;
- UNPROMISED: of an exploratory run, whose protocol file is not in the ledger; it counts nowhere;
- UNREADABLE: today's source cannot read the samples of the record.

A record that DIFFERS though it was made by the very source that compares contradicts its own
samples: the ledger is broken. One that another source made may differ because the statistics were
changed since; whether that is so, only its own source can tell, so that the check stays
inconclusive until the ledger itself says what is wrong: a correction of the record, or its
retraction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from attnbench.errors import Exit, UsageError
from attnbench.ledger import Json, Kind, Ledger, Record, State, fold
from attnbench.ledger.canonical import canonical_bytes
from attnbench.ledger.promises import is_opening
from attnbench.ledger.record import Envelope
from attnbench.ledger.source import TOOL, source_commit
from attnbench.ledger.survey import Survey, survey
from attnbench.measure.answers import PilotResult, QualityResult, SessionResult
from attnbench.measure.appraised import rejudged
from attnbench.measure.claims_again import ClaimsAgain
from attnbench.measure.injected import full_layers, injected_by
from attnbench.measure.recorded import NOT_HELD, RecordedRun, Unreadable, place_of, sent_by
from attnbench.measure.verdicts import arm_results
from attnbench.protocol.calibration import Calibrated, findings
from attnbench.protocol.calibration_result import ORDER_EFFECT
from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.order_effect import BLOCKS, SEQUENTIAL, bias
from attnbench.protocol.presets import Protocol
from attnbench.protocol.registration import registrations
from attnbench.protocol.training import retrained
from attnbench.protocol.verdict import Verdict

ROUNDING = 1e-9  # relative
NEAR_ZERO = 1e-15  # below it two numbers are both nothing


class Outcome(StrEnum):
    """How a record compares with what its samples say today."""

    SAME = "same"
    ROUNDING = "rounding"
    MORE = "more"
    UNPROMISED = "unpromised"
    DIFFERS = "differs"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Difference:
    """One member of a body, as canonical JSON; None on the side that does not have it."""

    member: str
    recorded: str | None
    rebuilt: str | None
    outcome: Outcome


@dataclass(frozen=True)
class Rechecked:
    """One result and how it compares; `settled_by` are its corrections and its retraction."""

    id: str
    seq: int
    what: str
    tool: str
    commit: str | None
    outcome: Outcome
    differences: tuple[Difference, ...] = ()
    why: str = ""
    settled_by: tuple[str, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether the source that made it is the one that compares."""
        return (self.tool, self.commit) == (TOOL, source_commit()) and not self._is_dirty

    @property
    def _is_dirty(self) -> bool:
        return self.commit is None or self.commit.endswith("-dirty")

    @property
    def is_open(self) -> bool:
        """Whether it says something that nobody can vouch for yet."""
        return self.outcome in (Outcome.DIFFERS, Outcome.UNREADABLE) and not self.settled_by


@dataclass(frozen=True)
class Recomputed:
    """All results of a ledger and all its verdicts on claims, each oldest first."""

    results: tuple[Rechecked, ...]
    claims: tuple[Rechecked, ...] = ()

    @property
    def all(self) -> tuple[Rechecked, ...]:
        return (*self.results, *self.claims)

    @property
    def exit_code(self) -> Exit:
        """Broken where a record contradicts its own samples, inconclusive where one may."""
        if any(it.is_open and it.is_own for it in self.all):
            return Exit.LEDGER_BROKEN
        return Exit.INCONCLUSIVE if any(it.is_open for it in self.all) else Exit.DONE


def recompute(ledger: Ledger, run: str = "") -> Recomputed:
    """Build every result again, those of one run at a time, then every verdict on a claim; of a
    `run` its results alone.

    Raises what reading the ledger raises, and BadBlob.
    """
    walk = survey(ledger.path, Wanted(run))
    remarks = walk.records(walk.remarks)
    state, corrections = fold(remarks), {r.id for r in remarks if r.kind is Kind.CORRECTION}
    promises = {r.id: r for r in walk.records(_of_kind(walk, Kind.REGISTRATION))}
    promised = {str(r.body["file_sha256"]): r for r in registrations(promises.values())}
    checked: list[Rechecked] = []
    for seqs in _by_sessions(walk):
        results = walk.records(seqs)
        behind = _behind(walk, results[0], promises)
        rebuilt, why = _rebuilt_or_why(ledger, results, behind, promised)
        checked += (
            _rechecked(record, rebuilt, why, _settled_by(record, state, corrections))
            for record in results
        )
    again = ClaimsAgain(ledger, walk, promised).rebuilt(_of_kind(walk, Kind.CLAIM))
    claims = tuple(
        _compared(record, _claim(record), body, why, _settled_by(record, state, corrections))
        for record, body, why in again
    )
    return Recomputed(tuple(sorted(checked, key=lambda each: each.seq)), claims)


@dataclass(frozen=True)
class Wanted:
    """A look for results, claims and registrations; of one run, for its results alone."""

    run: str = ""

    def __call__(self, text: bytes, about: Envelope) -> Kind | None:
        kind = _WANTED.get(about.kind)
        if not self.run or kind is Kind.REGISTRATION:
            return kind
        return kind if kind is Kind.RESULT and self._is_of_run(text) else None

    def _is_of_run(self, text: bytes) -> bool:
        return f'"run":"{self.run}"'.encode() in text


_WANTED = {kind.value.encode(): kind for kind in (Kind.RESULT, Kind.CLAIM, Kind.REGISTRATION)}


def _of_kind(walk: Survey[Kind], kind: Kind) -> list[int]:
    return [seq for seq, what in walk.finds if what is kind]


def _by_sessions(walk: Survey[Kind]) -> Iterable[list[int]]:
    """The results that rest on the same sessions, which were judged together, by number."""
    results = frozenset(_of_kind(walk, Kind.RESULT))
    cited = {seq: cites for seq, cites in walk.links() if seq in results}
    runs: defaultdict[bytes, list[int]] = defaultdict(list)
    for seq in sorted(results):
        runs[cited.get(seq, b"")].append(seq)
    return runs.values()


def _behind(
    walk: Survey[Kind], result: Record, promises: Mapping[str, Record]
) -> dict[str, Record]:
    """What a result cites and what that cites, as far as it is in this ledger, by id.

    Promises are known already: they may lie far before, where to look for them takes long.
    """
    near = {id: result.seq for id in result.cites if id not in promises}
    cited = walk.records(walk.numbers(near))
    citing = {id: record.seq for record in cited for id in record.cites if id not in promises}
    found = (*walk.records(walk.numbers(citing)), *cited)
    return {**promises, **{record.id: record for record in found}}


def _settled_by(record: Record, state: State, corrections: Collection[str]) -> tuple[str, ...]:
    standing = [
        id
        for id in state.remarks.get(record.id, ())
        if id in corrections and id not in state.retracted_by
    ]
    retraction = state.retracted_by.get(record.id)
    return (*standing, *([retraction] if retraction else []))


_Bodies = Mapping[tuple[str, ...], Mapping[str, Any]]


def _rebuilt_or_why(
    ledger: Ledger,
    results: list[Record],
    by_id: Mapping[str, Record],
    promised: Mapping[str, Record],
) -> tuple[_Bodies, str]:
    """What the samples say today by what each body is of, or why that cannot be told."""
    cited = [by_id[id] for id in results[0].cites if id in by_id]
    closed = [record for record in cited if record.kind is Kind.SESSION]
    opened = {
        record.id: opening
        for record in closed
        for id in record.cites
        if (opening := by_id.get(id)) is not None and is_opening(opening)
    }
    run = RecordedRun(results, closed, opened, promised)
    try:
        if len(cited) < len(results[0].cites) or not closed:
            raise Unreadable("records that it cites are not in this ledger")
        if "training" in results[0].body:
            return {_key(r.body): _trained(ledger, r, run) for r in results}, ""
        if "calibration" in results[0].body:
            return {_key(r.body): _calibration(ledger, r, run) for r in results}, ""
        if "appraisal" in results[0].body:
            return {_key(r.body): _appraisal(ledger, r, run) for r in results}, ""
        evidences = run.evidences(ledger)
        rebuilt = arm_results(*evidences.values(), primary=run.primary)
        found = {_key(body): body for body in map(msgspec.to_builtins, rebuilt)}
        unmeasured = [r.body for r in results if place_of(r) not in evidences and _says_void(r)]
        return found | {_key(body): body for body in unmeasured}, ""
    except Unreadable as error:
        return {}, error.message
    except (KeyError, UsageError) as error:
        return {}, f"its records lack something: {error}"


def _key(body: Mapping[str, Any]) -> tuple[str, ...]:
    """What a body is about, among those of its run."""
    cell = body["cell"]
    about = str(body.get("arm", body.get("calibration", "")))
    return about, *(str(cell.get(name, "")) for name in ("context", "batch", "scope", "mode"))


def _says_void(record: Record) -> bool:
    """Whether it says that its arm was not measured, for which it needs no samples."""
    figures = ("latency_ms", "ratio", "memory", "quality", "statistics")
    void = record.body["verdict"]["latency"] == Verdict.VOID
    return void and not any(name in record.body for name in figures)


def _calibration(ledger: Ledger, record: Record, run: RecordedRun) -> Mapping[str, Any]:
    """The findings of a calibration, and beside them what was recorded as it was asked for."""
    sent = {str(closed.body["session"]): sent_by(ledger, closed) for closed in run.closed}
    sessions = {name: it for name, it in sent.items() if isinstance(it, SessionResult)}
    protocol = msgspec.convert(record.body["protocol"], Protocol)
    if record.body["calibration"] == ORDER_EFFECT:
        ways = {
            how: [_samples(it) for name, it in sessions.items() if name.startswith(how)]
            for how in (SEQUENTIAL, BLOCKS)
        }
        found = [bias(how, samples, protocol.level) for how, samples in ways.items()]
        return {**record.body, "order_effect": msgspec.to_builtins(found)}
    pilot = next(it for it in sent.values() if isinstance(it, PilotResult))
    seen = Calibrated(
        samples=[_samples(session) for session in sessions.values()],
        phases_s=[session.phases_s for session in sessions.values()],
        layers=len(full_layers(pilot)),
        injected=injected_by(pilot),
        protocol=protocol,
    )
    return {**record.body, "findings": msgspec.to_builtins(findings(seen))}


def _appraisal(ledger: Ledger, record: Record, run: RecordedRun) -> Mapping[str, Any]:
    """The gates of one arm, and beside them what was recorded as it was asked for."""
    found = next(
        it for it in (sent_by(ledger, each) for each in run.closed) if isinstance(it, QualityResult)
    )
    return rejudged(record.body, found)


def _trained(ledger: Ledger, record: Record, run: RecordedRun) -> Mapping[str, Any]:
    """What the curves and losses of all models of a run say of one arm."""
    return retrained(record.body, ledger.get_blob(str(run.closed[-1].body["samples"])))


def _samples(session: SessionResult) -> SessionSamples:
    return session.cells[0].samples


def _rechecked(
    record: Record, rebuilt: _Bodies, why: str, settled_by: tuple[str, ...]
) -> Rechecked:
    body = rebuilt.get(_key(record.body))
    if not why and body is None:
        why = "its samples give no result for it"
    what = f"run {record.body.get('run')}, {_key(record.body)[0]}"
    return _compared(record, what, body, why, settled_by)


def _claim(record: Record) -> str:
    return f"claim {record.body.get('key')}"


def _compared(
    record: Record,
    what: str,
    body: Mapping[str, Any] | None,
    why: str,
    settled_by: tuple[str, ...],
) -> Rechecked:
    found = () if body is None else tuple(differences(record.body, body))
    outcomes = [_unbuilt(record, why)] if why else [each.outcome for each in found]
    return Rechecked(
        id=record.id,
        seq=record.seq,
        what=what,
        tool=record.tool,
        commit=record.commit,
        outcome=max(outcomes, key=list(Outcome).index, default=Outcome.SAME),
        differences=found,
        why=why,
        settled_by=settled_by,
    )


def _unbuilt(record: Record, why: str) -> Outcome:
    promise = record.body.get("promise")
    is_exploratory = isinstance(promise, Mapping) and promise.get("exploratory")
    return Outcome.UNPROMISED if is_exploratory and why == NOT_HELD else Outcome.UNREADABLE


def differences(recorded: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> Iterator[Difference]:
    """Every member, down to single values, that is not the same to the byte."""
    old, new = dict(_leaves(recorded, "")), dict(_leaves(rebuilt, ""))
    for member in {**old, **new}:
        before, after = _text(old, member), _text(new, member)
        if before != after:
            outcome = _outcome(old.get(member), new.get(member), before, after)
            yield Difference(member, before, after, outcome)


def _outcome(old: Json, new: Json, before: str | None, after: str | None) -> Outcome:
    if before is None:
        return Outcome.MORE
    if after is not None and _are_numbers(old, new) and _is_rounding(old, new):
        return Outcome.ROUNDING
    return Outcome.DIFFERS


def _are_numbers(*values: Json) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _is_rounding(old: Any, new: Any) -> bool:
    return math.isclose(old, new, rel_tol=ROUNDING, abs_tol=NEAR_ZERO)


def _leaves(value: Any, member: str) -> Iterator[tuple[str, Json]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{member}.{name}".lstrip("."))
    elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{member}[{number}]")
    else:
        yield member, value


def _text(leaves: Mapping[str, Json], member: str) -> str | None:
    return canonical_bytes(leaves[member]).decode() if member in leaves else None
