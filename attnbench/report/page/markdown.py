"""Tables in Markdown, everything from the ledger escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attnbench.report.page.plain import first_upper, one_line
from attnbench.report.page.tables import Table

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$])")


def markdown(tables: Sequence[Table]) -> str:
    """A heading, the table and its note, for each."""
    return "\n".join(map(_table, tables))


def escaped(text: str) -> str:
    """One line of text that neither Markdown nor the HTML in it takes for markup."""
    html = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", html).replace("://", "&#58;//").replace("@", "&#64;")


def _table(table: Table) -> str:
    rule = ["---:" if name in table.right else "---" for name in table.columns]
    rows = [list(map(escaped, row)) for row in (table.columns, *table.rows)]
    lines = [_row(rows[0]), _row(rule), *map(_row, rows[1:])]
    note = f"{escaped(first_upper(table.note))}."
    return "\n".join((f"### {escaped(table.title)}", "", *lines, "", note, ""))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
