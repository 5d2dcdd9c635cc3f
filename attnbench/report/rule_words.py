"""The rule of a claim and what was seen of it in words, the same in a terminal, on a page and in a
paper's table."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import UNSET

from attnbench.protocol.claim_file import Rule
from attnbench.protocol.decided import Decided
from attnbench.report.words import ABSENT

NOT_MEASURED = "not measured"


def bound_words(rule: Rule) -> str:
    """A bound as it is read aloud."""
    within = f" within {100 * rule.tolerance:g} %" if rule.tolerance else ""
    return f"{direction_words(rule.direction.value)} {rule.bound:g} {rule.unit}{within}"


def direction_words(direction: str) -> str:
    return direction.replace("-", " ")


def reach_words(rule: Rule) -> str:
    """How far the claim goes, and the place that it names."""
    place = " ".join(word for word in (rule.gpu, rule.model) if word)
    return f"{rule.reach.value}{f': {place}' if place else ''}"


def rule_words(rule: Rule) -> dict[str, str]:
    """All that a rule fixes, by what it is; without what it leaves open."""
    parts = {
        "measures": rule.measures,
        "where": rule.where,
        "statistic": rule.statistic,
        "holds if": bound_words(rule),
        "reach": reach_words(rule),
        "ours": rule.ours,
        "quality": "has to pass every gate" if rule.keeps_quality else "",
        "void when": rule.void_when,
        "decided by": decided_words(rule.decided) if rule.decided is not UNSET else "",
    }
    return {name: words for name, words in parts.items() if words}


def decided_words(decided: Decided) -> str:
    """What decides a claim, as a machine compares it."""
    said = {name: value for name, value in msgspec.to_builtins(decided).items() if value}
    return ", ".join(
        f"{name} {' or '.join(value) if isinstance(value, list | tuple) else value}"
        for name, value in said.items()
    )


def seen_words(observed: object) -> str:
    """What a claim's record observed, without its unit: a value, its interval, or both."""
    if not isinstance(observed, Mapping):
        return ABSENT
    intervals = observed.get("intervals", [observed] if "low" in observed else [])
    limits = [words for words in map(_limits, intervals) if words]
    if "value" not in observed:
        return limits[0] if limits else ABSENT
    if observed["value"] is None:
        return NOT_MEASURED
    value = _number(observed["value"])
    return f"{value} ({' and '.join(limits)})" if limits else value


def _limits(interval: Mapping[str, object]) -> str:
    """Empty where they are one number: what is counted has no interval."""
    low, high = interval["low"], interval["high"]
    return "" if low == high else f"{_number(low)} to {_number(high)}"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
