"""The figures of one arm in words, the same in a terminal, on a page and in a paper's table."""

from __future__ import annotations

from msgspec import UNSET

from attnbench.ledger.entry import model_name
from attnbench.protocol.cell import Cell, Role
from attnbench.protocol.result import ArmResult, Interval
from attnbench.protocol.verdict import Verdict

MIB = 1 << 20
ABSENT = "–"
CEILING = "zero_cost"


def cell_title(cell: Cell) -> str:
    """The cell in words."""
    return (
        f"{model_name(cell.model)} · {cell.context} tokens · batch {cell.batch} · {cell.dtype} · "
        f"{cell.scope.value} · {cell.mode.value} · {cell.device}"
    )


def arm_name(result: ArmResult) -> str:
    """The method with its parameters; of the baseline pair with what tells the two apart."""
    mark = {Role.BASELINE: " (A)", Role.BASELINE_AGAIN: " (A′)"}.get(result.role, "")
    name, comma, parameters = result.method.partition(",")
    return f"{name}{mark}{comma}{parameters}"


def latency(result: ArmResult) -> str:
    """The median step, ms."""
    return ABSENT if result.latency_ms is UNSET else f"{result.latency_ms['median']:.3f}"


def speed_up(result: ArmResult) -> str:
    return ABSENT if result.ratio is UNSET else f"{result.ratio.estimate:.3f}×"


def limits(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def because(result: ArmResult) -> str:
    """Why a latency verdict is open, or how little a decided one means."""
    verdict = result.verdict
    if verdict.latency == Verdict.FASTER and _negligible(result):
        return "negligibly"
    return verdict.latency_reason if verdict.latency in ("VOID", "INCONCLUSIVE") else ""


def _negligible(result: ArmResult) -> bool:
    return result.statistics is not UNSET and result.statistics.equivalent


def cosines(result: ArmResult) -> str:
    """To SDPA, over layers, heads and steps: the mean and the 1st percentile."""
    if result.quality is UNSET or "cosine_mean" not in result.quality:
        return ABSENT
    return f"{result.quality['cosine_mean']:.4f} / {result.quality['cosine_p1']:.3f}"


def kv_mib(result: ArmResult) -> str:
    """What the method's own tensors hold, MiB."""
    if result.memory is UNSET:
        return ABSENT
    return f"{int(result.memory['reachable_bytes']) / MIB:,.1f}"


def floor_multiple(result: ArmResult) -> str:
    """The median step over the time that reading its bytes takes."""
    if result.floor is UNSET or result.latency_ms is UNSET or not result.floor.read_bytes:
        return ABSENT
    return f"{result.latency_ms['median'] / result.floor.ms:.2f}"


def captured(result: ArmResult) -> str:
    """Of the way to the ceiling, for an arm that surely went it."""
    if result.captured_share is UNSET or result.verdict.latency != Verdict.FASTER:
        return ABSENT
    if result.method == CEILING:
        return "ceiling"
    return f"{result.captured_share:.0%}"


def tokens_per_s(result: ArmResult) -> str:
    """Of all sequences together."""
    return ABSENT if result.tokens_per_s is UNSET else f"{result.tokens_per_s:,.1f}"


def joules_per_token(result: ArmResult) -> str:
    return ABSENT if result.energy is UNSET else f"{result.energy.joules_per_token:.3f}"
