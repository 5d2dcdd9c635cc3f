from __future__ import annotations

from attnbench.cli.tabular import Grid, plain_lines, with_legend

GRID = Grid(
    columns=("arm", "ms", "cell"),
    rows=[("a", "1.5", "long text"), ("longer", "10.25", "other"), ("b", "", "long text")],
    right=frozenset({"ms"}),
    legend="cell",
)


def test_plain_text_is_aligned_and_whole():
    assert plain_lines(GRID) == [
        "arm        ms  cell",
        "a         1.5  long text",
        "longer  10.25  other",
        "b              long text",
    ]


def test_a_legend_names_each_long_text_once():
    short, texts = with_legend(GRID)
    assert [row[2] for row in short.rows] == ["1", "2", "1"]
    assert texts == ["long text", "other"]
