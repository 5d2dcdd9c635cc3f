"""What the instrument says of itself: A against A′, effects of order, injected delays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from attnbench.protocol.calibration_result import Bias, Level
from attnbench.protocol.result import Interval, Statistics
from attnbench.report.page.cells import CellRuns, Run
from attnbench.report.page.drawing import Drawing, row_labels
from attnbench.report.page.palette import LIGHT
from attnbench.report.page.reading import Calibration, Reading
from attnbench.report.words import cell_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN = 0.3
FRAME_IN = 0.75
SPREAD = 0.32  # of a row: how far apart the arms of a run are drawn


@dataclass(frozen=True)
class Control:
    """A over A′ in one run and cell, by both centres, and the effects of order on its arms."""

    run: Run
    aa: Interval
    robust: Interval | None
    position: Sequence[Interval]
    carry_over: Sequence[Interval]

    @property
    def label(self) -> str:
        cell = self.run.cell
        return f"{self.run.name} · {cell.scope} · {cell.mode} · {cell.context}"

    @property
    def on_gpu(self) -> bool:
        return self.run.on_gpu

    @property
    def link(self) -> str:
        return f"r-{self.run.arms[0].record.id}"


def controls(found: Sequence[CellRuns]) -> tuple[Control, ...]:
    """Of every run that stands, in the order of the cells."""
    runs = (run for each in found for run in (each.shown, *each.others) if run.stands)
    return tuple(control for run in runs if (control := _control(run)) is not None)


def newest_calibrations(reading: Reading) -> tuple[Calibration, ...]:
    """The last record of each calibration: one that went on is recorded anew, with all of it."""
    newest = {(each.result.run, each.result.calibration): each for each in reading.calibrations}
    return tuple(newest.values())


def order_counts(found: Sequence[Control]) -> tuple[int, int]:
    """How many effects of order are clear of 0, and how many there are."""
    effects = [effect for control in found for effect in (*control.position, *control.carry_over)]
    return sum(map(_is_clear, effects)), len(effects)


def aa_plot(found: Sequence[Control]) -> Drawing:
    """A over A′ by run; where the instrument is sound, the intervals hold 0."""

    def draw(figure: Figure) -> None:
        panels = _panels(figure, found, columns=1)
        for (axes,), of_kind in panels:
            for row, control in enumerate(of_kind):
                _percent_interval(axes, row - 0.12, control.aa, "good", "o")
                if control.robust is not None:
                    _percent_interval(axes, row + 0.12, control.robust, "open", "D")
            _percent_axis(axes, "A over A′ minus 1, %, with its interval over sessions")
        marks = (("good", "o", "mean over blocks"), ("open", "D", "robust centre"))
        _legend(panels[0][0][0], marks)

    return Drawing(
        name="a-against-a",
        title="One method against itself in the same run",
        note="every run of this ledger that stands",
        said="intervals of A over A′ of each run",
        height_in=_height_in(found),
        draw=draw,
    )


def order_plot(found: Sequence[Control]) -> Drawing:
    """Every arm's effect of its place in a block, and of following another arm."""

    def draw(figure: Figure) -> None:
        panels = _panels(figure, found, columns=2)
        for (position, carry_over), of_kind in panels:
            _effects(position, of_kind, lambda c: c.position, "last place over first, %")
            _effects(
                carry_over, of_kind, lambda c: c.carry_over, "right after an arm over others, %"
            )
        marks = (("plain", "o", "holds 0"), ("bad", "s", "clear of 0"))
        _legend(panels[0][0][1], marks)

    return Drawing(
        name="order",
        title="Does the order of measuring change the times?",
        note="every arm of every run that stands; of 95 % intervals one in twenty is clear of 0",
        said="effects of position and carry-over on the times of each arm, by run",
        height_in=_height_in(found),
        draw=draw,
    )


def injected_plot(calibration: Calibration, levels: Sequence[Level]) -> Drawing | None:
    """What was measured of known slow-downs, minus what they truly were; None of none."""
    known = [level for level in levels if _error(level, level.measured) is not None]
    if not known:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        link = f"r-{calibration.record.id}"
        row_labels(axes, [_injected(level) for level in known], [link] * len(known))
        for row, level in enumerate(known):
            centres = (
                (level.measured, -0.12, "good", "o"),
                (level.measured_robust, 0.12, "open", "D"),
            )
            for measured, offset, colour, mark in centres:
                if error := _error(level, measured):
                    _percent_interval(axes, row + offset, error, colour, mark)
        _legend(axes, (("good", "o", "mean over blocks"), ("open", "D", "robust centre")))
        _percent_axis(axes, "measured minus true slow-down, percentage points, with its interval")

    return Drawing(
        name=f"injected-{calibration.record.id[:12]}",
        title=f"Known slow-downs: {cell_title(calibration.result.cell)}",
        note=f"run {calibration.result.run}",
        said="measured minus true slow-down for each injected level",
        height_in=FRAME_IN + ROW_IN * len(known),
        draw=draw,
    )


