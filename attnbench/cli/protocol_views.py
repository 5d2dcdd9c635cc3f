"""How protocols, registrations and their runs look, as text and as JSON."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from attnbench.cli.tabular import Grid, plain_lines
from attnbench.ledger import Record
from attnbench.protocol.explain import explained
from attnbench.protocol.history import RunOf, counting_run, runs_of
from attnbench.protocol.reading import BadProtocol, Source
from attnbench.protocol.registration import Registered, registrations, versions_of

SHORT_ID = 12
WIDTH, INDENT = 100, 13
STYLES = {
    "SUPPORTED": "green",
    "FALSIFIED": "red",
    "VOID": "magenta",
    "INCONCLUSIVE": "yellow",
    "UNTESTABLE": "yellow",
    "changed": "yellow",
    "not registered": "yellow",
    "problems": "red",
}
COLUMNS = ("protocol", "version", "standing", "runs", "verdict", "title", "file")


def listed(
    records: Sequence[Record], files: Sequence[tuple[Path, Source | BadProtocol]]
) -> list[dict[str, Any]]:
    """A row for every protocol of the folder, then for those that only the ledger knows."""
    rows = [_of_file(records, path, source) for path, source in files]
    in_folder = {source.file.id for _, source in files if isinstance(source, Source)}
    ids = dict.fromkeys(str(record.body["protocol"]) for record in registrations(records))
    rows += [_of_ledger(records, id) for id in ids if id not in in_folder]
    return rows


def list_grid(rows: Sequence[dict[str, Any]]) -> Grid:
    """The rows as people read them."""
    cells = [tuple(str(row[column] or "") for column in COLUMNS) for row in rows]
    return Grid(COLUMNS, cells, right=frozenset({"version", "runs"}), styles=STYLES)


def source_text(source: Source) -> str:
    """A protocol in words."""
    head = f"{source.file.id}: {source.file.title}\n(source: {source.file.source})"
    return "\n".join([head, "", *(_paragraph(name, said) for name, said in explained(source.file))])


def source_json(source: Source) -> dict[str, Any]:
    """The file as it was read, and in words."""
    return {
        "protocol": source.file.id,
        "file": source.name,
        "file_sha256": source.sha256,
        "content": tomllib.loads(source.text),
        "in_words": dict(explained(source.file)),
    }


def shown_text(source: Source, versions: Sequence[Record], runs: Sequence[RunOf]) -> str:
    """What is promised, since when, and every run with all of its sessions."""
    parts = [source_text(source), "", _standing_text(source, versions)]
    if runs:
        parts += ["", *plain_lines(_runs_grid(runs)), "", _total(runs)]
    else:
        parts.append("No session was ever opened for it.")
    return "\n".join(parts)


def shown_json(source: Source, versions: Sequence[Record], runs: Sequence[RunOf]) -> dict[str, Any]:
    """The same for machines."""
    kept = ("version", "file_sha256", "parent")
    return {
        **source_json(source),
        "registrations": [
            {"id": r.id, "utc": r.utc, "seq": r.seq, **{name: r.body[name] for name in kept}}
            for r in versions
        ],
        "runs": [asdict(run) for run in runs],
    }


def registered_text(source: Source, outcome: Registered, runs: Sequence[RunOf]) -> str:
    """What a registration did, and what had been measured before it."""
    record, body = outcome.record, outcome.record.body
    named = f"version {body['version']} of {source.file.id}, {record.id[:SHORT_ID]}"
    if not outcome.is_new:
        said = f"{source.name} is registered already, as {named}; nothing was added."
        return said if outcome.current.id == record.id else f"{said} {_superseded(outcome)}"
    lines = [f"{source.name} is registered as {named}."]
    if body["parent"]:
        lines.append(f"It takes the place of {body['parent'][:SHORT_ID]}.")
    before = sum(run.sessions.opened for run in runs)
    if before:
        lines.append(f"{before} of its sessions were opened before that: they stay counted.")
    return " ".join([*lines, f"`attnbench run {source.file.id}` runs it."])


def registered_json(source: Source, outcome: Registered) -> dict[str, Any]:
    """The same for machines."""
    return {
        "protocol": source.file.id,
        "file": source.name,
        "new": outcome.is_new,
        "registration": outcome.record.id,
        "version": outcome.record.body["version"],
        "parent": outcome.record.body["parent"],
        "current": outcome.current.id,
    }


def _superseded(outcome: Registered) -> str:
    return f"Version {outcome.current.body['version']} counts; change the file to bring it back."


def _of_file(records: Sequence[Record], path: Path, source: Source | BadProtocol) -> dict[str, Any]:
    if isinstance(source, BadProtocol):
        count = len(source.problems)
        row = {"protocol": path.stem, "version": None, "standing": f"{count} problems"}
        return {**row, "runs": 0, "verdict": "", "title": "", "file": str(path)}
    versions = versions_of(records, source.file.id)
    return {
        "protocol": source.file.id,
        "version": versions[-1].body["version"] if versions else None,
        "standing": _standing(source, versions),
        **_so_far(records, source.file.id),
        "title": source.file.title,
        "file": str(path),
    }


def _of_ledger(records: Sequence[Record], id: str) -> dict[str, Any]:
    versions = versions_of(records, id)
    last = versions[-1] if versions else None
    return {
        "protocol": id,
        "version": last.body["version"] if last else None,
        "standing": "registered" if last else "retracted",
        **_so_far(records, id),
        "title": last.body["title"] if last else "",
        "file": "",
    }


def _so_far(records: Sequence[Record], id: str) -> dict[str, Any]:
    runs, counts = runs_of(records, id), counting_run(records, id)
    if counts is not None:
        verdict = f"{counts.verdict}{' (exploratory)' * counts.exploratory}"
    else:  # none that stands
        verdict = next((run.verdict for run in reversed(runs) if run.verdict), "")
    return {"runs": len(runs), "verdict": verdict}


def _standing(source: Source, versions: Sequence[Record]) -> str:
    if not versions:
        return "not registered"
    return "registered" if versions[-1].body["file_sha256"] == source.sha256 else "changed"


def _standing_text(source: Source, versions: Sequence[Record]) -> str:
    if not versions:
        return "It is not registered."
    last = versions[-1]
    said = f"version {last.body['version']}, {last.id[:SHORT_ID]}, {last.utc[:19]}"
    if last.body["file_sha256"] == source.sha256:
        return f"Registered: {said}."
    return f"{source.name} has changed since it was registered ({said})."


def _runs_grid(runs: Sequence[RunOf]) -> Grid:
    columns = ("run", "begun", "version", "promised", "sessions", "verdict")
    rows = [
        (
            run.run,
            run.utc[:16].replace("T", " "),
            str(run.version or ""),
            ", ".join(filter(None, ("exploratory" * run.exploratory, run.timing or ""))),
            str(run.sessions),
            run.verdict or "none yet",
        )
        for run in runs
    ]
    return Grid(columns, rows)


def _total(runs: Sequence[RunOf]) -> str:
    counts = {
        end: sum(getattr(run.sessions, end) for run in runs)
        for end in ("opened", "closed", "failed", "aborted", "abandoned")
    }
    said = ", ".join(f"{count} {end}" for end, count in counts.items())
    return f"In all: {len(runs)} runs, sessions {said}."


def _paragraph(name: str, said: str) -> str:
    return fill(said, WIDTH, initial_indent=f"{name:<{INDENT}}", subsequent_indent=" " * INDENT)
