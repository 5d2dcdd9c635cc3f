"""Tables for a paper: booktabs, everything from the ledger escaped."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.report.page.plain import first_upper, one_line
from attnbench.report.page.tables import Table

HEAD = (
    "% Tables of an attnbench ledger. Needs \\usepackage{booktabs}; names in other than Latin "
    "letters need XeLaTeX or LuaLaTeX.\n"
)
_MEANT = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\`{}",
    "×": r"$\times$",
    "′": r"$'$",
    "·": r"$\cdot$",
    "–": "--",
    "−": "$-$",
    "…": r"\ldots{}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "\N{REPLACEMENT CHARACTER}": "?",
}


def latex(tables: Sequence[Table]) -> str:
    """A file to \\input: a `table` for each."""
    return "\n".join((HEAD, *map(_table, tables)))


def escaped(text: str) -> str:
    """One line of text that TeX prints as it is, in OT1 and T1 alike."""
    return "".join(_MEANT.get(character, character) for character in one_line(text))


def _table(table: Table) -> str:
    lines = (
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escaped(table.title)}. {escaped(first_upper(table.note))}.}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{''.join(_alignment(table, name) for name in table.columns)}}}",
        r"\toprule",
        _row(table.columns),
        r"\midrule",
        *(_row(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    )
    return "\n".join(lines) + "\n"


def _alignment(table: Table, column: str) -> str:
    if column == table.wide:
        return r"p{0.4\linewidth}"
    return "r" if column in table.right else "l"


def _row(cells: Sequence[str]) -> str:
    r"""A row that begins with a bracket would be the option of the `\\` before it."""
    row = " & ".join(map(escaped, cells))
    return rf"{'{}' if row.startswith(('[', '*')) else ''}{row} \\"
