"""What a machine lacks for measuring, the gravest first, each with the command that fixes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnbench.errors import Exit
from attnbench.measure.doctor.examine import Examination
from attnbench.measure.doctor.finding import Finding, Severity

HEADINGS = {
    Severity.BAD: ("would not count", "bold red"),
    Severity.WARN: ("counts, but could be better", "bold yellow"),
    Severity.UNKNOWN: ("cannot be asked here", "bold cyan"),
    Severity.OK: ("fit", "bold green"),
}
SAID = {
    Exit.DONE: ("A measurement here counts.", "bold green"),
    Exit.VOID: ("A measurement here would not count.", "bold red"),
    Exit.LEDGER_BROKEN: ("The ledger is broken: nothing can be recorded.", "bold red"),
}


def print_examination(console: Console, examination: Examination) -> None:
    """Print it; a command stays one line, however narrow the terminal, so that it can be copied."""
    for part in _parts(examination):
        console.print(part, soft_wrap=isinstance(part, Text), highlight=False)


def _parts(examination: Examination) -> Iterator[Table | Text]:
    """What is printed, one after the other: tables fold, and text keeps its lines whole."""
    where = " · ".join(filter(None, (examination.device, examination.name)))
    yield Text(where, style="bold")
    width = max(len(finding.check) for finding in examination.findings)
    for severity, (heading, style) in HEADINGS.items():
        found = [f for f in examination.findings if f.severity is severity]
        if found:
            yield Text(f"\n{heading}", style=style)
            yield from _group(found, width)
    said, style = SAID[examination.exit_code]
    yield Text(f"\n{said}", style=style)


def _group(findings: Sequence[Finding], width: int) -> Iterator[Table | Text]:
    for finding in findings:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(min_width=width, max_width=width)
        table.add_column(overflow="fold")
        table.add_row(Text(finding.check), Text(finding.seen))
        if finding.why:
            table.add_row("", Text(finding.why, style="dim"))
        yield table
        if finding.fix:
            yield Text(f"  {finding.fix}", style="bold cyan")


def examination_json(examination: Examination) -> str:
    """The same for machines."""
    return msgspec.json.encode(
        {
            "device": examination.device,
            "name": examination.name,
            "exit_code": int(examination.exit_code),
            "findings": examination.findings,
        }
    ).decode()
