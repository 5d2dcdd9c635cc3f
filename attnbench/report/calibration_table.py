"""What a calibration found, as people read it."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET, UnsetType
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.protocol.calibration import TOTAL
from attnbench.protocol.calibration_result import (
    Bias,
    CalibrationResult,
    Count,
    Findings,
    Level,
    PairSpread,
    Sd,
)
from attnbench.protocol.calibration_spread import PLANNED_SESSIONS
from attnbench.protocol.order_effect import BLOCKS, SEQUENTIAL, SEQUENTIAL_WARMUP_STEPS
from attnbench.protocol.result import Interval
from attnbench.report.words import ABSENT, cell_title


def calibration_tables(result: CalibrationResult) -> RenderableType:
    """Title, then the instrument's tables, or the order effect's."""
    title = Text(cell_title(result.cell), style="bold")
    if result.order_effect is not UNSET:
        how = {
            SEQUENTIAL: f"first A, then B, {SEQUENTIAL_WARMUP_STEPS} warm-up steps",
            BLOCKS: f"randomised blocks, {result.protocol['warmup_steps']} warm-up steps",
        }
        return Group(title, *_order_effect(result.order_effect, how))
    if result.findings is UNSET:
        return title
    return Group(title, *_instrument(result, result.findings))


def _instrument(result: CalibrationResult, found: Findings) -> Iterator[RenderableType]:
    step = ABSENT if found.step_ms is UNSET else f"{found.step_ms:.3f} ms a step"
    yield Text(f"A: {result.arms['A']} ({step})")
    yield Text(f"X: {result.arms['X']}")
    yield Text(f"{found.sessions} sessions")
    for session, why in found.void.items():
        yield Text(f"session {session} does not count where it matters: {why}", style="magenta")
    yield _spreads(found)
    yield _levels(found.levels)
    yield from (Text(line) for line in _conclusions(found))
    yield _phases(found)


def _spreads(found: Findings) -> RenderableType:
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, title="spread of a session's ratio", title_justify="left"
    )
    table.add_column("")
    for pair in ("A and A′, S", "A and X"):
        table.add_column(pair, justify="right")
    both = (_spread(found.aa), _spread(found.ab))
    for name in both[0]:
        table.add_row(name, *(column[name] for column in both))
    return table


def _spread(spread: PairSpread) -> dict[str, str]:
    """What there is to say of one kind of pair, by name; limits are one-sided, at 95 %."""
    placed = spread.placement
    one, several, gain = (
        (UNSET, UNSET, UNSET)
        if placed is UNSET
        else (placed.one_capture, placed.several_captures, placed.gain)
    )
    return {
        "sessions that count": str(spread.sessions),
        "sd by mean over blocks": _sd(spread.mean),
        "sd by robust centre": _sd(spread.robust),
        "mean over robust": _factor(spread.robust_gain),
        "sd of a few blocks of one capture": _percent(one),
        "sd of as many of several captures": _percent(several),
        "one over several": _factor(gain),
        **{
            f"smallest effect that {n} sessions see": _percent(
                spread.smallest_effects.get(str(n), UNSET)
            )
            for n in PLANNED_SESSIONS
        },
    }


def _levels(levels: tuple[Level, ...]) -> RenderableType:
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title="injected slow-downs, and what runs of three sessions said",
        title_justify="left",
    )
    table.add_column("arm")
    for column in ("waited", "is true", "measured", "95 % interval", "by robust", "SLOWER in"):
        table.add_column(column, justify="right")
    table.add_column("said")
    for level in levels:
        table.add_row(
            level.arm,
            ABSENT if level.waited_us is UNSET else f"{level.waited_us:.2f} µs",
            _percent(level.true),
            *_slow_down(level.measured),
            _slow_down(level.measured_robust)[0],
            f"{level.found} of {level.runs}",
            _said(level.verdicts),
        )
    return table


def _conclusions(found: Findings) -> Iterator[str]:
    yield f"the sham S, in which nothing is to be found: {_said(found.sham_verdicts) or ABSENT}"
    yield f"false positives: {_count(found.false_positives)} of the sham"
    yield (
        f"                 {_count(found.false_positives_of_pairs)} of all pairs among A, A′ and S "
        "(pairs of a run share arms)"
    )
    least = (
        "none of the injected" if found.smallest_found is UNSET else f"{found.smallest_found:.1%}"
    )
    yield f"smallest injected slow-down from which on at least 4 runs of 5 are right: {least}"


def _phases(found: Findings) -> RenderableType:
    total = found.phases_s.get(TOTAL)
    if not total:
        return Text("where a session's time goes is not known")
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, title="median session, seconds", title_justify="left"
    )
    known = {name: s for name, s in found.phases_s.items() if name != TOTAL}
    known["other"] = max(0.0, total - sum(known.values()))
    for name in (*known, TOTAL):
        table.add_column(name, justify="right")
    table.add_row(*(f"{seconds:.2f}" for seconds in (*known.values(), total)))
    table.add_row(*(f"{seconds / total:.0%}" for seconds in (*known.values(), total)))
    share = ABSENT if found.harness_share is UNSET else f"{found.harness_share:.0%}"
    said = (
        f"the harness's own share (neither load, set-up, warm-up, untimed nor timed steps): {share}"
    )
    return Group(table, Text(said))


def _order_effect(found: tuple[Bias, ...], how: dict[str, str]) -> Iterator[RenderableType]:
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title="one method as A and as B: time of A over time of B; 1 is right",
        title_justify="left",
    )
    table.add_column("measured")
    for column in ("processes", "A / B", "95 % interval", "by median step", "95 % interval"):
        table.add_column(column, justify="right")
    for bias in found:
        table.add_row(
            how[bias.how],
            str(bias.processes),
            *_ratio(bias.ratio),
            *_ratio(bias.of_medians),
        )
    yield table
    for bias in found:
        yield Text(f"{bias.how}: {', '.join(f'{ratio:.4f}' for ratio in bias.each)}")


def _sd(sd: Sd | UnsetType) -> str:
    return ABSENT if sd is UNSET else f"{_percent(sd.sd)} (< {_percent(sd.upper)})"


def _percent(value: float | UnsetType) -> str:
    return ABSENT if value is UNSET else f"{value:.3%}"


def _factor(gain: Interval | UnsetType) -> str:
    return ABSENT if gain is UNSET else f"{gain.estimate:.2f} ({gain.low:.2f} to {gain.high:.2f})"


def _slow_down(found: Interval | UnsetType) -> tuple[str, str]:
    if found is UNSET:
        return ABSENT, ABSENT
    return f"{found.estimate:+.3%}", f"{found.low:+.3%} to {found.high:+.3%}"


def _ratio(found: Interval | UnsetType) -> tuple[str, str]:
    if found is UNSET:
        return ABSENT, ABSENT
    return f"{found.estimate:.4f}", f"{found.low:.4f} to {found.high:.4f}"


def _count(count: Count | UnsetType) -> str:
    if count is UNSET:
        return f"{ABSENT} (no run of three sessions that counts)"
    return f"{count.hits} of {count.trials} ({count.low:.1%} to {count.high:.1%})"


def _said(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
