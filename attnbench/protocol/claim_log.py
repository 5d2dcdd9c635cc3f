"""Claims in the ledger: their import, their versions, and how each one stands.

A claim's records share its `key`. An import carries the rule and decides nothing; whatever decides
(a recomputation, a protocol's run) is a record of its own. A new version of a rule begins anew:
what was decided by the old one says nothing of it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from attnbench.errors import UsageError
from attnbench.ledger import Json, Kind, Ledger, Record, State, Status, fold
from attnbench.ledger.canonical import canonical_bytes
from attnbench.protocol.claim import NEXT_STEP, ClaimReason, Outcome
from attnbench.protocol.claim_file import ImportedClaim

# `basis` of a verdict that was made of results which were there before it: retrospective.
BY_RECORDED_RESULTS = "recorded-results"


@dataclass(frozen=True)
class Standing:
    """How a claim stands: the record that says so, and all that decided by the same rule.

    Of live records a falsification counts before support, and either before what decides nothing.
    """

    imported: Record
    said_by: Record
    decisions: tuple[Record, ...]

    @property
    def outcome(self) -> Outcome:
        """The verdict so far."""
        return outcome_of(self.said_by)

    @property
    def reason(self) -> str:
        """Why."""
        return str(self.said_by.body["verdict"].get("claim_reason", ""))


@dataclass(frozen=True)
class Imported:
    """What an import did: new claims, new versions, and claims that were there as they are."""

    added: tuple[Record, ...]
    changed: tuple[Record, ...]
    known: int


def standings(records: Iterable[Record], state: State | None = None) -> dict[str, Standing]:
    """How each imported claim stands, by key; `state` is the fold of the records, if it is had."""
    known = list(records)
    state = state or fold(known)
    return {
        key: _standing(imported, decided)
        for key, (imported, decided) in _by_key(known, state).items()
    }


def import_claims(ledger: Ledger, claims: Sequence[ImportedClaim]) -> Imported:
    """Record every claim that the ledger does not hold as it is; a changed one names its parent.

    One that was retracted is held, too: another rule can follow it, the same one does not come
    back. Raises what reading and appending raise.
    """
    held = _held(ledger)
    added: list[Record] = []
    changed: list[Record] = []
    known = 0
    for claim in claims:
        parent = held.get(claim.key)
        if parent is not None and parent.body["version"] == claim.version:
            known += 1
            continue
        record = ledger.append(Kind.CLAIM, import_body(claim, parent))
        (changed if parent is not None else added).append(record)
    return Imported(tuple(added), tuple(changed), known)


def import_body(claim: ImportedClaim, parent: Record | None) -> dict[str, Json]:
    """The body of an import."""
    entry = claim.entry
    body: dict[str, Json] = {
        "claim": entry.statement,
        "key": entry.key,
        "system": claim.system,
        "source": claim.source,
        "source_figure": entry.source_figure,
        "rederived": entry.rederived,
        "source_status": entry.source_status,
        "test": entry.test,
        "provenance": claim.provenance,
        "kind": entry.kind.value,
        "rule": msgspec.to_builtins(entry.rule),
        "version": claim.version,
        "parent": parent.id if parent is not None else None,
        "verdict": {
            "claim": Outcome.INCONCLUSIVE.value,
            "claim_reason": ClaimReason.NOT_MEASURED.value,
            "next_step": f"{NEXT_STEP[ClaimReason.NOT_MEASURED]}: {entry.test}",
        },
    }
    return {**body, "untestable": entry.untestable} if entry.untestable else body


def imported_claim(record: Record) -> ImportedClaim:
    """The claim that an import recorded; raises UsageError where its form is another one."""
    try:
        return msgspec.convert(_content(record.body), ImportedClaim)
    except (KeyError, msgspec.ValidationError) as error:
        raise UsageError(f"the import {record.id[:12]} has another form: {error}") from None


def imported_again(record: Record) -> dict[str, Json]:
    """The body that an import has by its own content: the version follows from it, and it decides
    nothing. Raises UsageError where its form is another one."""
    body = import_body(imported_claim(record), parent=None)
    version = hashlib.sha256(canonical_bytes(_content(record.body))).hexdigest()
    return {
        **body,
        "rule": record.body["rule"],
        "version": version,
        "parent": record.body["parent"],
    }


def _content(body: Mapping[str, Json]) -> dict[str, Json]:
    """All that a claim's file said of it, as it was then."""
    of_entry = (
        "key", "source_figure", "rederived", "source_status", "test", "kind", "rule",
    )  # fmt: skip
    entry = {name: body[name] for name in of_entry}
    entry |= {"statement": body["claim"], "untestable": body.get("untestable", "")}
    shared = {name: body[name] for name in ("system", "source", "provenance")}
    return {**shared, "entry": entry}


