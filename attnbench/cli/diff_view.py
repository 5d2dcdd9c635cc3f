"""How a comparison of results looks, as text and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import typer

from attnbench.cli.ledger_views import STYLES, arm_text, cell_text
from attnbench.cli.tabular import Grid, show
from attnbench.ledger import Diff, Gate, Status
from attnbench.ledger.comparison import Change
from attnbench.ledger.entry import VERDICTS, Entry, Estimate

COLUMNS = (
    "arm", "ms before", "after", "change", "speed-up before", "after", "change", "interval",
    "verdicts", "notes",
)  # fmt: skip


def diff_json(diff: Diff, gate: Gate | None) -> dict[str, Any]:
    """A comparison as JSON, with what a limit says of it; what was not measured is left out."""
    shown = {"comparable": not diff.not_comparable, **_measured(asdict(diff))}
    return shown if gate is None else {**shown, "limit": asdict(gate)}


def show_diff(diff: Diff, gate: Gate | None) -> None:
    """Print a comparison: one table a cell, what else is not the same, and what a limit says."""
    typer.echo(f"before: {diff.before}\nafter:  {diff.after}")
    if diff.not_comparable:
        typer.echo(f"Not comparable: {diff.not_comparable}.")
    else:
        _show_changes(diff)
    if gate is not None:
        typer.echo("\n".join(_gate_lines(gate)))


def _show_changes(diff: Diff) -> None:
    rows: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for change in diff.changes:
        rows[cell_text(change.cell)].append(_row(change))
    for cell, of_cell in rows.items():
        typer.echo(f"\n{cell}")
        show(Grid(COLUMNS, of_cell, right=frozenset(COLUMNS[1:8]), styles=STYLES))
    typer.echo("\n".join(["", *_unchanged(diff), *_remarks(diff)]))


def _unchanged(diff: Diff) -> Iterator[str]:
    if diff.unchanged:
        results = "1 result is" if diff.unchanged == 1 else f"{diff.unchanged} results are"
        yield f"{results} the same record on both sides: unchanged."


def _gate_lines(gate: Gate) -> Iterator[str]:
    limit = f"more than {gate.allowed * 100:.3g} % slower"
    yield from (f"{limit}: {text}" for text in gate.slower)
    yield from (f"cannot be told: {text}" for text in gate.open)
    if not gate.slower and not gate.open:
        yield f"No candidate is {limit}."


def _measured(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _measured(item) for key, item in value.items() if item is not None}
    return [_measured(item) for item in value] if isinstance(value, list | tuple) else value


def _row(change: Change) -> tuple[str, ...]:
    return (
        _name(change),
        _ms(change.before),
        _ms(change.after),
        "" if change.latency_ratio is None else f"{change.latency_ratio - 1:+.1%}",
        _speedup(change.before),
        _speedup(change.after),
        "" if change.speedup_ratio is None else f"{change.speedup_ratio.estimate - 1:+.1%}",
        _interval(change.speedup_ratio),
        _verdicts(change),
        "; ".join(_notes(change)),
    )


def _name(change: Change) -> str:
    known = change.after or change.before
    return arm_text(change.arm, known.method if known else "")


def _ms(entry: Entry | None) -> str:
    return "" if entry is None or entry.median_ms is None else f"{entry.median_ms:.3f}"


def _speedup(entry: Entry | None) -> str:
    return "" if entry is None or entry.speedup is None else f"{entry.speedup.estimate:.3f}×"


def _interval(ratio: Estimate | None) -> str:
    if ratio is None or ratio.low is None or ratio.high is None:
        return ""
    return f"{ratio.low - 1:+.1%} to {ratio.high - 1:+.1%}"


def _verdicts(change: Change) -> str:
    known = change.after or change.before
    texts = dict(known.verdicts) if known else {}
    for part, (old, new) in change.verdict_changes.items():
        texts[part] = f"{old or '–'} → {new or '–'}"
    return ", ".join(f"{part} {texts[part]}" for part in VERDICTS if part in texts)


def _notes(change: Change) -> list[str]:
    alone = [
        f"only {side}"
        for side, other in (("before", change.after), ("after", change.before))
        if other is None
    ]
    marks = [
        f"{side} is {entry.status.value}"
        for side, entry in (("before", change.before), ("after", change.after))
        if entry is not None and entry.status is not Status.LIVE
    ]
    return [*alone, *marks, *change.notes]


def _remarks(diff: Diff) -> list[str]:
    if not diff.changes:
        lines = []
    elif not diff.circumstances:
        lines = ["Environment, protocol, version and commit are the same."]
    else:
        lines = ["What else differs:"]
        lines += [f"  {it.what}: {it.before} → {it.after}" for it in diff.circumstances]
    lines += [f"Only before: {cell_text(cell)}" for cell in diff.only_before]
    lines += [f"Only after: {cell_text(cell)}" for cell in diff.only_after]
    if any(change.speedup_ratio for change in diff.changes):
        lines.append(
            "Intervals take the two speed-ups as independent; times carry none across runs."
        )
    return lines
