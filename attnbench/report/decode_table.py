"""The table of a decode run: latency, interval, verdicts, quality, memory and floor side by side.

A speed never stands without the quality verdict beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.protocol.cell import Cell, Role
from attnbench.protocol.result import ArmResult, Interval

MIB = 1 << 20
ABSENT = "–"
STYLES = {
    "FASTER": "green",
    "SMALLER": "green",
    "PASS": "green",
    "SUPPORTED": "green",
    "SLOWER": "red",
    "LARGER": "red",
    "KILL": "red",
    "VOID": "magenta",
    "MARGINAL": "yellow",
    "INCONCLUSIVE": "yellow",
}
COLUMNS = ("ms/step", "speed-up", "95 % interval", "latency", "quality", "cos mean / p1", "KV MiB")


def decode_table(results: Sequence[ArmResult]) -> RenderableType:
    """One table a cell, in the order of the results, with the notes that go with it."""
    cells = list(dict.fromkeys(result.cell for result in results))
    return Group(*(_cell_block(cell, [r for r in results if r.cell == cell]) for cell in cells))


def _cell_block(cell: Cell, results: Sequence[ArmResult]) -> RenderableType:
    table = Table(title=cell_title(cell), title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("arm", overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("latency", "quality") else "right")
    table.add_column("× floor", justify="right")
    table.add_column("captured", justify="right")
    for result in results:
        table.add_row(*_row(result), style="dim" if result.role is Role.CONTROL else "")
    return Group(table, *(Text(line) for line in _notes(results)), Text())


def cell_title(cell: Cell) -> str:
    """The cell in words."""
    return (
        f"{cell.model} · {cell.context} tokens · batch {cell.batch} · {cell.dtype} · "
        f"{cell.scope.value} · {cell.mode.value} · {cell.device}"
    )


def _row(result: ArmResult) -> tuple[RenderableType, ...]:
    verdict = result.verdict
    return (
        _arm(result),
        _latency(result),
        *_speed_up(result.ratio),
        _coloured(verdict.latency, verdict.latency_reason),
        _coloured(verdict.quality, ""),
        _cosines(result),
        _kv(result),
        _floor_multiple(result),
        _captured(result),
    )


def _arm(result: ArmResult) -> str:
    mark = {Role.BASELINE: " (A)", Role.BASELINE_AGAIN: " (A′)"}.get(result.role, "")
    return result.method + mark


def _latency(result: ArmResult) -> str:
    return ABSENT if result.latency_ms is UNSET else f"{result.latency_ms['median']:.3f}"


def _speed_up(ratio: Interval | object) -> tuple[str, str]:
    if not isinstance(ratio, Interval):
        return ABSENT, ABSENT
    return f"{ratio.estimate:.3f}×", f"{ratio.low:.3f} to {ratio.high:.3f}"


def _coloured(verdict: str, reason: str) -> Text:
    shown = f"{verdict} ({reason})" if verdict in ("VOID", "INCONCLUSIVE") else verdict
    return Text(shown or ABSENT, style=STYLES.get(verdict, ""))


def _cosines(result: ArmResult) -> str:
    if result.quality is UNSET or "cosine_mean" not in result.quality:
        return ABSENT
    return f"{result.quality['cosine_mean']:.4f} / {result.quality['cosine_p1']:.3f}"


def _kv(result: ArmResult) -> Text:
    if result.memory is UNSET:
        return Text(ABSENT)
    mib = int(result.memory["reachable_bytes"]) / MIB
    return Text(f"{mib:,.1f}", style=STYLES.get(result.verdict.memory, ""))


def _floor_multiple(result: ArmResult) -> str:
    if result.floor is UNSET or result.latency_ms is UNSET or not result.floor.read_bytes:
        return ABSENT
    return f"{result.latency_ms['median'] / result.floor.ms:.2f}"


def _captured(result: ArmResult) -> str:
    """Of the way to the ceiling; an arm that went the other way captured nothing."""
    if result.captured_share is UNSET or result.captured_share < 0:
        return ABSENT
    return f"{result.captured_share:.0%}"


def _notes(results: Sequence[ArmResult]) -> Iterator[str]:
    baseline = next((r for r in results if r.role is Role.BASELINE), None)
    if baseline is not None:
        yield f"speed-up: time of {baseline.method} (A, the fastest exact arm here) over the arm's."
    if baseline is not None and baseline.floor is not UNSET:
        yield (
            f"read bandwidth {baseline.floor.bandwidth_gb_s:,.0f} GB/s, measured in the same "
            f"sessions; byte floor of A {baseline.floor.ms:.3f} ms."
        )
    for result in results:
        if result.failure is not UNSET:
            yield f"{result.method}: {result.failure}"
        elif result.verdict.next_step and result.role is not Role.CONTROL:
            yield f"{result.method}: {result.verdict.next_step}"
