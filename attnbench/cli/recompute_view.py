"""How the results look that were built again from their samples, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from attnbench.cli.ledger_views import SHORT_ID
from attnbench.ledger.source import TOOL, source_commit
from attnbench.measure.recompute import Difference, Outcome, Rechecked, Recomputed

SAID = {
    Outcome.SAME: "the same to the byte",
    Outcome.ROUNDING: "the same but for rounding",
    Outcome.MORE: "the same, and today's source says more",
    Outcome.UNPROMISED: "of exploratory runs whose protocol file is not here: they count nowhere",
    Outcome.DIFFERS: "not as recorded",
    Outcome.UNREADABLE: "cannot be built again",
}
SHOWN = 8  # members of a list that is not about what differs


def recomputed_json(found: Recomputed) -> dict[str, Any]:
    """Every record and every member that is not the same."""
    return {
        "source": {"tool": TOOL, "commit": source_commit()},
        "exit_code": int(found.exit_code),
        "outcomes": {str(it): count for it, count in _counts(found).items()},
        "results": [_json(it) for it in found.results],
        "claims": [_json(it) for it in found.claims],
    }


def _json(it: Rechecked) -> dict[str, Any]:
    return {**asdict(it), "made_by_this_source": it.is_own, "open": it.is_open}


def recomputed_text(found: Recomputed) -> str:
    """How many are the same, each that is not with what it says now, and what else changed."""
    counts = _counts(found)
    here = f"attnbench {TOOL} ({source_commit()})"
    claims = f"{len(found.claims)} claims from what they cite"
    lines = [f"{len(found.results)} results built again from their samples, {claims}, by {here}:"]
    lines += [f"{counts[it]:>7}  {SAID[it]}" for it in Outcome if counts[it]]
    for result in found.all:
        if result.outcome in (Outcome.DIFFERS, Outcome.UNREADABLE):
            lines += _details(result)
    lines += _members(found, Outcome.ROUNDING, "Rounding")
    lines += _members(found, Outcome.MORE, "Only today")
    return "\n".join(lines)


def _counts(found: Recomputed) -> Counter[Outcome]:
    return Counter(result.outcome for result in found.all)


def _details(result: Rechecked) -> Iterator[str]:
    made_by = "this very source" if result.is_own else _source(result)
    yield f"{result.id[:SHORT_ID]} (record {result.seq}, {result.what}), made by {made_by}:"
    if result.why:
        yield f"  {SAID[result.outcome]}: {result.why}"
    for difference in result.differences:
        if difference.outcome is Outcome.DIFFERS:
            yield f"  {difference.member}: {difference.recorded} → {difference.rebuilt or 'gone'}"
    if result.settled_by:
        yield f"  settled by {', '.join(id[:SHORT_ID] for id in result.settled_by)}"
    elif not result.is_own:
        yield "  whether its own source says so still, only that source can tell"


def _source(result: Rechecked) -> str:
    return f"attnbench {result.tool} ({result.commit or 'commit unknown'})"


def _members(found: Recomputed, outcome: Outcome, title: str) -> Iterator[str]:
    differences = [each for it in found.all for each in it.differences]
    shown = [each for each in differences if each.outcome is outcome]
    if not shown:
        return
    by_member = Counter(each.member for each in shown).most_common()
    names = [f"{member} ({count})" for member, count in by_member[:SHOWN]]
    if len(by_member) > SHOWN:
        names.append(f"and {len(by_member) - SHOWN} more members")
    size = f", at most {_largest(shown):.1g} of the value" if outcome is Outcome.ROUNDING else ""
    yield f"{title}{size}: {', '.join(names)}"


def _largest(differences: Iterable[Difference]) -> float:
    pairs = [(float(it.recorded or 0), float(it.rebuilt or 0)) for it in differences]
    return max(abs(new - old) / max(abs(old), abs(new)) for old, new in pairs)
