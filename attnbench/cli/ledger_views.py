"""How records and reports of a ledger look, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from attnbench.cli.tabular import Grid
from attnbench.ledger import Kind, Record, Repair, Report, State, Status
from attnbench.ledger.entry import model_name

SHORT_ID = 12
LONGEST = 72  # characters of a text; `ledger show` prints all of it
SAID = (
    "reason",
    "note",
    "claim",
    "concern",
    "repaired",
    "quarantine",
)  # members of a body that are text for people
STYLES = {
    "KILL": "red",
    "SLOWER": "red",
    "VOID": "magenta",
    "INCONCLUSIVE": "yellow",
    "MARGINAL": "yellow",
    "FASTER": "green",
    "PASS": "green",
    "retracted": "red",
    "tainted": "yellow",
    "abandoned": "yellow",
}
CELL_WORDS = {
    "model": "{}",
    "context": "{} tokens",
    "batch": "batch {}",
    "dtype": "{}",
    "scope": "{}",
    "mode": "{}",
    "device": "{}",
}
LOG_COLUMNS = (
    "seq", "utc", "id", "kind", "run", "what", "cell", "ms", "speed-up", "verdict", "standing",
)  # fmt: skip


def log_grid(rows: Sequence[tuple[str, ...]]) -> Grid:
    """A table of rows as `log_row` makes them."""
    figures = frozenset({"seq", "ms", "speed-up"})
    return Grid(LOG_COLUMNS, rows, right=figures, styles=STYLES, legend="cell")


def record_json(record: Record, state: State) -> dict[str, Any]:
    """A record with its standing, and the ids of what cites it or remarks on it."""
    return {
        **asdict(record),
        "standing": standing(record, state),
        "cited_by": list(state.cited_by.get(record.id, ())),
        "remarks": list(state.remarks.get(record.id, ())),
    }


def record_text(record: Record, state: State, by_id: Mapping[str, Record]) -> str:
    """A record in full, then everything that bears on it."""
    head = {
        "id": record.id,
        "kind": record.kind.value,
        "seq": str(record.seq),
        "utc": record.utc,
        "attnbench": f"{record.tool} ({record.commit or 'commit unknown'})",
        "origin": record.origin,
        "standing": _standing_with_cause(record, state),
    }
    lines = [f"{name:<10}{value}" for name, value in head.items()]
    lines += ["body", json.dumps(record.body, ensure_ascii=False, indent=2)]
    for title, ids in (
        ("cites", record.cites),
        ("cited by", state.cited_by.get(record.id, ())),
        ("remarks", state.remarks.get(record.id, ())),
    ):
        lines += [title, *(f"  {_one_line(id, by_id)}" for id in ids)] if ids else []
    return "\n".join(lines)


def standing_text(said: Record, heirs: int) -> str:
    """What a retraction or a reinstatement did; so many records are heirs of its target."""
    target, id = said.body["target"][:SHORT_ID], said.id[:SHORT_ID]
    if said.kind is Kind.RETRACTION:
        return f"{target} is retracted by {id}; records tainted by it: {heirs}"
    return f"{target} is reinstated by {id}; records that derive from it: {heirs}"


def remark_text(said: Record) -> str:
    """What a correction or a concern says."""
    target, id = said.body["target"][:SHORT_ID], said.id[:SHORT_ID]
    if said.kind is Kind.CONCERN:
        return f"{target} stays, with the concern {id} beside it"
    changed = f"{said.body['member']} {said.body['was']} should be {said.body['value']}"
    return f"{target} stays, with the correction {id} beside it: {changed}"


def report_json(report: Report) -> dict[str, Any]:
    """A check as JSON."""
    return {
        "path": str(report.path),
        "sound": report.is_sound,
        "exit_code": int(report.exit_code),
        "records": report.records,
        "blobs": report.blobs,
        "origin": report.origin,
        "head": report.head,
        "checkpoint": asdict(report.against) if report.against else None,
        "problems": [asdict(problem) for problem in report.problems],
    }


def report_text(report: Report) -> str:
    """A check in words."""
    lines = [f"{problem.reason}\n  {problem.hint}" for problem in report.problems]
    if report.is_sound:
        lines.append(
            f"{report.path}: {report.records} records and {report.blobs} blobs hold; "
            f"head {report.head[:SHORT_ID] or 'none'}."
        )
        lines.append(_scope_of_check(report))
    return "\n".join(lines)


def repair_json(repair: Repair | None) -> dict[str, Any]:
    """A repair, or the plan of one, as JSON."""
    if repair is None:
        return {"needed": False, "applied": False}
    return {
        "needed": True,
        "applied": repair.record is not None,
        "line": repair.line,
        "bytes": repair.torn_bytes,
        "quarantine": str(repair.quarantine) if repair.quarantine else None,
        "record": repair.record.id if repair.record else None,
    }


def repair_text(repair: Repair | None, path: Path) -> str:
    """A repair, or the plan of one, in words."""
    if repair is None:
        return f"{path} ends with a whole record: there is nothing to repair."
    before = f"{path}, line {repair.line}:"
    if repair.quarantine is None:
        what = "the last record lacks only its newline", "it is added", "it would be added"
    else:
        to = f"to {repair.quarantine}"
        torn = f"{repair.torn_bytes} bytes of a record that was not written to its end"
        what = torn, f"moved {to}", f"would be moved {to}"
    found, done, planned = what
    if repair.record is not None:
        return f"{before} {found}: {done}; repair record {repair.record.id[:SHORT_ID]}."
    return f"{before} {found}: {planned}, and a repair record appended. --apply does it."


def arm_text(arm: str, method: str) -> str:
    """The method in full; A′, which is the baseline's method once more, is marked as such."""
    return f"{method or arm} (A′)" if arm.endswith("#2") else method or arm


