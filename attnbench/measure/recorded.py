"""A run as its records tell it: the evidence that its verdicts were computed from, once more."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import attnbench
from attnbench.errors import LedgerError
from attnbench.ledger import Ledger, Record
from attnbench.measure.answers import (
    MemoryResult,
    PartFailure,
    PilotResult,
    ProfileResult,
    QualityResult,
    SessionResult,
    SweepResult,
    TaskResult,
)
from attnbench.measure.chosen import without_cheats, without_crowded
from attnbench.measure.evidence import AGAIN, CellArms, Evidence
from attnbench.measure.tasks import PilotTask, QualityTask, SessionTask
from attnbench.protocol.bands import DEFAULT_BANDS, Bands, Gate
from attnbench.protocol.cell import Arm, Cell, Role
from attnbench.protocol.family import Family
from attnbench.protocol.presets import Protocol
from attnbench.protocol.reading import read
from attnbench.protocol.result import Promise

_T = TypeVar("_T")
QUALITY = QualityTask.__struct_config__.tag
NEEDED = (PilotTask.__struct_config__.tag, SessionTask.__struct_config__.tag)
NOT_HELD = "the protocol file that it was judged by is not in this ledger"


class Unreadable(LedgerError):
    """Records that were made in a form from which nothing can be computed again."""


@dataclass(frozen=True)
class RecordedArm:
    """An arm of the run: what its result, or where it has none what the pilot says of it.

    Whether an arm without a result was asked for is not recorded: it was not, or it would have one.
    """

    label: str
    family: Family
    asked_for: bool
    source_sha256: str
    built_in: bool
    claim: float
    pilot_only: bool = False
    twin: str = ""
    named_baseline: bool = False


@dataclass(frozen=True)
class RecordedRequest:
    """How the results say that they were judged."""

    protocol: Protocol
    wants_quality: bool
    promise: Promise | None
    bands: Mapping[Gate, tuple[Bands, ...]] = field(default_factory=lambda: DEFAULT_BANDS)


@dataclass(frozen=True)
class RecordedWeights:
    """What the results say of the model's weights."""

    weights: str


@dataclass(frozen=True)
class RecordedTerms:
    """The terms of a run, as `evidence.Terms`."""

    arms: tuple[RecordedArm, ...]
    dtype: str
    info: RecordedWeights
    request: RecordedRequest


@dataclass(frozen=True)
class Place:
    """The context and batch of some results: what one pilot, its sessions and the rest are of."""

    context: int
    batch: int

    def holds(self, part: Part) -> bool:
        """Whether a part is of this place; quality is judged once a context, at batch 1."""
        alike = part.task["task"] == QUALITY or part.bench["batch"] == self.batch
        return alike and bool(part.bench["context"] == self.context)


