"""The scoreboard: every claim once, with the verdict that counts today.

Records of one claim share `body.key`, or one cites the other, or (without a key) they say the same
in the same words. The newest of them that was neither retracted nor tainted counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnbench.ledger import Kind, Record, Status
from attnbench.protocol.claim import Outcome
from attnbench.report.page.reading import Reading

NO_VERDICT = "no verdict"
TAKEN_BACK = "taken back"
EXPLORATORY = "exploratory"
VERDICTS = tuple(outcome.value for outcome in Outcome)
OTHERS = (NO_VERDICT, EXPLORATORY, TAKEN_BACK)
NO_SYSTEM = "attnbench"  # claims of the project about itself name no system


@dataclass(frozen=True)
class Quality:
    """The quality verdict of an arm whose speed a claim rests on."""

    arm: str
    verdict: str
    record: Record


@dataclass(frozen=True)
class Claim:
    """What is claimed, what became of it, and the records that say so, oldest first.

    `counting` is the record whose verdict counts; where all were taken back, the newest of them.
    What nobody promised beforehand counts nowhere: where there is nothing else, that is said.
    """

    key: str
    statement: str
    system: str
    provenance: str
    rule: str
    standing: str
    reason: str
    next_step: str
    counting: Record
    records: Sequence[Record]
    qualities: Sequence[Quality]


def scoreboard(reading: Reading) -> tuple[Claim, ...]:
    """All claims, those with a key in its order, then the others as they were made."""
    claims = [_claim(group, reading) for group in _groups(reading.of_kind(Kind.CLAIM))]
    return tuple(sorted(claims, key=lambda claim: (not claim.key, _natural(claim.key))))


def counts(claims: Sequence[Claim]) -> dict[str, Counter[str]]:
    """How many claims of each system stand where, by system and standing."""
    table: dict[str, Counter[str]] = {}
    for claim in claims:
        table.setdefault(claim.system, Counter())[claim.standing] += 1
    return table


def columns(claims: Sequence[Claim]) -> list[str]:
    """The five verdicts, then what else there is."""
    seen = dict.fromkeys(claim.standing for claim in claims)
    others = dict.fromkeys((*OTHERS, *seen))
    return [*VERDICTS, *(word for word in others if word in seen and word not in VERDICTS)]


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = {}
    name_of: dict[str, str] = {}
    for record in records:
        name = _name(record, name_of)
        name_of[record.id] = name
        groups.setdefault(name, []).append(record)
    return list(groups.values())


def _name(record: Record, name_of: Mapping[str, str]) -> str:
    if key := _text(record, "key"):
        return f"key {key}"
    cited = (name_of[id] for id in record.cites if id in name_of)
    return next(cited, f"statement {_text(record, 'claim')}")


def _claim(records: Sequence[Record], reading: Reading) -> Claim:
    live = [r for r in records if reading.status(r) is Status.LIVE]
    standing = [record for record in live if not _is_exploratory(record)]
    counting = (standing or live or records)[-1]
    verdict = _verdict(counting)
    said = str(verdict.get("claim") or NO_VERDICT)
    return Claim(
        key=_first(records, "key"),
        statement=_text(counting, "claim") or _first(records, "claim"),
        system=_first(records, "system") or NO_SYSTEM,
        provenance=_text(counting, "provenance"),
        rule=_text(counting, "rule") or _first(records, "rule"),
        standing=said if standing else EXPLORATORY if live else TAKEN_BACK,
        reason=str(verdict.get("claim_reason") or ""),
        next_step=str(verdict.get("next_step") or ""),
        counting=counting,
        records=records,
        qualities=tuple(_qualities(counting, reading)),
    )


def _qualities(record: Record, reading: Reading) -> Iterator[Quality]:
    if quality := _verdict(record).get("quality"):
        yield Quality("", str(quality), record)
    of_arms = {arm.record.id: arm for arm in reading.arms if arm.is_under_test}
    for arm in (of_arms[id] for id in record.cites if id in of_arms):
        yield Quality(arm.result.method, arm.result.verdict.quality, arm.record)


def _is_exploratory(record: Record) -> bool:
    promise = record.body.get("promise")
    return isinstance(promise, Mapping) and bool(promise.get("exploratory"))


def _verdict(record: Record) -> Mapping[str, object]:
    verdict = record.body.get("verdict")
    return verdict if isinstance(verdict, Mapping) else {}


def _text(record: Record, name: str) -> str:
    value = record.body.get(name)
    return "" if value is None else str(value)


def _first(records: Sequence[Record], name: str) -> str:
    return next(filter(None, (_text(record, name) for record in records)), "")


def _natural(key: str) -> tuple[str, int, str]:
    """DCR-2 before DCR-18."""
    system, _, number = key.rpartition("-")
    return (system, int(number), "") if number.isdecimal() else (key, -1, key)
