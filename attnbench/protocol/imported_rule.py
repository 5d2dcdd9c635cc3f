"""A protocol about an imported claim decides it by the claim's own rule, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attnbench.errors import UsageError
from attnbench.ledger import Record
from attnbench.protocol.claim_log import standings
from attnbench.protocol.document import ProtocolFile


def imported_of(records: Iterable[Record], file: ProtocolFile) -> Record | None:
    """The import that stands of the claim that a file names; None where it names none, or the
    ledger has none.

    Raises UsageError where the file would decide by another bound than that rule's.
    """
    standing = standings(records).get(file.claim.key) if file.claim.key else None
    if standing is None:
        return None
    differences = [
        f"{name} is {rule!r} there and {here!r} here"
        for name, rule, here in _compared(standing.imported.body["rule"], file)
        if rule != here
    ]
    if differences:
        raise UsageError(
            f"protocol {file.id} would decide {file.claim.key} by another rule than its import "
            f"({standing.imported.id[:12]}): {'; '.join(differences)}",
            hint="take the rule's figures, or leave claim.key out and claim something of your own",
        )
    return standing.imported


def _compared(rule: Mapping[str, Any], file: ProtocolFile) -> list[tuple[str, object, object]]:
    claim = file.claim
    found: list[tuple[str, object, object]] = [
        ("direction", rule["direction"], claim.direction.value),
        ("bound", float(rule["bound"]), claim.bound),
        ("tolerance", float(rule["tolerance"]), claim.tolerance),
        ("reach", rule["reach"], claim.reach.value),
        ("keeps_quality", rule["keeps_quality"], claim.keeps_quality),
    ]
    named = (("gpu", file.cell[0].gpu), ("model", file.cell[0].model))
    return found + [(name, rule[name], here) for name, here in named if rule[name]]