def cell_text(cell: Mapping[str, Any]) -> str:
    """A cell in a few words, in the order in which people say them."""
    order = [*CELL_WORDS, *(name for name in cell if name not in CELL_WORDS)]
    said = {**cell, "model": model_name(str(cell["model"]))} if "model" in cell else cell
    return " · ".join(CELL_WORDS.get(n, n + " {}").format(said[n]) for n in order if n in said)


def standing(record: Record, state: State) -> str:
    """Live, retracted, tainted or abandoned."""
    if state.statuses[record.id] is Status.LIVE and record.id in state.abandoned:
        return "abandoned"
    return state.statuses[record.id].value


def _scope_of_check(report: Report) -> str:
    if report.against:
        return f"It continues the checkpoint of {report.against.utc} (record {report.against.seq})."
    return (
        "Without --against CHECKPOINT this shows edits, not a file that was rewritten as a whole."
    )


def log_row(record: Record, state: State) -> tuple[str, ...]:
    """A record in the columns of `log_grid`."""
    body = record.body
    return (
        str(record.seq),
        record.utc[:16].replace("T", " "),
        record.id[:SHORT_ID],
        record.kind.value,
        str(body.get("run", "")),
        _what(record),
        cell_text(body.get("cell", {})),
        _milliseconds(body.get("latency_ms", {}).get("median")),
        _speedup(body.get("ratio")),
        _verdict(body.get("verdict", {})),
        standing(record, state),
    )


def _what(record: Record) -> str:
    body = record.body
    if "calibration" in body and record.kind is Kind.RESULT:
        return f"calibration: {body['calibration']}"
    if "footprint" in body and record.kind is Kind.RESULT:
        return f"memory: {body['footprint']}"
    if "appraisal" in body and record.kind is Kind.RESULT:
        return f"quality of {body.get('arm', '')}"
    if "training" in body and record.kind is Kind.RESULT:
        return f"training with {body.get('arm', '')}"
    if record.kind is Kind.RESULT:
        return arm_text(str(body.get("arm", "")), str(body.get("method", "")))
    if record.kind is Kind.SESSION:
        return f"session {body.get('session', '')} {body.get('phase', '')}"
    target = str(body.get("target", ""))[:SHORT_ID]
    words = [target, *(_beginning(body.get(name)) for name in SAID)]
    return " · ".join(word for word in words if word)


def _beginning(text: object) -> str:
    return shorten(text, LONGEST, placeholder=" …") if isinstance(text, str) else ""


def _verdict(verdict: Mapping[str, Any]) -> str:
    """Latency with its reason where it decided nothing, and always the quality beside it; of a
    claim its outcome."""
    latency = str(verdict.get("latency", ""))
    reason = verdict.get("latency_reason") or verdict.get("reason")
    if latency in ("VOID", "INCONCLUSIVE") and reason:
        latency = f"{latency} ({reason})"
    words = (str(verdict.get("claim", "")), latency, str(verdict.get("quality", "")))
    return " / ".join(word for word in words if word)


def _speedup(ratio: Mapping[str, Any] | None) -> str:
    if not ratio:
        return ""
    if "low" not in ratio or "high" not in ratio:
        return f"{ratio['estimate']:.3f}×"
    return f"{ratio['estimate']:.3f}× [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def _milliseconds(median: float | None) -> str:
    return "" if median is None else f"{median:.3f}"


def _standing_with_cause(record: Record, state: State) -> str:
    name = standing(record, state)
    if record.id in state.retracted_by:
        return f"{name} by {state.retracted_by[record.id][:SHORT_ID]}"
    roots = state.tainted_by.get(record.id, ())
    return f"{name} by {', '.join(root[:SHORT_ID] for root in roots)}" if roots else name


def _one_line(id: str, by_id: Mapping[str, Record]) -> str:
    known = by_id.get(id)
    if known is None:
        return f"{id[:SHORT_ID]}  not in this ledger"
    return f"{id[:SHORT_ID]}  {known.kind.value}  {known.utc[:19]}  {_what(known)}"