def require_imported(claim: ImportedClaim, standing: Standing | None) -> Standing:
    """The standing of a claim whose rule is in the ledger as the file has it; raises UsageError."""
    if standing is None or standing.imported.body["version"] != claim.version:
        what = (
            "does not stand in the ledger" if standing is None else "has another rule in the ledger"
        )
        raise UsageError(
            f"{claim.key} {what}: a rule is recorded before anything is judged by it",
            hint="Run `attnbench claims import` first.",
        )
    return standing


def counting(verdicts: Sequence[Record]) -> Record:
    """Of the verdicts on one claim, oldest first, the one that counts.

    A falsification counts before support, and either before what decides nothing; of several the
    latest. What nobody promised beforehand counts only where there is nothing else. Only those that
    stand are to be given, where any does.
    """
    promised = [record for record in verdicts if not is_exploratory(record)]
    return min(reversed(promised or verdicts), key=_rank)


def is_exploratory(record: Record) -> bool:
    """Whether a verdict is of a run that was not promised."""
    promise = record.body.get("promise")
    return isinstance(promise, Mapping) and bool(promise.get("exploratory"))


def has_rule(record: Record) -> bool:
    """Whether a claim record is, or was decided by, a rule that was recorded: an import or a
    registered protocol. What is not, is a statement of somebody's own."""
    return any(record.body.get(name) for name in ("rule", "rule_record", "protocol"))


def _rank(record: Record) -> int:
    verdict = record.body.get("verdict")
    said = verdict.get("claim") if isinstance(verdict, Mapping) else None
    ranks = {Outcome.FALSIFIED.value: 0, Outcome.SUPPORTED.value: 1}
    return ranks.get(str(said), 2)


def outcome_of(record: Record) -> Outcome:
    """The verdict that a claim record holds."""
    return Outcome(record.body["verdict"]["claim"])


def is_import(record: Record) -> bool:
    """Whether a record is the import of a claim: it carries a rule, and a version of it."""
    return record.kind is Kind.CLAIM and {"key", "rule", "version"} <= record.body.keys()


def _held(ledger: Ledger) -> Mapping[str, Record]:
    """The latest import of each key."""
    records = ledger.records() if ledger.path.exists() else iter(())
    return {str(record.body["key"]): record for record in records if is_import(record)}


def _by_key(records: Sequence[Record], state: State) -> dict[str, tuple[Record, list[Record]]]:
    """The latest live import of each key, and the live decisions after it."""
    found: dict[str, tuple[Record, list[Record]]] = {}
    waiting: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        key = record.body.get("key")
        if not isinstance(key, str) or not _has_verdict(record):
            continue
        if state.statuses[record.id] is not Status.LIVE:
            continue
        if is_import(record):
            waiting[key] = []
            found[key] = (record, waiting[key])
        elif key in found and _is_by(record, found[key][0]):
            waiting[key].append(record)
    return found


def _has_verdict(record: Record) -> bool:
    return record.kind is Kind.CLAIM and _said(record) in {outcome.value for outcome in Outcome}


def _said(record: Record) -> str:
    """The verdict on the claim, as it stands there; empty where there is none."""
    verdict = record.body.get("verdict")
    return str(verdict.get("claim", "")) if isinstance(verdict, Mapping) else ""


def _is_by(record: Record, imported: Record) -> bool:
    """Whether a decision is by this rule: it names it and cites it."""
    return record.body.get("rule_record") == imported.id and imported.id in record.cites


def _standing(imported: Record, decided: Sequence[Record]) -> Standing:
    return Standing(imported, counting([imported, *decided]), tuple(decided))