def bias_plot(calibration: Calibration, found: Sequence[Bias]) -> Drawing:
    """One method as A and as B, by way of measuring: every process, and the interval over them."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        link = f"r-{calibration.record.id}"
        row_labels(axes, [bias.how for bias in found], [link] * len(found))
        for row, bias in enumerate(found):
            points = [100 * (ratio - 1) for ratio in bias.each]
            axes.plot(points, [row] * len(points), "|", color=LIGHT["soft"], markersize=7)
            if bias.ratio is not UNSET:
                _percent_interval(axes, row, bias.ratio, "good", "o")
        _percent_axis(axes, "first over second minus 1, %; 0 is right; strokes are processes")

    return Drawing(
        name=f"first-and-second-{calibration.record.id[:12]}",
        title=f"One method, first against second: {cell_title(calibration.result.cell)}",
        note=f"run {calibration.result.run}",
        said="ratio of one method measured first over second, by way of measuring",
        height_in=FRAME_IN + 0.45 * len(found),
        draw=draw,
    )


def _kinds(found: Sequence[Control]) -> list[tuple[str, list[Control]]]:
    """Runs on GPUs and runs on CPUs, which are noisier by orders of magnitude."""
    kinds = (
        ("on a GPU", [c for c in found if c.on_gpu]),
        ("on a CPU", [c for c in found if not c.on_gpu]),
    )
    return [(name, of_kind) for name, of_kind in kinds if of_kind]


def _height_in(found: Sequence[Control]) -> float:
    return FRAME_IN * len(_kinds(found)) + ROW_IN * len(found)


def _panels(
    figure: Figure, found: Sequence[Control], columns: int
) -> list[tuple[Sequence[Axes], list[Control]]]:
    """The axes of each kind of device, side by side, and the runs that are its rows: what is wide
    on a CPU would leave of a GPU's intervals nothing but dots."""
    kinds = _kinds(found)
    sizes = [len(of_kind) + 1 for _, of_kind in kinds]
    grid = figure.subplots(len(kinds), columns, squeeze=False, sharey="row", height_ratios=sizes)
    for axes, (name, of_kind) in zip(grid, kinds, strict=True):
        row_labels(axes[0], [c.label for c in of_kind], [c.link for c in of_kind])
        for other in axes[1:]:
            other.tick_params(labelleft=False)
        if len(kinds) > 1:
            axes[0].set_ylabel(name)
    return [(list(axes), of_kind) for axes, (_, of_kind) in zip(grid, kinds, strict=True)]


def _control(run: Run) -> Control | None:
    found = [a.result.statistics for a in run.arms if a.counts and a.result.statistics is not UNSET]
    first = next((each for each in found if each.aa is not UNSET), None)
    if first is None or first.aa is UNSET:
        return None
    return Control(
        run=run,
        aa=first.aa,
        robust=None if first.aa_robust is UNSET else first.aa_robust,
        position=_known(found, lambda each: each.position_effect),
        carry_over=_known(found, lambda each: each.carry_over),
    )


def _known(found: Sequence[Statistics], effect: Callable[[Statistics], object]) -> list[Interval]:
    return [each for each in map(effect, found) if isinstance(each, Interval)]


def _is_clear(effect: Interval) -> bool:
    return not effect.low <= 1 <= effect.high


def _effects(
    axes: Axes,
    found: Sequence[Control],
    effects: Callable[[Control], Sequence[Interval]],
    label: str,
) -> None:
    for row, control in enumerate(found):
        of_run = effects(control)
        for place, effect in enumerate(of_run):
            offset = SPREAD * (2 * place / max(len(of_run) - 1, 1) - 1)
            look, mark = ("bad", "s") if _is_clear(effect) else ("plain", "o")
            _percent_interval(axes, row + offset, effect, look, mark, size=2.4, cap=0)
    _percent_axis(axes, label)


def _percent_interval(
    axes: Axes,
    row: float,
    ratio: Interval,
    colour: str,
    mark: str,
    *,
    size: float = 4,
    cap: float = 3,
) -> None:
    value, low, high = (100 * (each - 1) for each in (ratio.estimate, ratio.low, ratio.high))
    axes.errorbar(
        value,
        row,
        xerr=[[value - low], [high - value]],
        fmt=mark,
        color=LIGHT[colour],
        markersize=size,
        capsize=cap,
        linewidth=1 if cap else 0.7,
    )


def _percent_axis(axes: Axes, label: str) -> None:
    """0 in its middle, so that a shift to one side is seen as one."""
    widest = max(map(abs, axes.get_xlim()))
    axes.set_xlim(-widest, widest)
    axes.axvline(0, color=LIGHT["soft"], linewidth=0.8, zorder=0)
    axes.set_xlabel(label)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _legend(axes: Axes, marks: Sequence[tuple[str, str, str]]) -> None:
    for colour, mark, label in marks:
        axes.plot([], [], mark, color=LIGHT[colour], markersize=4, label=label)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(marks), borderaxespad=0)


def _injected(level: Level) -> str:
    return f"{level.arm} (true {level.true:.3%})"


def _error(level: Level, measured: Interval | UnsetType) -> Interval | None:
    """As a ratio around 1, in the units of the slow-down; None where either is not known."""
    if level.true is UNSET or measured is UNSET:
        return None
    return Interval(
        estimate=1 + measured.estimate - level.true,
        low=1 + measured.low - level.true,
        high=1 + measured.high - level.true,
        level=measured.level,
    )
