"""What methods select in a trained model, as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.quality.made_up_axis import AxisFigures
from attnbench.quality.selecting import ArmSelection, Pair, SelectionReport, Spread
from attnbench.report.words import ABSENT


def following_table(report: SelectionReport) -> RenderableType:
    """Arms, drift, the mean axis, and the static axis on made-up data."""
    taken = report.taken
    title = Text(
        f"{taken.model} · {taken.context} tokens · {taken.windows} windows of {taken.text} · "
        f"{taken.dtype} · {taken.device}",
        "bold",
    )
    notes = [Text(line) for line in _notes(report)]
    return Group(title, _arms(report.arms), _drift(report), *notes, _made_up(report.made_up))


def _arms(arms: tuple[ArmSelection, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", overflow="fold")
    table.add_column("overlap with\nexact top-k", justify="right")
    table.add_column("output\ncosine", justify="right")
    table.add_column("rank correlation of\nboth over heads (95 %)", justify="right")
    for arm in arms:
        table.add_row(arm.arm, f"{arm.overlap:.3f}", f"{arm.cosine:.4f}", _correlation(arm))
    return table


def _correlation(arm: ArmSelection) -> str:
    if arm.correlation is None:
        return ABSENT
    return f"{arm.correlation:.2f} ({arm.low:.2f} to {arm.high:.2f})"


def _drift(report: SelectionReport) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"step of the exact top {report.coverage:.0%}", justify="right")
    table.add_column("drift from step 0 (95 %)", justify="right")
    for step, found in report.drift.items():
        table.add_row(step, _spread(found))
    return table


def _notes(report: SelectionReport) -> Iterator[str]:
    settled = "" if report.settled else "; it has not settled by step 50"
    yield (
        f"drift of selections that know nothing of each other: {report.random_drift:.3f}{settled}. "
        f"From one step to the next {_spread(report.reshuffle)}."
    )
    yield (
        f"heads whose drift is .10 at most over 50 steps: {report.stable_pairs} of {report.pairs}, "
        "in the window with the most."
    )
    yield (
        f"the mean key's direction: of a query's ten most attended tokens "
        f"{_spread(report.axis_overlap)} are among the {report.coverage:.0%} nearest to it; rank "
        f"correlation of projection and attention {_spread(report.axis_correlation)}."
    )
    yield f"overlap promises most beyond its cosine: {_pair(report.most_overlap_for_cosine)}."
    yield f"cosine is highest beyond its overlap: {_pair(report.most_cosine_for_overlap)}."
    yield "A correlation is left out where overlap or cosine hardly vary over heads."
    yield "This judges nothing and is recorded nowhere."


def _made_up(figures: tuple[AxisFigures, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("made-up data:\nqueries")
    table.add_column("coverage", justify="right")
    table.add_column("abkv, cosine\n(range of seeds)", justify="right")
    table.add_column("exact\ntop-k", justify="right")
    table.add_column("random\ntokens", justify="right")
    for each in figures:
        table.add_row(
            "along the important keys" if each.aligned else "in random directions",
            f"{each.coverage:.2f}",
            f"{each.abkv:.4f} ({each.abkv_low:.4f} to {each.abkv_high:.4f})",
            f"{each.top_k:.4f}",
            f"{each.random:.3f}",
        )
    return table


def _spread(found: Spread) -> str:
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def _pair(pair: Pair) -> str:
    return (
        f"{pair.arm}, layer {pair.layer}, head {pair.head}, overlap {pair.overlap:.3f}, cosine "
        f"{pair.cosine:.3f}"
    )
