"""A run as its records tell it: the evidence that its verdicts were computed from, once more."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import attnbench
from attnbench.errors import LedgerError
from attnbench.ledger import Ledger, Record
from attnbench.measure.chosen import without_cheats
from attnbench.measure.evidence import AGAIN, CellArms, Evidence
from attnbench.measure.tasks import (
    MemoryResult,
    PilotResult,
    QualityResult,
    SessionResult,
    SessionTask,
    TaskResult,
)
from attnbench.protocol.bands import DEFAULT_BANDS, Bands, Gate
from attnbench.protocol.cell import Arm, Cell, Role
from attnbench.protocol.family import Family
from attnbench.protocol.presets import Protocol
from attnbench.protocol.reading import read
from attnbench.protocol.result import Promise

_T = TypeVar("_T")


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
    quality: bool
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
class RecordedRun:
    """The results of one run, the closed sessions that they cite, and the openings of these."""

    results: Sequence[Record]
    closed: Sequence[Record]
    opened: Mapping[str, Record]  # by the id of the closing record
    registrations: Mapping[str, Record]  # by the sha256 of the protocol file

    def evidence(self, ledger: Ledger) -> Evidence:
        """Everything that the workers sent, and what was fixed before.

        Raises BadBlob where samples are gone, and Unreadable where their form is not known.
        """
        sent = [sent_by(ledger, record) for record in self.closed]
        sessions = tuple(each for each in sent if isinstance(each, SessionResult))
        pilot, quality = _last(sent, PilotResult), _last(sent, QualityResult)
        if pilot is None or not sessions:
            raise Unreadable("its results cite no pilot or no sessions", hint=_HINT)
        terms = self._terms(pilot)
        return Evidence(
            run=str(self._first["run"]),
            plan=terms if quality is None else replace(terms, request=self._with_bands(terms)),
            pilot=without_cheats(pilot, terms.arms, terms.dtype),
            cells=self._cells(terms),
            sessions=sessions,
            environment=self._opening(PilotResult)["environment"],
            memory=_last(sent, MemoryResult),
            quality=quality,
            cites=tuple(record.id for record in self.closed),
        )

    @property
    def _first(self) -> Mapping[str, Any]:
        return self.results[0].body

    def _opening(self, kind: type[Any]) -> Mapping[str, Any]:
        """The body of the record that opened the last task of a kind."""
        tag = kind.__struct_config__.tag
        bodies = [self.opened[record.id].body for record in self.closed if record.id in self.opened]
        found = [body for body in bodies if body["task"]["task"] == tag]
        if not found:
            raise Unreadable(f"nothing says what its {tag} was asked to do", hint=_HINT)
        return found[-1]

    def _terms(self, pilot: PilotResult) -> RecordedTerms:
        opening = self._opening(PilotResult)
        task, sources = opening["task"], opening.get("sources", {})
        said = {record.body["method"]: record.body for record in self.results}
        arms = tuple(
            _arm(arm, said.get(arm["label"]), pilot, sources) for arm in task["bench"]["arms"]
        )
        verdicts = [record.body["verdict"] for record in self.results]
        return RecordedTerms(
            arms=arms,
            dtype=task["bench"]["dtype"],
            info=RecordedWeights(str(self._first["environment"].get("weights", ""))),
            request=RecordedRequest(
                protocol=_converted(self._first["protocol"], Protocol),
                quality=all(verdict.get("quality_reason") != "not-asked" for verdict in verdicts),
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
            raise Unreadable("the protocol file that it was judged by is not in this ledger")
        source = read(registration.body["text"].encode(), promise.protocol)
        return replace(terms.request, bands=source.file.bands())

    def _cells(self, terms: RecordedTerms) -> tuple[CellArms, ...]:
        """Each cell with its arms in the order of the plan, baseline pair first."""
        task = _converted(self._opening(SessionResult)["task"], SessionTask)
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
    data = gzip.decompress(ledger.get_blob(str(closed.body["samples"])))
    try:
        result: TaskResult = msgspec.json.decode(data, type=TaskResult)
    except msgspec.MsgspecError as error:
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


def _last(sent: Sequence[TaskResult], kind: type[_T]) -> _T | None:
    found = [each for each in sent if isinstance(each, kind)]
    return found[-1] if found else None


_HINT = "The source that the record names (`commit`) can read it."
