"""How claims look, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import msgspec

from attnbench.cli.tabular import Grid
from attnbench.ledger import Record
from attnbench.protocol.adjudication import Adjudicated
from attnbench.protocol.claim import Outcome
from attnbench.protocol.claim_file import Entry, ImportedClaim, Kind
from attnbench.protocol.claim_log import Imported, Standing
from attnbench.report.rule_words import bound_words, rule_words, seen_words

SHORT_ID = 12
WIDTH = 100
NOT_YET = "nothing that attnbench measures yet"
MARGIN = 16
STYLES = {
    "SUPPORTED": "green",
    "FALSIFIED": "red",
    "VOID": "magenta",
    "INCONCLUSIVE": "yellow",
    "UNTESTABLE": "dim",
}
NOT_IMPORTED = "not imported"
OUTDATED = "rule changed: import it"


@dataclass(frozen=True)
class Row:
    """A claim as its file has it, and how the ledger has it."""

    claim: ImportedClaim
    standing: Standing | None

    @property
    def is_current(self) -> bool:
        """Whether the ledger's rule is the file's."""
        return self.standing is not None and (
            self.standing.imported.body["version"] == self.claim.version
        )

    @property
    def outcome(self) -> Outcome | None:
        """The verdict so far, by the rule that the file has."""
        return self.standing.outcome if self.standing is not None and self.is_current else None

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.standing is None:
            return NOT_IMPORTED
        if not self.is_current:
            return OUTDATED
        return f"{self.standing.outcome.value} ({self.standing.reason})"


def row(claim: ImportedClaim, standing: Standing | None) -> Row:
    """A claim with its standing."""
    return Row(claim, standing)


def grid(rows: Sequence[Row]) -> Grid:
    """One line a claim."""
    columns = ("key", "kind", "verdict", "statement")
    lines = [
        (r.claim.key, r.claim.entry.kind.value, r.verdict, r.claim.entry.statement) for r in rows
    ]
    return Grid(columns, lines, styles=STYLES)


def summary(rows: Sequence[Row]) -> str:
    """How many stand how."""
    counted = Counter(r.outcome.value if r.outcome else r.verdict for r in rows)
    return f"{len(rows)} claims: " + ", ".join(f"{n} {what}" for what, n in counted.most_common())


def row_json(row: Row) -> dict[str, Any]:
    """A claim, its verdict so far, and the records that say so."""
    standing = row.standing
    return {
        **msgspec.to_builtins(row.claim.entry),
        "system": row.claim.system,
        "source": row.claim.source,
        "provenance": row.claim.provenance,
        "version": row.claim.version,
        "is_current": row.is_current,
        "verdict": row.outcome.value if row.outcome else None,
        "claim_reason": standing.reason if standing and row.is_current else None,
        "imported": standing.imported.id if standing else None,
        "said_by": standing.said_by.id if standing else None,
        "decisions": [_decision_json(record) for record in standing.decisions] if standing else [],
    }


def text(row: Row) -> str:
    """A claim in full, for people."""
    entry = row.claim.entry
    lines = [f"{row.claim.key}  {entry.statement}", ""]
    lines += _named(
        {
            "verdict": row.verdict,
            "kind": entry.kind.value,
            "source": row.claim.source,
            "its figure": entry.source_figure,
            "rederived": entry.rederived,
            "as collected": f"{entry.source_status} ({row.claim.provenance})",
            "test": entry.test,
            "untestable": entry.untestable,
        }
    )
    lines += ["", "rule", *_named(_rule_words(entry))]
    if row.standing:
        lines += ["", "records", f"  {_short(row.standing.imported)}  imported"]
        lines += [f"  {_short(record)}  {_decision(record)}" for record in row.standing.decisions]
    return "\n".join(lines)


def imported_json(done: Imported) -> dict[str, Any]:
    """What an import did."""
    return {
        "added": [{"key": r.body["key"], "id": r.id} for r in done.added],
        "changed": [
            {"key": r.body["key"], "id": r.id, "parent": r.body["parent"]} for r in done.changed
        ],
        "known": done.known,
    }


def imported_text(done: Imported, path: Path) -> str:
    """The same for people."""
    changed = ", ".join(str(record.body["key"]) for record in done.changed)
    return (
        f"{len(done.added)} claims added to {path}, {len(done.changed)} changed"
        f"{f' ({changed})' if changed else ''}, {done.known} were there."
    )


def adjudicated_json(each: Adjudicated) -> dict[str, Any]:
    """One verdict, with what was seen."""
    return {
        "key": each.claim.key,
        "id": each.record.id,
        "is_new": each.is_new,
        "observed": each.record.body.get("observed"),
        "verdict": each.record.body["verdict"],
    }


def adjudicated_grid(judged: Sequence[Adjudicated]) -> Grid:
    """One line a verdict."""
    columns = ("key", "verdict", "claimed", "seen", "record")
    rows = [
        (
            each.claim.key,
            f"{each.verdict.outcome.value} ({each.verdict.reason.value})",
            bound_words(each.claim.entry.rule),
            seen_words(each.record.body.get("observed")),
            f"{_short(each.record)}{'' if each.is_new else ' (was there)'}",
        )
        for each in judged
    ]
    return Grid(columns, rows, styles=STYLES)


def _decision(record: Record) -> str:
    verdict = record.body["verdict"]
    observed = record.body.get("observed", {})
    unit = f" {observed['unit']}" if "unit" in observed else ""
    note = f"; {observed['note']}" if "note" in observed else ""
    if results := observed.get("results"):
        left_out = f", {len(observed['left_out'])} left out" if observed["left_out"] else ""
        note += f" ({len(results)} results{left_out})"
    reason = verdict.get("claim_reason", "")
    return f"{verdict['claim']} ({reason})  {seen_words(observed)}{unit}{note}"


def _decision_json(record: Record) -> dict[str, Any]:
    kept = ("observed", "evidence", "verdict")
    return {"id": record.id, **{name: record.body[name] for name in kept if name in record.body}}


def _rule_words(entry: Entry) -> dict[str, str]:
    """All that the rule fixes; of a measured claim that nothing can decide, that too."""
    words = rule_words(entry.rule)
    undecided = entry.kind is Kind.MEASURED and "decided by" not in words
    return {**words, "decided by": NOT_YET} if undecided else words


def _named(values: dict[str, str]) -> list[str]:
    return [
        fill(
            value,
            WIDTH,
            initial_indent=f"  {name:<{MARGIN - 2}}",
            subsequent_indent=" " * MARGIN,
            break_long_words=False,
        )
        for name, value in values.items()
        if value
    ]


def _short(record: Record) -> str:
    return record.id[:SHORT_ID]
