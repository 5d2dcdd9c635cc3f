from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from attnbench.report.page import latex, markdown, tex_characters
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
    assert text.count(r"\endfirsthead") == text.count(r"\end{longtable}") == 4
    assert markdown.markdown(tables).count("### ") == 4


def test_a_claim_has_its_figures_its_rule_and_its_verdict_with_what_it_rests_on(tables):
    names = ("key", "claim", "source's figure", "re-derived", "rule", "observed", "verdict")
    assert (*names, "record") == tables[0].columns
    [row] = [row for row in tables[0].rows if row[0] == "DCR-18"]
    of = dict(zip(tables[0].columns, row, strict=True))
    assert of["rule"].endswith("; holds if about 1.09 ratio of times within 2 %; universal")
    assert of["observed"] == "1.048 speed-up"
    assert of["verdict"] == "SUPPORTED (bound-held); quality PASS of int8_kv,impl=triton"


def test_quality_stands_right_beside_latency_in_both(tables):
    assert RESULT_COLUMNS.index("quality") == RESULT_COLUMNS.index("latency") + 1
    for text in (latex.latex(tables), markdown.markdown(tables)):
        [row] = [line for line in text.splitlines() if "sink" in line and "1.800" in line]
        assert re.search(r"FASTER (&|\|) KILL", row)


def test_every_row_of_latex_has_the_columns_of_its_table_whatever_the_text():
    text = latex.latex([hostile()])
    body = text[text.index(r"\toprule") : text.index(r"\end{longtable}")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1, 1, 1]
    assert rows[2].startswith("{}[")  # not the option of the line break before it


def test_latex_of_hostile_text_has_no_command_but_those_that_print_it():
    shown = latex.escaped(HOSTILE)
    allowed = r"\\(textbackslash\{\}|textasciitilde\{\}|textasciicircum\{\}|textless\{\}|"
    allowed += r"textgreater\{\}|textbar\{\}|textasciigrave\{\}|textquotedblright\{\}|"
    allowed += r"allowbreak\{\}|[{}$&%#_])"
    assert re.sub(allowed, "", shown).count("\\") == 0
    assert not re.search(r"(?<!\\)[$&%#_]", shown)
    assert "\n" not in shown


def test_latex_parts_what_a_font_would_join_and_shows_what_it_cannot_print():
    assert latex.escaped("--plan ---") == "-{}-plan -{}-{}-"
    assert latex.escaped("a,b, c/d/") == r"a,\allowbreak{}b, c/\allowbreak{}d/"
    assert latex.escaped("123456789012") == r"12345678\allowbreak{}9012"
    assert latex.escaped("μ µ ‖x‖ é ✓") == r"$\mu$ $\mu$ $\Vert$x$\Vert$ é U+2713"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex here")
@pytest.mark.parametrize("fonts", ["", r"\usepackage[T1]{fontenc}"], ids=["OT1", "T1"])
def test_pdflatex_prints_every_character_and_tables_that_fit_their_pages(tables, fonts, tmp_path):
    known = "".join(tex_characters.KNOWN) + bytes(range(32, 127)).decode() + "àßŁœž ✓注🙂ðŋ"
    rows = [[f"[{known[i : i + 12]}", HOSTILE] for i in range(0, len(known), 12)]
    odd = Table("odd", HOSTILE, ("arm", "what"), rows, HOSTILE, shares={"what": 0.5})
    packages = r"\usepackage{array,booktabs,longtable,lscape}"
    text = latex.latex([*tables, odd])
    document = (
        rf"\documentclass{{article}}{fonts}{packages}\begin{{document}}{text}\end{{document}}"
    )
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-no-shell-escape", "paper.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    log = (tmp_path / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert not re.findall(r"^(?:!|Overfull|Missing character).*", log, re.MULTILINE)
    assert run.returncode == 0


def test_markdown_of_hostile_text_is_neither_markup_nor_another_column():
    text = markdown.markdown([hostile(rows=2)])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3] * 4
    assert "<" not in text
    assert "http://" not in text
    assert not re.search(r"(?<!\\)[\[`*_$]", text)
