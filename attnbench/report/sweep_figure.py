"""One figure of a sweep: latency against context, with each context's byte floor and ceiling.

Absolute times are those of a GPU alone; of a CPU times over A's, because its milliseconds are those
of one machine on one day.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET

from attnbench.errors import AttnbenchError, UsageError
from attnbench.ledger.entry import model_name
from attnbench.protocol.cell import Role
from attnbench.protocol.result import ArmResult

FORMATS = (".png", ".pdf", ".svg")
PANEL_INCHES = (5.6, 4.2)
BASELINE, FLOOR, CEILING = "A, the strongest exact arm", "byte floor of A", "zero-cost ceiling"

Value = Callable[[ArmResult], tuple[float, float, float] | None]
Points = list[tuple[int, float, float, float]]  # context, value, and its lower and upper limit


def refuse_figure(path: Path) -> None:
    """Raise `UsageError` before anything is measured where the figure could not be written."""
    if path.suffix not in FORMATS:
        raise UsageError(f"--figure {path} is of no known format", hint=f"use {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--figure {path}: there is no folder {path.absolute().parent}")


def draw(results: Sequence[ArmResult], path: Path) -> None:
    """Draw all cells that have figures into `path`; raises `AttnbenchError` where none has."""
    measured = [r for r in results if r.latency_ms is not UNSET]
    if not measured:
        raise AttnbenchError("there is nothing to draw: no cell has a latency")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(measured)
    wide, high = PANEL_INCHES
    figure = Figure(figsize=(wide * len(panels), high + 1), layout="constrained")
    FigureCanvasAgg(figure)
    every_axis = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, of_panel) in zip(every_axis, panels.items(), strict=True):
        _panel(axis, title, of_panel)
    figure.suptitle(_title(measured[0]), fontsize=10)
    handles = dict(_handles(every_axis))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8)
    with rc_context({"svg.fonttype": "none"}):  # words stay words
        figure.savefig(path, dpi=160)


def series(results: Sequence[ArmResult], value: Value) -> dict[str, Points]:
    """By name, each arm's points in ascending context, controls left out: the ceiling is a bound.

    An arm has its whole label where that comes in several contexts, else its method's name: the
    default window grows with the context.
    """
    contexts = defaultdict(set)
    for result in results:
        contexts[result.method].add(result.cell.context)
    found: dict[str, Points] = defaultdict(list)
    for result in results:
        is_drawn = result.role not in (Role.BASELINE_AGAIN, Role.CONTROL)
        if not is_drawn or (point := value(result)) is None:
            continue
        lasting = len(contexts[result.method]) > 1
        name = result.method if lasting else result.method.partition(",")[0]
        found[name].append((result.cell.context, *point))
        if result.role is Role.BASELINE:
            found[BASELINE].append((result.cell.context, *point))
    return {name: sorted(points) for name, points in found.items()}


def milliseconds(result: ArmResult) -> tuple[float, float, float] | None:
    """The median step, with the limits of the ratio to A as limits of it."""
    if result.latency_ms is UNSET:
        return None
    own_ms = result.latency_ms["median"]
    if result.ratio is UNSET:
        return own_ms, own_ms, own_ms
    ratio = result.ratio
    return own_ms, own_ms * ratio.estimate / ratio.high, own_ms * ratio.estimate / ratio.low


def over_baseline(results: Sequence[ArmResult]) -> Value:
    """Its time over A's of the same cell; of too few sessions for an interval, that of medians."""
    own_ms = {
        r.cell: r.latency_ms["median"]
        for r in results
        if r.role is Role.BASELINE and r.latency_ms is not UNSET
    }

    def value(result: ArmResult) -> tuple[float, float, float] | None:
        if result.ratio is not UNSET:
            return 1 / result.ratio.estimate, 1 / result.ratio.high, 1 / result.ratio.low
        if result.latency_ms is UNSET or result.cell not in own_ms:
            return None
        return (result.latency_ms["median"] / own_ms[result.cell],) * 3

    return value


def bounds(results: Sequence[ArmResult], *, absolute: bool) -> dict[str, Points]:
    """The byte floor of A and the ceiling, by context."""
    found: dict[str, Points] = {FLOOR: [], CEILING: []}
    for result in results:
        if result.role is not Role.BASELINE or result.latency_ms is UNSET:
            continue
        unit_ms = 1.0 if absolute else result.latency_ms["median"]
        for name, bound in ((FLOOR, result.floor), (CEILING, result.ceiling)):
            if bound is not UNSET:
                value = bound.ms / unit_ms
                found[name].append((result.cell.context, value, value, value))
    return {name: sorted(points) for name, points in found.items() if points}


def _panels(results: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    found: dict[str, list[ArmResult]] = defaultdict(list)
    for result in sorted(results, key=lambda r: (r.cell.scope, r.cell.mode, r.cell.batch)):
        cell = result.cell
        found[f"batch {cell.batch} · {cell.scope.value} · {cell.mode.value}"].append(result)
    return found


def _panel(axis: Any, title: str, results: Sequence[ArmResult]) -> None:
    absolute = not _on_cpu(results[0])
    lines = series(results, milliseconds if absolute else over_baseline(results))
    for name, points in lines.items():
        contexts, values, lows, highs = zip(*points, strict=True)
        limits = [
            [value - low for value, low in zip(values, lows, strict=True)],
            [high - value for value, high in zip(values, highs, strict=True)],
        ]
        thick = {"linewidth": 5, "color": "0.8", "zorder": 1} if name == BASELINE else {}
        axis.errorbar(
            contexts, values, yerr=limits, marker="o", markersize=4, capsize=2, label=name, **thick
        )
    styles = {FLOOR: "--", CEILING: ":"}
    for name, points in bounds(results, absolute=absolute).items():
        contexts, values, *_ = zip(*points, strict=True)
        axis.plot(
            contexts, values, styles[name], marker="_", color="0.35", linewidth=1.6, label=name
        )
    axis.set_xscale("log", base=2)
    if absolute:
        axis.set_yscale("log")
    ticks = sorted({result.cell.context for result in results})
    axis.set_xticks(ticks, labels=[str(tick) for tick in ticks], rotation=30, fontsize=8)
    axis.xaxis.minorticks_off()
    axis.set_xlabel("context, tokens")
    axis.set_ylabel("ms a step" if absolute else "time over A's (a CPU: ratios alone count)")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)


def _handles(every_axis: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for axis in every_axis:
        handles, labels = axis.get_legend_handles_labels()
        yield from zip(labels, handles, strict=True)


def _title(result: ArmResult) -> str:
    cell, protocol = result.cell, result.protocol
    return (
        f"{model_name(cell.model)}, {cell.dtype}, on {cell.device}\n"
        f"protocol {protocol['name']}: sessions {protocol['sessions']}, blocks in each "
        f"{protocol['blocks']}; {protocol['level']:.0%} intervals; run {result.run}"
    )


def _on_cpu(result: ArmResult) -> bool:
    return not result.environment.get("device_uuid")
