"""The scoreboard: every claim once, as it was imported, with the verdict that counts today.

Records of one claim share `body.key`, or one cites the other, or (without a key) they say the same
in the same words. Which of them counts, `claim_log` says, as it does for `attnbench claims list`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from attnbench.ledger import Kind, Record, Status
from attnbench.protocol.claim import Outcome
from attnbench.protocol.claim_file import Rule
from attnbench.protocol.claim_log import (
    BY_RECORDED_RESULTS,
    Standing,
    counting,
    has_rule,
    is_exploratory,
    is_import,
    standings,
)
from attnbench.report.page.reading import Reading
from attnbench.report.rule_words import bound_words, direction_words, rule_words, seen_words
from attnbench.report.words import ABSENT

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

    `counting` is the record whose verdict counts; where all were taken back, one of them. Without
    a rule it is a statement of somebody's own, and counts in no score.
    What nobody promised beforehand counts nowhere: where there is nothing else, that is said.
    `figure` is the source's, `rederived` what was computed of it before there was a rule; `rule`
    is in words, by what it fixes.
    """

    key: str
    statement: str
    system: str
    source: str
    figure: str
    rederived: str
    provenance: str
    rule: Mapping[str, str]
    bound: str
    observed: str
    note: str
    standing: str
    reason: str
    next_step: str
    counting: Record
    records: Sequence[Record]
    qualities: Sequence[Quality]
    has_rule: bool
    is_retrospective: bool  # decided by results that were there before

    @property
    def is_taken_back(self) -> bool:
        """Whether nothing of it stands."""
        return self.standing == TAKEN_BACK

    @property
    def anchor(self) -> str:
        """Where its row is."""
        return f"claim-{self.records[0].id}"


def scoreboard(reading: Reading) -> tuple[Claim, ...]:
    """All claims, those with a key in its order, then the others as they were made."""
    stand = standings(reading.records, reading.state)
    claims = [_claim(group, reading, stand) for group in _groups(reading.of_kind(Kind.CLAIM))]
    return tuple(sorted(claims, key=lambda claim: (not claim.key, _natural(claim.key))))


def by_system(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    """The claims of each system, in their order."""
    of_system: dict[str, list[Claim]] = {}
    for claim in claims:
        of_system.setdefault(claim.system, []).append(claim)
    return of_system


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


def _claim(records: Sequence[Record], reading: Reading, stand: Mapping[str, Standing]) -> Claim:
    key = _first(records, "key")
    live = [r for r in records if reading.status(r) is Status.LIVE]
    standing = stand.get(key)
    counts = standing.said_by if standing else counting(live or records)
    imported = standing.imported if standing else _last_import(records)
    said_first = imported or counts
    verdict = _verdict(counts)
    said = str(verdict.get("claim") or NO_VERDICT)
    rule = _rule(said_first)
    return Claim(
        key=key,
        statement=_text(said_first, "claim") or _first(records, "claim"),
        system=_first(records, "system") or NO_SYSTEM,
        source=_text(said_first, "source"),
        figure=_text(said_first, "source_figure"),
        rederived=_text(said_first, "rederived"),
        provenance=_text(said_first, "provenance"),
        rule=_rule_words(said_first, rule),
        bound=bound_words(rule) if rule else _bound_of_a_protocol(counts),
        observed=_observed(counts),
        note=_text_of(counts.body.get("observed"), "note"),
        standing=EXPLORATORY if live and is_exploratory(counts) else said if live else TAKEN_BACK,
        reason=str(verdict.get("claim_reason") or ""),
        next_step=str(verdict.get("next_step") or "") if live else "",
        counting=counts,
        records=records,
        qualities=tuple(_qualities(counts, reading)),
        has_rule=any(map(has_rule, records)),
        is_retrospective=counts.body.get("basis") == BY_RECORDED_RESULTS,
    )


def _last_import(records: Sequence[Record]) -> Record | None:
    """Of a claim whose every import was taken back: what it said."""
    return next(filter(is_import, reversed(records)), None)


def _rule(record: Record) -> Rule | None:
    try:
        return msgspec.convert(record.body.get("rule"), Rule)
    except msgspec.ValidationError:
        return None


def _rule_words(record: Record, rule: Rule | None) -> Mapping[str, str]:
    if rule is not None:
        return rule_words(rule)
    unread = "rule" in record.body
    return {"rule": "of a form that this version cannot read: see its record"} if unread else {}


def _bound_of_a_protocol(record: Record) -> str:
    """What a protocol's own claim is held against; it has no rule of an import."""
    bound = record.body.get("bound")
    if not isinstance(bound, Mapping):
        return ""
    figure = seen_words({"value": bound.get("value")})
    return (
        f"{direction_words(str(bound.get('direction', '')))} {figure} {_quantity(record)}".strip()
    )


def _observed(record: Record) -> str:
    observed = record.body.get("observed")
    words = seen_words(observed)
    unit = _text_of(observed, "unit") or _quantity(record)
    return words if words == ABSENT or not unit else f"{words} {unit}"


def _quantity(record: Record) -> str:
    return _text(record, "quantity")


def _qualities(record: Record, reading: Reading) -> Iterator[Quality]:
    if quality := _verdict(record).get("quality"):
        yield Quality("", str(quality), record)
    for arm in filter(None, map(reading.arm, record.cites)):
        if arm.is_under_test:
            yield Quality(arm.result.method, arm.result.verdict.quality, arm.record)


def _verdict(record: Record) -> Mapping[str, object]:
    verdict = record.body.get("verdict")
    return verdict if isinstance(verdict, Mapping) else {}


def _text(record: Record, name: str) -> str:
    return _text_of(record.body, name)


def _text_of(held: object, name: str) -> str:
    value = held.get(name) if isinstance(held, Mapping) else None
    return "" if value is None else str(value)


def _first(records: Sequence[Record], name: str) -> str:
    return next(filter(None, (_text(record, name) for record in records)), "")


def _natural(key: str) -> tuple[str, int, str]:
    """DCR-2 before DCR-18."""
    system, _, number = key.rpartition("-")
    return (system, int(number), "") if number.isdecimal() else (key, -1, key)
