from __future__ import annotations

import re

import pytest

from attnbench.report.page import latex, markdown
from attnbench.report.page.html import Contents
from attnbench.report.page.reading import Reading
from attnbench.report.page.tables import RESULT_COLUMNS, Table

HOSTILE = r"""[*] \input{/etc/passwd} $x$ a_b^c ~100% & #1 "q" `<b>` | next
line ![i](http://e.org/x.png) \end{tabular} <script>"""


@pytest.fixture
def tables(made) -> tuple[Table, ...]:
    return Contents(Reading.of(made.ledger)).tables


def hostile(rows: int = 1) -> Table:
    cells = [[HOSTILE, HOSTILE]] * rows
    return Table("name", HOSTILE, ("arm", HOSTILE), cells, HOSTILE)


def test_there_is_a_table_of_the_claims_and_one_of_each_cell(tables):
    assert [len(table.rows) for table in tables] == [3, 2, 6, 5]
    text = latex.latex(tables)
    assert text.count(r"\toprule") == text.count(r"\end{table}") == 4
    assert markdown.markdown(tables).count("### ") == 4


def test_quality_stands_right_beside_latency_in_both(tables):
    assert RESULT_COLUMNS.index("quality") == RESULT_COLUMNS.index("latency") + 1
    for text in (latex.latex(tables), markdown.markdown(tables)):
        [row] = [line for line in text.splitlines() if "sink" in line and "1.800" in line]
        assert re.search(r"FASTER (&|\|) KILL", row)


def test_every_row_of_latex_has_the_columns_of_its_table_whatever_the_text():
    text = latex.latex([hostile()])
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1, 1]
    assert rows[1].startswith("{}[")  # not the option of the line break before it


def test_latex_of_hostile_text_has_no_command_but_those_that_print_it():
    shown = latex.escaped(HOSTILE)
    allowed = r"\\(textbackslash\{\}|textasciitilde\{\}|textasciicircum\{\}|textless\{\}|"
    allowed += r"textgreater\{\}|textbar\{\}|`\{\}|[{}$&%#_])"
    assert re.sub(allowed, "", shown).count("\\") == 0
    assert not re.search(r"(?<!\\)[$&%#_]", shown)
    assert "\n" not in shown


def test_markdown_of_hostile_text_is_neither_markup_nor_another_column():
    text = markdown.markdown([hostile(rows=2)])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3] * 4
    assert "<" not in text
    assert "http://" not in text
    assert not re.search(r"(?<!\\)[\[`*_$]", text)
