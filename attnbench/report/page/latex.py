"""Tables for a paper: booktabs, as long as they are, everything from the ledger escaped."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.report.page.plain import first_upper, one_line
from attnbench.report.page.tables import Table
from attnbench.report.page.tex_characters import printed

HEAD = (
    "% Tables of an attnbench ledger, on pages of their own that are turned. Needs\n"
    "% \\usepackage{array,booktabs,longtable,lscape} and a single column; any TeX engine does.\n"
)


def latex(tables: Sequence[Table]) -> str:
    """A file to \\input: a `longtable` for each."""
    return "\n".join((HEAD, *map(_table, tables)))


def escaped(text: str) -> str:
    """One line of text that TeX prints as it is, in OT1 and T1 alike."""
    return printed(one_line(text))


def _table(table: Table) -> str:
    columns = "".join(_alignment(table, name) for name in table.columns)
    lines = (
        r"\begin{landscape}\scriptsize",
        r"\setlength{\tabcolsep}{3pt}\setlength{\LTcapwidth}{\linewidth}",
        rf"\begin{{longtable}}{{{columns}}}",
        rf"\caption{{{escaped(table.title)}. {escaped(first_upper(table.note))}.}}",
        rf"\label{{tab:{table.name}}}\\",
        *_heads(_row(table.columns)),
        *(_row(row) for row in table.rows),
        r"\end{longtable}",
        r"\end{landscape}",
    )
    return "\n".join(lines) + "\n"


def _heads(columns: str) -> tuple[str, ...]:
    """What stands above the rows on every page of a table, and below them."""
    head = (r"\toprule", columns, r"\midrule")
    return (*head, r"\endfirsthead", *head, r"\endhead", r"\bottomrule", r"\endfoot")


def _alignment(table: Table, column: str) -> str:
    if column in table.shares:
        return rf">{{\raggedright\arraybackslash}}p{{{table.shares[column]}\linewidth}}"
    return "r" if column in table.right else "l"


def _row(cells: Sequence[str]) -> str:
    r"""A row that begins with a bracket would be the option of the `\\` before it."""
    row = " & ".join(map(escaped, cells))
    return rf"{'{}' if row.startswith(('[', '*')) else ''}{row} \\"
