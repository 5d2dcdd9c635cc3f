"""Plain-text bars: where the baseline's step goes, and how near each place is to its floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET
from rich.console import Group, RenderableType
from rich.text import Text

from attnbench.protocol.cell import Cell, Role
from attnbench.protocol.result import ArmResult, Breakdown, How

WIDTH = 40  # of a whole bar, in characters
KERNEL_WIDTH = 60  # of a kernel's name
FLOOR, CEILING, REST = "█", "▓", "░"
HOW = {
    How.KERNELS: "kernels as a profiler saw them in a process of its own; gaps: the rest of the "
    "step as it was timed without it",
    How.ATTENTION_ALONE: "attention timed alone in the same sessions; the rest is a difference",
}


def breakdowns(results: Sequence[ArmResult]) -> RenderableType:
    """The baseline's step in parts, of every cell that has one."""
    lines = [line for result in results for line in _of_step(result)]
    return Group(*map(Text, lines or ["no cell of this run has whole steps to break down"]))


def _of_step(result: ArmResult) -> Iterator[str]:
    found = result.breakdown
    if found is UNSET:
        return
    where = f"{result.cell.context} tokens × {result.cell.batch}, {result.cell.mode.value}"
    yield f"a step of {result.method} (A), {found.step_ms:.3f} ms, {where}:"
    parts = _parts(found)
    whole_ms = max(found.step_ms, sum(ms for _, ms in parts))
    for name, ms in parts:
        share = ms / whole_ms if whole_ms else 0.0
        yield f"  {name:<15} {FLOOR * round(WIDTH * share):<{WIDTH}} {ms:9.3f} ms {share:6.1%}"
    yield f"  {HOW[found.how]}{_over_sessions(found)}"
    for kernel in found.kernels:
        is_attention = " attention" if kernel.attention_share > 0.5 else ""
        yield (
            f"    {kernel.ms:8.4f} ms {kernel.launches:6.1f} × {kernel.name[:KERNEL_WIDTH]}"
            f"{is_attention}"
        )
    if found.other_kernels:
        yield f"    and {found.other_kernels} more kernels"
    yield ""


def _over_sessions(found: Breakdown) -> str:
    share = found.attention_share
    if share is UNSET:
        return ""
    return f"; attention is {share.low:.1%} to {share.high:.1%} of the step over sessions"


def _parts(found: Breakdown) -> list[tuple[str, float]]:
    if found.gaps_ms is UNSET:
        return [("attention", found.attention_ms), ("other and gaps", found.other_ms)]
    return [
        ("attention", found.attention_ms),
        ("other kernels", found.other_ms),
        ("gaps", found.gaps_ms),
    ]


def places(results: Sequence[ArmResult]) -> RenderableType:
    """A line for every cell: its floor and its ceiling as shares of A's time, and the best arm."""
    cells = list(dict.fromkeys(result.cell for result in results))
    legend = (
        f"A's time in each cell: {FLOOR} its byte floor, {FLOOR}{CEILING} its zero-cost ceiling, "
        f"{REST} the rest. The fastest arm beside it:"
    )
    lines = [_of_cell(cell, [r for r in results if r.cell == cell]) for cell in cells]
    return Group(Text(legend), *map(Text, lines), Text())


def _of_cell(cell: Cell, results: Sequence[ArmResult]) -> str:
    where = f"{cell.context:>8} × {cell.batch:<6} {cell.scope.value} · {cell.mode.value}"
    if results[0].primary:
        where += " (primary)"
    baseline = next((r for r in results if r.role is Role.BASELINE), None)
    if baseline is None or baseline.latency_ms is UNSET:
        verdict = results[0].verdict
        return f"{where:<44} {verdict.latency} ({verdict.latency_reason})"
    return f"{where:<44} {_bar(baseline)} {_best(results)}"


def _bar(baseline: ArmResult) -> str:
    """As long for every cell: floor and ceiling are shares of A's own time."""
    own_ms = 0.0 if baseline.latency_ms is UNSET else baseline.latency_ms["median"]
    floor_ms = 0.0 if baseline.floor is UNSET else baseline.floor.ms
    ceiling_ms = 0.0 if baseline.ceiling is UNSET else baseline.ceiling.ms
    floor = min(WIDTH, round(WIDTH * floor_ms / own_ms))
    ceiling = min(WIDTH, max(floor, round(WIDTH * ceiling_ms / own_ms)))
    return f"{FLOOR * floor}{CEILING * (ceiling - floor)}{REST * (WIDTH - ceiling)}"


def _best(results: Sequence[ArmResult]) -> str:
    judged = [(r.ratio.estimate, r) for r in results if r.role is Role.CANDIDATE and r.ratio]
    if not judged:
        return ""
    estimate, best = max(judged, key=lambda pair: pair[0])
    return f"{best.method} {estimate:.3f}× {best.verdict.latency}, quality {best.verdict.quality}"
