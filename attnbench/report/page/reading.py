"""What a ledger holds, sorted by what a page says of it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec

from attnbench.ledger import Kind, Ledger, Record, State, Status, fold
from attnbench.ledger.lookup import is_of_an_arm
from attnbench.protocol import appraisal, result
from attnbench.protocol.appraisal import ArmQuality
from attnbench.protocol.calibration_result import CalibrationResult
from attnbench.protocol.cell import Role
from attnbench.protocol.result import ArmResult
from attnbench.report.page.selection import Chosen, Selection, choose, run_of

SHORT = 12  # characters of an id
EVERYTHING = Selection()
_PREFIX = re.compile(rf"[0-9a-f]{{{SHORT},64}}")
_Result = ArmResult | ArmQuality | CalibrationResult


@dataclass(frozen=True)
class Arm:
    """The result of one arm, its record and whether it counts."""

    record: Record
    result: ArmResult
    status: Status

    @property
    def counts(self) -> bool:
        return self.status is Status.LIVE

    @property
    def on_gpu(self) -> bool:
        """Only a GPU's absolute times mean anything elsewhere."""
        return is_gpu(self.result.environment)

    @property
    def is_under_test(self) -> bool:
        return self.result.role not in (Role.BASELINE, Role.BASELINE_AGAIN)


@dataclass(frozen=True)
class Calibration:
    """What a calibration found, its record and whether it counts."""

    record: Record
    result: CalibrationResult
    status: Status


@dataclass(frozen=True)
class Appraised:
    """What the quality gates alone said of an arm, its record and whether it counts."""

    record: Record
    result: ArmQuality
    status: Status


@dataclass(frozen=True)
class Reading:
    """The records of a ledger, oldest first, their standing, and the runs that are shown of it."""

    name: str
    records: Sequence[Record]
    state: State
    chosen: Chosen

    @classmethod
    def of(cls, ledger: Ledger, selection: Selection = EVERYTHING) -> Reading:
        """Read and check all of it; raises what `Ledger.records` and `choose` raise."""
        records = tuple(ledger.records())
        return cls(ledger.path.name, records, fold(records), choose(records, selection))

    @cached_property
    def shown(self) -> tuple[Record, ...]:
        """All records but those of other runs."""
        return tuple(record for record in self.records if self.chosen.holds(record))

    def of_kind(self, *kinds: Kind) -> tuple[Record, ...]:
        """Those that are shown."""
        return tuple(record for record in self.shown if record.kind in kinds)

    def status(self, record: Record) -> Status:
        return self.state.statuses[record.id]

    @cached_property
    def by_id(self) -> Mapping[str, Record]:
        return {record.id: record for record in self.records}

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(
            Arm(record, read, self.status(record))
            for record, read in self._read
            if isinstance(read, ArmResult)
        )

    @cached_property
    def calibrations(self) -> tuple[Calibration, ...]:
        return tuple(
            Calibration(record, read, self.status(record))
            for record, read in self._read
            if isinstance(read, CalibrationResult)
        )

    @cached_property
    def appraisals(self) -> tuple[Appraised, ...]:
        return tuple(
            Appraised(record, read, self.status(record))
            for record, read in self._read
            if isinstance(read, ArmQuality)
        )

    @cached_property
    def unread(self) -> tuple[tuple[Record, str], ...]:
        """Results that lack what this version needs, and what that is."""
        return tuple((record, read) for record, read in self._read if isinstance(read, str))

    @cached_property
    def _read(self) -> tuple[tuple[Record, _Result | str], ...]:
        elsewhere = {"footprint", "training"}
        results = (r for r in self.of_kind(Kind.RESULT) if not elsewhere & r.body.keys())
        return tuple((record, _read(record)) for record in results)

    def find(self, prefix: object) -> Record | None:
        """The one record whose id begins so."""
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            return None
        at = bisect_left(self._ids, prefix)
        found = [id for id in self._ids[at : at + 2] if id.startswith(prefix)]
        return self.by_id[found[0]] if len(found) == 1 else None

    @cached_property
    def _ids(self) -> Sequence[str]:
        return sorted(self.by_id)

    @cached_property
    def tainted(self) -> Mapping[str, Sequence[Record]]:
        """By the id of what was retracted, the records that are tainted by it, oldest first."""
        found: defaultdict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            if self.status(record) is Status.TAINTED:
                for root in self.state.tainted_by[record.id]:
                    found[root].append(record)
        return found

    @cached_property
    def openings(self) -> Mapping[str, Sequence[Record]]:
        """By run, the opening records of its sessions, shown or not."""
        found: defaultdict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            if record.kind is Kind.SESSION and record.body.get("phase") == "opened":
                found[run_of(record)].append(record)
        return found

    def arm(self, id: str) -> Arm | None:
        """The result of an arm, shown or not; None where the id is none's."""
        record = self.by_id.get(id)
        read = _read(record) if record is not None and is_of_an_arm(record) else None
        if record is None or not isinstance(read, ArmResult):
            return None
        return Arm(record, read, self.status(record))

    def doubts(self, record: Record) -> list[Record]:
        """The concerns and corrections about it that stand."""
        about = (self.by_id[id] for id in self.state.remarks.get(record.id, ()))
        kinds = (Kind.CONCERN, Kind.CORRECTION)
        return [r for r in about if r.kind in kinds and self.status(r) is Status.LIVE]

    def environments(self) -> Iterator[tuple[Record, Mapping[str, object]]]:
        """Every record that says where it was measured."""
        for record in self.of_kind(Kind.SESSION, Kind.RESULT):
            environment = record.body.get("environment")
            if isinstance(environment, Mapping) and environment:
                yield record, environment


def is_gpu(environment: Mapping[str, object]) -> bool:
    return bool(environment.get("cuda"))


def day(record: Record) -> str:
    """When it was written, to the minute, UTC."""
    return record.utc[:16].replace("T", " ")


def _read(record: Record) -> _Result | str:
    try:
        if is_of_an_arm(record):
            return result.as_earned(msgspec.convert(record.body, ArmResult))
        if "appraisal" in record.body:
            return appraisal.as_earned(msgspec.convert(record.body, ArmQuality))
        return msgspec.convert(record.body, CalibrationResult)
    except msgspec.ValidationError as missing:
        return str(missing)
