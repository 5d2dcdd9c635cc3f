"""Verdicts on claims once more, from what they cite: results, arithmetic, and the rule itself.

An import is built again from its own content, which its version is the hash of. A statement that
names no claim and no protocol has no rule, and nothing to be built from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from attnbench.errors import AttnbenchError
from attnbench.ledger import Json, Kind, Ledger, Record
from attnbench.ledger.survey import Survey
from attnbench.measure.by_results import Shelf, weigh
from attnbench.measure.conclusion import claim_body, text_of
from attnbench.measure.recorded import NOT_HELD, Unreadable
from attnbench.protocol.adjudication import adjudicated_again
from attnbench.protocol.appraisal import ArmQuality, QualityCell
from attnbench.protocol.calibration_result import CalibrationResult
from attnbench.protocol.cell import Cell, Role
from attnbench.protocol.claim_log import BY_RECORDED_RESULTS, imported_again, is_import
from attnbench.protocol.decided import same_method
from attnbench.protocol.document import ProtocolFile, Quantity
from attnbench.protocol.imported_rule import require_its_rule
from attnbench.protocol.judgement import Seen, judge, order_seen, quality_seen, seen_in
from attnbench.protocol.reading import read
from attnbench.protocol.result import ArmResult, Promise

AT_ONCE = 500  # claims that are held together
Body = Mapping[str, Json]


class ClaimsAgain:
    """The claims of one ledger; `promised` are its registrations, by the sha256 of their files."""

    def __init__(self, ledger: Ledger, walk: Survey[Any], promised: Mapping[str, Record]) -> None:
        self._ledger = ledger
        self._walk = walk
        self._promised = promised
        self._computed: dict[str, Body] = {}

    def rebuilt(self, seqs: Sequence[int]) -> Iterator[tuple[Record, Body | None, str]]:
        """Every claim that has a rule, with its body by what it cites, or why there is none."""
        for at in range(0, len(seqs), AT_ONCE):
            claims = self._walk.records(seqs[at : at + AT_ONCE])
            cited = {id: record.seq for record in claims for id in record.cites}
            by_id = {r.id: r for r in self._walk.records(self._walk.numbers(cited))}
            for record in claims:
                how = self._how(record)
                if how is None:
                    continue
                try:
                    yield record, how(record, by_id), ""
                except (AttnbenchError, KeyError, ValueError, msgspec.ValidationError) as error:
                    yield record, None, str(error) or repr(error)

    def _how(self, record: Record) -> Callable[[Record, Mapping[str, Record]], Body] | None:
        """What builds its verdict again; None for a statement without a rule, and for what nobody
        promised in a file that the ledger does not hold: it counts nowhere."""
        body = record.body
        if is_import(record):
            return lambda record, _: imported_again(record)
        if "promise" in body:
            promise = body["promise"]
            is_known = promise["file_sha256"] in self._promised
            return self._of_protocol if is_known or not promise["exploratory"] else None
        if body.get("basis") == BY_RECORDED_RESULTS:
            return self._of_results
        if "rule_record" in body:
            return self._of_arithmetic
        return _of_nothing if body.get("key") and "verdict" in body else None

    def _of_protocol(self, record: Record, by_id: Mapping[str, Record]) -> Body:
        promise = msgspec.convert(record.body["promise"], Promise)
        if promise.file_sha256 not in self._promised:
            raise Unreadable(NOT_HELD)
        registration = self._promised[promise.file_sha256]
        source = read(str(registration.body["text"]).encode(), promise.protocol)
        results = [each for each in _cited(record, by_id) if each.kind is Kind.RESULT]
        if any(each.body["run"] != record.body["run"] for each in results):
            raise Unreadable("it cites results of another run than its own")
        imported = _import_of(record, by_id)
        if imported is not None:
            require_its_rule(imported, source.file)
        judgement = judge(source.file, _seen(source.file, results))
        said = claim_body(source, judgement, imported)
        return {**record.body, **said, "text": text_of(source, judgement, promise)}

    def _of_results(self, record: Record, by_id: Mapping[str, Record]) -> Body:
        before = [each for each in self._all if each.seq < record.seq]
        return weigh(Shelf(self._ledger, before), _required_import(record, by_id)).body

    @cached_property
    def _all(self) -> list[Record]:
        return list(self._ledger.records())

    def _of_arithmetic(self, record: Record, by_id: Mapping[str, Record]) -> Body:
        imported = _required_import(record, by_id)
        if imported.id not in self._computed:
            self._computed[imported.id] = adjudicated_again(imported)
        return self._computed[imported.id]


def _of_nothing(_record: Record, _by_id: Mapping[str, Record]) -> Body:
    raise Unreadable("it names no rule, so that nothing can have decided it")


def _cited(record: Record, by_id: Mapping[str, Record]) -> list[Record]:
    if not record.cites or any(id not in by_id for id in record.cites):
        raise Unreadable("records that it cites are not in this ledger")
    return [by_id[id] for id in record.cites]


def _import_of(record: Record, by_id: Mapping[str, Record]) -> Record | None:
    """The import whose rule a verdict applied, among what it cites; None where it names none."""
    named = record.body.get("rule_record")
    if named is None:
        return None
    found = next((each for each in _cited(record, by_id) if each.id == named), None)
    if found is None or not is_import(found) or found.body["key"] != record.body["key"]:
        raise Unreadable("the rule that it names is not an import of its claim that it cites")
    return found


def _required_import(record: Record, by_id: Mapping[str, Record]) -> Record:
    imported = _import_of(record, by_id)
    if imported is None:
        raise Unreadable("it names no rule, so that nothing can have decided it")
    return imported


def _seen(file: ProtocolFile, results: Sequence[Record]) -> list[Seen]:
    """What the results of a run say of the file's cells, in its order."""
    if file.claim.quantity is Quantity.ORDER_EFFECT:
        return [order_seen(msgspec.convert(each.body, CalibrationResult)) for each in results]
    if file.is_of_quality:
        return _gated(file, [msgspec.convert(each.body, ArmQuality) for each in results])
    cells: dict[Cell, list[ArmResult]] = {}
    for each in results:
        result = msgspec.convert(each.body, ArmResult)
        cells.setdefault(result.cell, []).append(result)
    return [seen_in(file, found, _labels(file, _methods(found))) for found in cells.values()]


def _gated(file: ProtocolFile, results: Sequence[ArmQuality]) -> list[Seen]:
    """What the quality gates say of the file's cells, in its order."""
    cells: dict[QualityCell, list[ArmQuality]] = {}
    for result in results:
        cells.setdefault(result.cell, []).append(result)
    return [
        quality_seen(file, part, found, _labels(file, [each.arm for each in found]))
        for part, found in zip(file.cell, cells.values(), strict=True)
    ]


def _methods(results: Sequence[ArmResult]) -> list[str]:
    return list(dict.fromkeys(r.method for r in results if r.role is not Role.BASELINE_AGAIN))


def _labels(file: ProtocolFile, methods: Sequence[str]) -> dict[str, str]:
    """What the arms of the file are called in the run: an implementation was chosen there, and a
    parameter that has its default is not named."""
    found = {}
    for spec in file.arms:
        same = [it for it in methods if same_method(it, spec)]
        alike = same or [it for it in methods if it.split(",")[0] == spec.split(",")[0]]
        if len(alike) != 1:
            raise Unreadable(f"its results do not tell which of them is {spec}")
        found[spec] = alike[0]
    return found
