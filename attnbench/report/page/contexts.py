"""One model against context: the time of a step on a GPU, on a CPU the speed-up alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import UNSET

from attnbench.ledger.entry import model_name
from attnbench.protocol.cell import Role
from attnbench.report.page.cells import Ladder, Run, is_ceiling
from attnbench.report.page.drawing import Drawing
from attnbench.report.page.palette import LIGHT
from attnbench.report.page.plain import one_line, shorten
from attnbench.report.page.reading import Arm
from attnbench.report.words import arm_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT_IN = 4.2
MOST_TICKS = 9
LONGEST_NAME = 34  # characters
# Told apart by dashes and marks too: colours are few, and some readers see fewer.
COLOURS = ("good", "bad", "void", "open", "ink")
MARKS = "osD^vPX"
DASHES = ("-", "--", "-.")


@dataclass(frozen=True)
class _Line:
    """One method over the contexts at which it counts."""

    name: str
    arms: Sequence[Arm]

    @property
    def label(self) -> str:
        verdicts = dict.fromkeys(arm.result.verdict.quality for arm in self.arms)
        name = shorten(one_line(self.name), LONGEST_NAME)
        return f"{name}: quality {shorten(', '.join(verdicts), LONGEST_NAME)}"


def ladder_title(ladder: Ladder) -> str:
    """What all of its cells share."""
    return f"{_what(ladder)} · {ladder.cell.device}"


def against_context(ladder: Ladder) -> Drawing | None:
    """None where no arm has what would be drawn: times on a GPU, on a CPU ratios with intervals."""
    what = _what(ladder)
    if not _drawn(ladder):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        (_draw_times if ladder.on_gpu else _draw_ratios)(axes, ladder)
        _context_axis(axes, ladder)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=7.5)

    return Drawing(
        name=f"context-{ladder.runs[0].arms[0].record.id[:12]}",
        title=ladder_title(ladder),
        note=measured_as(ladder),
        said=f"{'time of a step' if ladder.on_gpu else 'speed-up'} against context: {what}",
        height_in=HEIGHT_IN,
        draw=draw,
    )


def _what(ladder: Ladder) -> str:
    cell = ladder.cell
    return (
        f"{model_name(cell.model)} · batch {cell.batch} · {cell.dtype} · {cell.scope} · {cell.mode}"
    )


def measured_as(ladder: Ladder) -> str:
    """The runs, with what has to stand beside an absolute time."""
    of_runs = [f"{run.cell.context:,}: run {run.name}, {run.measured_as}" for run in ladder.runs]
    return "; ".join(of_runs)


def _draw_times(axes: Axes, ladder: Ladder) -> None:
    """Medians, from the shortest to the longest step; below them the floor of the baseline."""
    for number, (line, timed) in enumerate(_drawn(ladder)):
        _plot(axes, number, line, [_steps(arm) for arm in timed], timed)
    floors = [(run.cell.context, _floor_ms(run)) for run in ladder.runs]
    known = [(context, floor) for context, floor in floors if floor is not None]
    if known:
        contexts, ms = zip(*known, strict=True)
        axes.plot(contexts, ms, ":", color=LIGHT["soft"], linewidth=1.4, label="byte floor of A")
    axes.set_yscale("log")
    axes.set_ylabel("median step, ms (bars: shortest to longest step)")
    _plain_numbers(axes)


def _draw_ratios(axes: Axes, ladder: Ladder) -> None:
    for number, (line, compared) in enumerate(_drawn(ladder)):
        _plot(axes, number, line, [_ratio(arm) for arm in compared], compared)
    axes.axhline(1, color=LIGHT["soft"], linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("speed-up over A, with its interval")
    _plain_numbers(axes)


def _plot(
    axes: Axes,
    number: int,
    line: _Line,
    values: Sequence[tuple[float, float, float]],
    arms: Sequence[Arm],
) -> None:
    ceiling = is_ceiling(line.arms[0].result)
    axes.errorbar(
        [arm.result.cell.context for arm in arms],
        [value for value, _, _ in values],
        yerr=[[v - low for v, low, _ in values], [high - v for v, _, high in values]],
        label=f"{line.label} (ceiling)" if ceiling else line.label,
        color=LIGHT["soft" if ceiling else COLOURS[number % len(COLOURS)]],
        linestyle="--" if ceiling else DASHES[number // len(COLOURS) % len(DASHES)],
        marker=MARKS[number % len(MARKS)],
        markersize=4,
        linewidth=1.2,
        capsize=2.5,
    )


def _drawn(ladder: Ladder) -> list[tuple[_Line, list[Arm]]]:
    """Every line of which there is a point to draw, and the arms that are its points."""
    has = _is_timed if ladder.on_gpu else _is_compared
    lines = [(line, [arm for arm in line.arms if has(arm)]) for line in _lines(ladder)]
    return [(line, points) for line, points in lines if points]


def _is_timed(arm: Arm) -> bool:
    return arm.result.latency_ms is not UNSET


def _is_compared(arm: Arm) -> bool:
    return arm.is_under_test and arm.result.ratio is not UNSET


def _lines(ladder: Ladder) -> list[_Line]:
    """Every method that counts somewhere; A′ is A once more and adds nothing here."""
    by_name: dict[str, list[Arm]] = {}
    for run in ladder.runs:
        for arm in run.rows():
            if arm.counts and arm.result.role is not Role.BASELINE_AGAIN:
                by_name.setdefault(arm_name(arm.result), []).append(arm)
    return [_Line(name, arms) for name, arms in by_name.items()]


def _steps(arm: Arm) -> tuple[float, float, float]:
    ms = arm.result.latency_ms
    assert ms is not UNSET
    return ms["median"], ms.get("min", ms["median"]), ms.get("max", ms["median"])


def _ratio(arm: Arm) -> tuple[float, float, float]:
    ratio = arm.result.ratio
    assert ratio is not UNSET
    return ratio.estimate, ratio.low, ratio.high


def _floor_ms(run: Run) -> float | None:
    if run.baseline is None or run.baseline.result.floor is UNSET:
        return None
    return run.baseline.result.floor.ms


def _context_axis(axes: Axes, ladder: Ladder) -> None:
    contexts = apart([run.cell.context for run in ladder.runs])
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("cached tokens")
    axes.spines["left"].set_visible(True)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def apart(contexts: Sequence[int]) -> list[int]:
    """Those of growing contexts whose names have room on a logarithmic axis."""
    least = (contexts[-1] / contexts[0]) ** (1 / MOST_TICKS)
    kept = [contexts[0]]
    kept += [context for context in contexts[1:] if context >= kept[-1] * least]
    return kept


def _plain_numbers(axes: Axes) -> None:
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted(lambda value, _: f"{value:g}")
    axes.tick_params(axis="y", which="both", labelsize=7.5)
