"""What a ledger holds, sorted by what a page says of it."""

from __future__ import annotations

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

SHORT = 12  # characters of an id
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
    """The records of a ledger, oldest first, and their standing."""

    name: str
    records: Sequence[Record]
    state: State

    @classmethod
    def of(cls, ledger: Ledger) -> Reading:
        """Read and check all of it; raises what `Ledger.records` raises."""
        records = tuple(ledger.records())
        return cls(ledger.path.name, records, fold(records))

    def of_kind(self, *kinds: Kind) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.kind in kinds)

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
        results = (r for r in self.of_kind(Kind.RESULT) if "footprint" not in r.body)
        return tuple((record, _read(record)) for record in results)

    def find(self, prefix: object) -> Record | None:
        """The one record whose id begins so."""
        if not isinstance(prefix, str) or len(prefix) < SHORT:
            return None
        return self.by_id.get(prefix) or self._beginning(prefix)

    def _beginning(self, prefix: str) -> Record | None:
        found = [record for record in self.records if record.id.startswith(prefix)]
        return found[0] if len(found) == 1 else None

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