@dataclass(frozen=True)
class Part:
    """What a worker was asked to do at one place, what it answered, and the record before that."""

    task: Mapping[str, Any]
    answer: TaskResult | PartFailure
    opening: Mapping[str, Any]

    @property
    def bench(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.task["bench"]
        return found

    @property
    def is_needed(self) -> bool:
        """Whether there are no latencies without it."""
        return self.task["task"] in NEEDED


@dataclass(frozen=True)
class RecordedRun:
    """The results of one run, the closed sessions that they cite, and the openings of these."""

    results: Sequence[Record]
    closed: Sequence[Record]
    opened: Mapping[str, Record]  # by the id of the closing record
    registrations: Mapping[str, Record]  # by the sha256 of the protocol file

    def evidences(self, ledger: Ledger) -> dict[Place, Evidence]:
        """Everything that the workers sent, and what was fixed before, of each place that was
        measured.

        Raises BadBlob where samples are gone, and Unreadable where their form is not known.
        """
        parts = [part for record in self.closed for part in self._parts(ledger, record)]
        places = dict.fromkeys(place_of(record) for record in self.results)
        found = {
            place: RecordedPlace(
                results=[record for record in self.results if place_of(record) == place],
                parts=[part for part in parts if place.holds(part)],
                registrations=self.registrations,
                cites=tuple(record.id for record in self.closed),
            )
            for place in places
        }
        measured = {place: it.evidence() for place, it in found.items() if it.was_measured}
        if not measured:
            raise Unreadable("its results cite no pilot or no sessions", hint=_HINT)
        return measured

    def _parts(self, ledger: Ledger, closed: Record) -> list[Part]:
        answer = sent_by(ledger, closed)
        if closed.id not in self.opened:
            raise Unreadable("nothing says what a session was asked to do", hint=_HINT)
        opening = self.opened[closed.id].body
        task = opening["task"]
        if not isinstance(answer, SweepResult):
            return [Part(task, answer, opening)]
        return [
            Part(asked, part, opening)
            for asked, part in zip(task["parts"], answer.parts, strict=True)
        ]

    @property
    def primary(self) -> Cell | None:
        """The cell whose verdicts stand alone, where the results say which it is."""
        named = (record for record in self.results if record.body.get("primary"))
        return next((_cell(record.body) for record in named), None)


@dataclass(frozen=True)
class RecordedPlace:
    """One place of a run: its results, and what workers were asked and answered there."""

    results: Sequence[Record]
    parts: Sequence[Part]
    registrations: Mapping[str, Record]
    cites: tuple[str, ...]

    @property
    def was_measured(self) -> bool:
        """Whether its pilot and all its sessions ended well: else it was lost to the run."""
        lost = any(isinstance(it.answer, PartFailure) and it.is_needed for it in self.parts)
        ran = self._last(PilotResult) is not None and self._last(SessionResult) is not None
        return ran and not lost

    def evidence(self) -> Evidence:
        """What verdicts are computed from."""
        pilot = self._answer(PilotResult)
        terms = self._terms(pilot)
        quality = _answered(self._last(QualityResult), QualityResult)
        sessions = (_answered(part, SessionResult) for part in self.parts)
        honest = without_cheats(pilot, terms.arms, terms.dtype)
        return Evidence(
            run=str(self._first["run"]),
            plan=terms if quality is None else replace(terms, request=self._with_bands(terms)),
            pilot=without_crowded(honest, terms.arms),
            cells=self._cells(terms),
            sessions=tuple(session for session in sessions if session is not None),
            environment=self._required(PilotResult).opening["environment"],
            memory=_answered(self._last(MemoryResult), MemoryResult),
            quality=quality,
            profile=_answered(self._last(ProfileResult), ProfileResult),
            cites=self.cites,
        )

    @property
    def _first(self) -> Mapping[str, Any]:
        return self.results[0].body

    def _last(self, kind: type[Any]) -> Part | None:
        found = [part for part in self.parts if isinstance(part.answer, kind)]
        return found[-1] if found else None

    def _required(self, kind: type[Any]) -> Part:
        part = self._last(kind)
        if part is None:
            raise Unreadable("its results cite no pilot or no sessions", hint=_HINT)
        return part

    def _answer(self, kind: type[_T]) -> _T:
        answer = _answered(self._required(kind), kind)
        assert answer is not None
        return answer

    def _terms(self, pilot: PilotResult) -> RecordedTerms:
        part = self._required(PilotResult)
        sources = part.opening.get("sources", {})
        said = {record.body["method"]: record.body for record in self.results}
        arms = tuple(
            _arm(arm, said.get(arm["label"]), pilot, sources) for arm in part.bench["arms"]
        )
        verdicts = [record.body["verdict"] for record in self.results]
        return RecordedTerms(
            arms=arms,
            dtype=part.bench["dtype"],
            info=RecordedWeights(str(self._first["environment"].get("weights", ""))),
            request=RecordedRequest(
                protocol=_converted(self._first["protocol"], Protocol),
                wants_quality=all(it.get("quality_reason") != "not-asked" for it in verdicts),
                promise=_promise(self._first),
            ),
        )

    def _with_bands(self, terms: RecordedTerms) -> RecordedRequest:
        """The request with the bands that a protocol file registered, where there is one."""
        promise = terms.request.promise
        if promise is None:
            return terms.request
        registration = self.registrations.get(promise.file_sha256)
        if registration is None:
            raise Unreadable(NOT_HELD)
        source = read(registration.body["text"].encode(), promise.protocol)
        return replace(terms.request, bands=source.file.bands())

    def _cells(self, terms: RecordedTerms) -> tuple[CellArms, ...]:
        """Each cell with its arms in the order of the plan, baseline pair first."""
        task = _converted(self._required(SessionResult).task, SessionTask)
        methods = {arm.label: arm.method for arm in task.bench.arms}
        cells = {(c.scope, c.mode): c for c in (_cell(record.body) for record in self.results)}
        found = []
        for planned in task.cells:
            labels = set(planned.schedule.blocks[0].arms)
            again = next(label for label in labels if label.endswith(AGAIN))
            roles = {again.removesuffix(AGAIN): Role.BASELINE, again: Role.BASELINE_AGAIN}
            roles |= {
                arm.label: _role(arm.family)
                for arm in terms.arms
                if arm.label in labels and arm.label not in roles
            }
            arms = (Arm(label=it, method=methods[it], role=role) for it, role in roles.items())
            if (planned.scope, planned.mode) in cells:
                found.append(CellArms(cells[planned.scope, planned.mode], tuple(arms)))
        return tuple(found)


def sent_by(ledger: Ledger, closed: Record) -> TaskResult:
    """What a worker sent, from the blob that its closing record names."""
    data = ledger.get_blob(str(closed.body["samples"]))
    try:
        result: TaskResult = msgspec.json.decode(gzip.decompress(data), type=TaskResult)
    except (msgspec.MsgspecError, OSError, EOFError, zlib.error) as error:
        raise Unreadable(
            f"the samples of {closed.id[:12]} have another form: {error}", hint=_HINT
        ) from None
    return result


def _arm(
    arm: Mapping[str, Any],
    said: Mapping[str, Any] | None,
    pilot: PilotResult,
    sources: Mapping[str, str],
) -> RecordedArm:
    """An arm of the pilot's task. Records of early versions do not say the sources beforehand."""
    label = arm["label"]
    if said is not None:
        family = Family(said["family"])
    else:  # only whether it is a control matters of an arm without a result
        family = Family.CONTROL if arm["role"] == Role.CONTROL else Family.APPROXIMATE
    ran = pilot.arms[label].failure is None
    return RecordedArm(
        label=label,
        family=family,
        asked_for=said is not None,
        source_sha256=sources.get(label) or str(said["source_sha256"] if said else ""),
        built_in=arm["method"].split(",")[0] in built_in_methods(),
        claim=float(said.get("statistics", {}).get("claim", 0.0)) if said else 0.0,
        pilot_only=said is None and ran,
    )


@cache
def built_in_methods() -> frozenset[str]:
    """The names of the methods in this package: each is the name of its file."""
    folder = Path(attnbench.__file__).parent / "methods"
    return frozenset(path.stem for path in folder.glob("*.py"))


def _role(family: Family) -> Role:
    return Role.CONTROL if family is Family.CONTROL else Role.CANDIDATE


def _cell(body: Mapping[str, Any]) -> Cell:
    return _converted(body["cell"], Cell)


def _promise(body: Mapping[str, Any]) -> Promise | None:
    return _converted(body["promise"], Promise) if "promise" in body else None


def _converted(value: Any, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Unreadable(f"its records have another form: {error}", hint=_HINT) from None


def _answered(part: Part | None, kind: type[_T]) -> _T | None:
    return part.answer if part is not None and isinstance(part.answer, kind) else None


def place_of(record: Record) -> Place:
    """Where a result was measured."""
    cell = record.body["cell"]
    return Place(int(cell["context"]), int(cell["batch"]))


_HINT = "The source that the record names (`commit`) can read it."
