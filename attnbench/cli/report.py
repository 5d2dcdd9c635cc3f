"""`attnbench report`: one self-contained HTML page of a ledger; figures and tables beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.cli.ledger_filters import parse_since
from attnbench.cli.options import DEFAULT, AsJson, LedgerPath
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from attnbench.report.page.html import Contents
    from attnbench.report.page.selection import Selection


def report(
    path: LedgerPath = DEFAULT,
    output: Annotated[
        Path, typer.Option("--output", "-o", "--out", help="The page.", dir_okay=False)
    ] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option(help="Write every figure there, as PNG and SVG.", file_okay=False),
    ] = None,
    latex: Annotated[
        Path | None, typer.Option(help="Write the tables there, for LaTeX.", dir_okay=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables there, in Markdown.", dir_okay=False)
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option(help="Only runs whose id begins so; again for more.")
    ] = None,
    since: Annotated[
        str, typer.Option(help="Only runs that recorded something from this date or time (UTC) on.")
    ] = "",
    last: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Only so many runs, the last ones; 0: all.",
            show_default="100, with --run or --since all of theirs",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make one page of a ledger: claims, results, figures, and what was taken back.

    One file that asks the network for nothing; the same ledger gives the same bytes.

    It has all claims and remarks, and results of the last 100 runs unless you choose others.

    Examples:

    attnbench report

    attnbench report --ledger other/ledger.jsonl -o other.html

    attnbench report --run 81c2 --run 3f9a

    attnbench report --figures figures --latex tables.tex --markdown tables.md
    """
    from attnbench.ledger import Ledger
    from attnbench.report.page.html import Contents, page
    from attnbench.report.page.reading import Reading

    wanted = _selection(run or [], since, last)
    contents = Contents(Reading.of(Ledger(path), wanted))
    written = [_write(output, page(contents))]
    written += _tables(contents, latex, markdown)
    written += _figures(contents, figures) if figures else []
    if as_json:
        typer.echo(json.dumps(_as_json(contents, written), ensure_ascii=False, indent=2))
    else:
        typer.echo("\n".join(_as_text(contents, written)))


def _selection(runs: list[str], since: str, last: int | None) -> Selection:
    """What is asked for: where that is nothing, the last runs."""
    from attnbench.report.page.selection import LAST, Selection

    if last is None:
        last = 0 if runs or since else LAST
    return Selection(tuple(runs), parse_since(since), last)


def _tables(contents: Contents, latex: Path | None, markdown: Path | None) -> Iterator[Path]:
    if latex:
        from attnbench.report.page.latex import latex as as_latex

        yield _write(latex, as_latex(contents.tables))
    if markdown:
        from attnbench.report.page.markdown import markdown as as_markdown

        yield _write(markdown, as_markdown(contents.tables))


def _figures(contents: Contents, folder: Path) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [file for drawing in contents.drawings() for file in drawing.write(folder)]
    except OSError as error:
        raise _unwritable(folder, error) from None


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from None
    return path


def _unwritable(path: Path, error: OSError) -> AttnbenchError:
    return AttnbenchError(
        f"{path} cannot be written: {error.strerror or error}",
        hint="Choose another place; `attnbench report --help` names the options.",
    )


def _as_text(contents: Contents, written: list[Path]) -> Iterator[str]:
    counted = Counter(claim.standing for claim in contents.claims)
    claims = ", ".join(f"{number} {word}" for word, number in counted.items()) or "none"
    reading = contents.reading
    yield (
        f"{len(reading.records)} records: {len(reading.arms)} results in {len(contents.cells)} "
        f"cells; claims: {claims}."
    )
    if not reading.chosen.is_all:
        yield (
            f"{len(reading.chosen.runs)} of {reading.chosen.of} runs are shown; "
            "--run, --since and --last choose others."
        )
    if contents.statements:
        number = len(contents.statements)
        statements = "1 statement" if number == 1 else f"{number} statements"
        yield f"{statements} without a rule, counted nowhere."
    if reading.unread:
        number = len(reading.unread)
        results = "1 result" if number == 1 else f"{number} results"
        yield f"{results} cannot be read by this version; the page says why."
    yield from _what_was_written(written)


def _what_was_written(written: list[Path]) -> Iterator[str]:
    """Each file but the figures, which are many."""
    figures = [file for file in written if file.suffix in (".png", ".svg")]
    yield from (f"wrote {file}" for file in written if file not in figures)
    if figures:
        yield f"wrote {len(figures)} files of figures to {figures[0].parent}"


def _as_json(contents: Contents, written: list[Path]) -> dict[str, Any]:
    from attnbench.report.page import sessions

    reading = contents.reading
    return {
        "ledger": str(reading.name),
        "records": len(reading.records),
        "head": reading.records[-1].hash if reading.records else None,
        "runs": {"shown": len(reading.chosen.runs), "of": reading.chosen.of},
        "standing": contents.standing(),
        "claims": [
            {
                "key": claim.key,
                "system": claim.system,
                "claim": claim.statement,
                "verdict": claim.standing,
                "reason": claim.reason,
                "record": claim.counting.id,
            }
            for claim in contents.claims
        ],
        "statements_without_a_rule": [
            {"claim": each.statement, "record": each.counting.id} for each in contents.statements
        ],
        "cells": len(contents.cells),
        "results": len(reading.arms),
        "unread": [record.id for record, _ in reading.unread],
        "sessions": dict(sessions.total(contents.sessions)),
        "written": list(map(str, written)),
    }
