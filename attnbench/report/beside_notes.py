"""Notes under a table on what a median step does not show: slow steps that recur, and set-up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET

from attnbench.protocol.cell import Role
from attnbench.protocol.result import ArmResult, Beside

WORTH_SAYING = 1.5  # times A's set-up
MANY_STEPS = 100  # saved by nothing less than so many steps: a set-up that is worth a note


def beside_notes(results: Sequence[ArmResult], *, absolute: bool) -> Iterator[str]:
    """One line for each candidate whose slow steps recur, and one for a set-up that it takes many
    steps to earn back."""
    base = next((r for r in results if r.role is Role.BASELINE), None)
    if base is None or base.beside is UNSET:
        return
    for result in results:
        if result.role is Role.CANDIDATE and result.beside is not UNSET:
            yield from _recurring(result, result.beside, absolute=absolute)
            yield from _set_up(result, result.beside, base, base.beside, absolute=absolute)


def _recurring(result: ArmResult, beside: Beside, *, absolute: bool) -> Iterator[str]:
    if not beside.recurring_share:
        return
    slowest = f", the slowest {beside.slowest_ms:,.3g} ms" if absolute else ""
    yield (
        f"{result.arm}: {beside.slow_steps} of {beside.timed_steps:,} timed steps take 5 times the "
        f"median and more{slowest}, in every session, and {beside.recurring_share:.0%} of its time "
        "beyond A's: work that recurs, which ms/step does not show"
    )


def _set_up(
    result: ArmResult, own: Beside, base: ArmResult, of_base: Beside, *, absolute: bool
) -> Iterator[str]:
    """What set-up costs beyond A's, in steps of its own, and when that is earned back."""
    if not of_base.set_up_ms or own.set_up_ms <= WORTH_SAYING * of_base.set_up_ms:
        return
    if result.latency_ms is UNSET or base.latency_ms is UNSET:
        return
    step = result.latency_ms["median"]
    saved = base.latency_ms["median"] - step
    extra = own.set_up_ms - of_base.set_up_ms
    if extra < MANY_STEPS * step:
        return
    takes = f"{own.set_up_ms:,.0f} ms, " if absolute else ""
    earned = f", earned back after {extra / saved:,.0f} of them" if saved > 0 else ""
    yield (
        f"{result.arm}: its set-up (layers built and prefilled) takes {takes}"
        f"{own.set_up_ms / of_base.set_up_ms:,.1f} times A's: as long as {extra / step:,.0f} steps "
        f"more{earned}. What it does less often than every {own.steps_a_set_up} steps may be in no "
        "timed step"
    )
