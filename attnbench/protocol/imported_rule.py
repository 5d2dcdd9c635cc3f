"""A protocol about an imported claim decides it by the claim's own rule, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from attnbench.errors import UsageError
from attnbench.ledger import Record
from attnbench.protocol.claim_log import standings
from attnbench.protocol.decided import BY_PROTOCOL, Decided, same_method
from attnbench.protocol.document import CellPart, ProtocolFile
from attnbench.protocol.presets import CANONICAL

HINT = "take what the rule says, or leave claim.key out and claim something of your own"


def imported_of(records: Iterable[Record], file: ProtocolFile) -> Record | None:
    """The import that stands of the claim that a file names; None where it names none.

    Raises UsageError where the ledger has no such import, where that rule is about something that
    no protocol measures, and where the file would decide by anything else than that rule.
    """
    key = file.claim.key
    if not key:
        return None
    standing = standings(records).get(key)
    if standing is None:
        raise UsageError(
            f"protocol {file.id} would decide {key}, of which no import stands in the ledger: a "
            "rule is recorded before anything is judged by it",
            hint="Run `attnbench claims import` first, or leave claim.key out.",
        )
    require_its_rule(standing.imported, file)
    return standing.imported


def require_its_rule(imported: Record, file: ProtocolFile) -> None:
    """Raise UsageError where a file would decide an imported claim by anything but its rule."""
    key, rule = str(imported.body["key"]), imported.body["rule"]
    differences = list(_differences(rule, _decided(file, key, rule), file))
    if differences:
        raise UsageError(
            f"protocol {file.id} would decide {key} by another rule than its import "
            f"({imported.id[:12]}): {'; '.join(differences)}",
            hint=HINT,
        )


def decided_of(rule: Mapping[str, Any]) -> Decided | None:
    """What decides a claim, as its import has it; None where nothing can yet."""
    return msgspec.convert(rule["decided"], Decided) if "decided" in rule else None


def _decided(file: ProtocolFile, key: str, rule: Mapping[str, Any]) -> Decided:
    decided = decided_of(rule)
    if decided is None:
        raise UsageError(
            f"protocol {file.id} cannot decide {key}: its rule is about {rule['measures']!r}, "
            "which attnbench cannot measure yet",
            hint="Leave claim.key out and claim something of your own. Where the claim's file has "
            "[claim.rule.decided] by now, `attnbench claims import` records that first.",
        )
    if decided.quantity not in BY_PROTOCOL:
        raise UsageError(
            f"protocol {file.id} cannot decide {key}: its rule is about a {decided.quantity.value},"
            f" and a protocol measures {', '.join(BY_PROTOCOL)}",
            hint=f"`attnbench claims adjudicate {key}` decides it by the ledger's results",
        )
    return decided


def _differences(rule: Mapping[str, Any], decided: Decided, file: ProtocolFile) -> Iterator[str]:
    for name, there, here in _compared(rule, decided, file):
        if there != here:
            yield f"{name} is {there!r} there and {here!r} here"
    for number, cell in enumerate(file.cell[: file.deciding], start=1):
        for name, there, here in _places(rule, decided, cell):
            if there != here:
                yield f"{name} of cell {number} is {there!r} there and {here!r} here"
        if decided.least_context is not UNSET and cell.context < decided.least_context:
            yield (
                f"context of cell {number} is at least {decided.least_context} there and "
                f"{cell.context} here"
            )
        if decided.models and cell.model not in decided.models:
            models = " or ".join(decided.models)
            yield f"model of cell {number} is {models} there and {cell.model!r} here"
    cells = {str(cell.context): cell.claimed for cell in file.cell[: file.deciding]}
    there = dict.fromkeys(cells, 1.0) if decided.claimed is UNSET else decided.claimed
    if cells != there:
        yield f"claimed, by context, is {there} there and {cells} here"
    yield from _looser(rule, decided, file)


def _compared(
    rule: Mapping[str, Any], decided: Decided, file: ProtocolFile
) -> Iterator[tuple[str, object, object]]:
    claim = file.claim
    yield "quantity", decided.quantity.value, claim.quantity.value
    yield "direction", rule["direction"], claim.direction.value
    yield "bound", float(rule["bound"]), claim.bound
    yield "tolerance", float(rule["tolerance"]), claim.tolerance
    yield "reach", rule["reach"], claim.reach.value
    yield "keeps_quality", rule["keeps_quality"], claim.keeps_quality
    if decided.arms and not decided.is_arm(claim.arm):
        yield "arm", " or ".join(decided.arms), claim.arm
    if decided.baseline and not same_method(decided.baseline, file.baseline):
        yield "baseline", decided.baseline, file.baseline


def _places(
    rule: Mapping[str, Any], decided: Decided, cell: CellPart
) -> Iterator[tuple[str, object, object]]:
    """What the rule says of where it is measured, and what a cell says."""
    for name in ("gpu", "model"):
        if rule[name]:
            yield name, rule[name], getattr(cell, name)
    for name in ("context", "batch", "dtype", "device", "scope", "mode"):
        there = getattr(decided, name)
        if there is not msgspec.UNSET:
            yield name, there, getattr(cell, name)


def _looser(rule: Mapping[str, Any], decided: Decided, file: ProtocolFile) -> Iterator[str]:
    """Where the file asks for less than the rule does."""
    protocol = file.protocol()
    if protocol.sessions < decided.sessions:
        yield f"at least {decided.sessions} sessions there and {protocol.sessions} here"
    if protocol.level < decided.level:
        yield f"a level of at least {decided.level:g} there and {protocol.level:g} here"
    if protocol.aa_level > CANONICAL.aa_level:
        yield f"an aa_level of at most {CANONICAL.aa_level:g} there and {protocol.aa_level:g} here"
    if rule["keeps_quality"] and file.gates:
        yield f"the default bands of quality there and others here ({', '.join(file.gates)})"
