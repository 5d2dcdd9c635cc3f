"""Speed-ups of one run with their intervals, each with both of its verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import UNSET

from attnbench.ledger import Status
from attnbench.report.page.cells import Run
from attnbench.report.page.drawing import Drawing, log_ratio_axis, row_labels
from attnbench.report.page.palette import LIGHT, MARKERS, tone
from attnbench.report.page.plain import shorten
from attnbench.report.page.reading import Arm
from attnbench.report.words import arm_name, cell_title, limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN = 0.235
FRAME_IN = 0.62
LONGEST_SAID = 76  # characters


def forest(run: Run) -> Drawing | None:
    """None where no arm has a ratio with an interval."""
    rows = [arm for arm in run.rows() if arm.result.ratio is not UNSET]
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _draw(axes, rows)
        axes.set_xlabel(f"speed-up: time of {_baseline(run)} over the arm's, {_level(rows)}")

    return Drawing(
        name=f"speed-up-{run.arms[0].record.id[:12]}",
        title=cell_title(run.cell),
        note=f"run {run.name}: {run.measured_as}",
        said=f"speed-ups with intervals of run {run.name} in the cell {cell_title(run.cell)}",
        height_in=FRAME_IN + ROW_IN * len(rows),
        draw=draw,
    )


def verdicts(arm: Arm) -> str:
    """Latency and quality, never one without the other."""
    verdict = arm.result.verdict
    mark = "" if arm.status is Status.LIVE else f" ({arm.status.value})"
    latency = verdict.latency or "control"
    return f"{latency}, quality {verdict.quality}{mark}"


def _draw(axes: Axes, rows: Sequence[Arm]) -> None:
    row_labels(axes, [arm_name(r.result) for r in rows], [f"r-{r.record.id}" for r in rows])
    axes.axvline(1, color=LIGHT["soft"], linewidth=0.8)
    for row, arm in enumerate(rows):
        _interval(axes, row, arm)
    log_ratio_axis(axes)
    beside = axes.get_yaxis_transform()
    for row, arm in enumerate(rows):
        ratio = arm.result.ratio
        assert ratio is not UNSET
        value = f"{ratio.estimate:.3f}× [{limits(ratio)}]  {verdicts(arm)}"
        axes.text(
            1.02, row, shorten(value, LONGEST_SAID), transform=beside, va="center", fontsize=7.5
        )


def _interval(axes: Axes, row: int, arm: Arm) -> None:
    ratio = arm.result.ratio
    assert ratio is not UNSET
    look = tone(arm.result.verdict.latency)
    axes.errorbar(
        ratio.estimate,
        row,
        xerr=[[ratio.estimate - ratio.low], [ratio.high - ratio.estimate]],
        fmt=MARKERS[look],
        color=LIGHT[look],
        markersize=4.5,
        markerfacecolor=LIGHT[look] if arm.counts else "none",
        capsize=3,
        linewidth=1.2,
        alpha=1.0 if arm.counts else 0.5,
    )


def _baseline(run: Run) -> str:
    return "A" if run.baseline is None else f"{run.baseline.result.method} (A)"


def _level(rows: Sequence[Arm]) -> str:
    levels = {r.result.ratio.level for r in rows if r.result.ratio is not UNSET}
    return " and ".join(f"{level:.0%} intervals" for level in sorted(levels))
