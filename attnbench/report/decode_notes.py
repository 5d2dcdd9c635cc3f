"""What stands below a table of verdicts: how to read it, and what to do about open ones.

One line a fact: arms of which the same is to be said share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import UNSET

from attnbench.protocol.cell import Role
from attnbench.protocol.result import ArmResult, Floor
from attnbench.report.beside_notes import beside_notes
from attnbench.report.order_notes import marked, order_note

if TYPE_CHECKING:
    from attnbench.measure.chosen import PilotArm

NO_POWER = "no-power"  # the gates' reason: a method that does not attend would do as well
OTHER_BUDGET = "other-budget"  # it attends to more where it is judged than where it is timed
UNPREDICTED = "text-not-predicted"  # likewise: the model knows no such text, or is none
OPEN = ("INCONCLUSIVE", "VOID")
CYCLES_APART = 0.01  # of the ratio of times: below it cycles and time say the same
DIVIDED_APART = 0.01  # of the speed-up: below it the columns of times say the same
LONGEST = 160  # characters of a failure; all of it is in the ledger


def notes(
    results: Sequence[ArmResult], alone: Sequence[PilotArm] = (), *, absolute: bool = True
) -> Iterator[str]:
    """Lines of plain text, the most general first; `alone` are the arms of the pilot alone.

    `absolute`: whether times and bandwidths may be named, or ratios alone.
    """
    yield from _of_promise(results)
    yield from _of_baseline(results, absolute=absolute)
    if alone:
        named = " · ".join(map(_pilot_time, alone))
        yield f"in the pilot alone, with their times there over A's: {named}"
    yield from beside_notes(results, absolute=absolute)
    yield from _of_quality(results)
    yield from order_note(results)
    yield from _shared((_cycles(result) for result in results), every="every arm")
    candidates = [result for result in results if result.role is Role.CANDIDATE]
    yield from _shared((_open_latency(result) for result in candidates), every="every candidate")
    yield from _shared((result.method, _failure(result)) for result in results)


def _of_promise(results: Sequence[ArmResult]) -> Iterator[str]:
    promise = results[0].promise
    if promise is UNSET:
        return
    if promise.exploratory:
        yield (
            f"EXPLORATORY: protocol {promise.protocol} was not registered as it ran, so nothing "
            "here was promised first."
        )
    else:
        yield (
            f"protocol {promise.protocol}, version {promise.version}, registered as "
            f"{promise.registration[:12]}."
        )


def _of_baseline(results: Sequence[ArmResult], *, absolute: bool) -> Iterator[str]:
    baseline = next((r for r in results if r.role is Role.BASELINE), None)
    if baseline is None:
        return
    named = baseline.promise is not UNSET and baseline.promise.baseline
    why = "named by the protocol" if named else "the fastest exact arm of the pilot"
    which = f"{baseline.method} (A, {why})"
    yield f"speed-up: time of {which} over the arm's."
    if absolute:
        yield from _of_division(results, baseline)
    floor = baseline.floor
    if absolute and floor is not UNSET:
        yield (
            f"× floor: over the time to read the step's bytes at {floor.bandwidth_gb_s:,.0f} GB/s, "
            f"measured in the same sessions; {floor.ms:.3f} ms for A{_bytes(floor)}."
        )


def _of_division(results: Sequence[ArmResult], baseline: ArmResult) -> Iterator[str]:
    """Where the two columns of times, divided, are not the speed-up between them."""
    apart = {
        marked(result): quotient
        for result in results
        if result.ratio is not UNSET
        and (quotient := _quotient(baseline, result)) is not None
        and abs(quotient / result.ratio.estimate - 1) > DIVIDED_APART
    }
    if apart:
        named = ", ".join(f"{arm} {quotient:.3f}×" for arm, quotient in apart.items())
        yield (
            f"A's ms/step over the arm's is {named}: ms/step is a median over all steps, a "
            "speed-up the mean of ratios within blocks."
        )


def _quotient(baseline: ArmResult, result: ArmResult) -> float | None:
    if baseline.latency_ms is UNSET or result.latency_ms is UNSET:
        return None
    return baseline.latency_ms["median"] / result.latency_ms["median"]


def _bytes(floor: Floor) -> str:
    """Of weights and of cached keys and values, where both are read."""
    if floor.weight_bytes is UNSET or floor.kv_bytes is UNSET or not floor.weight_bytes:
        return ""
    return f" ({floor.weight_bytes / 1e6:,.1f} MB of weights, {floor.kv_bytes / 1e6:,.1f} MB of KV)"


def _pilot_time(arm: PilotArm) -> str:
    if arm.over_baseline is not None:
        return f"{arm.label} {arm.over_baseline:.2f}×"
    why = f"not timed: the kernel of {arm.twin}" if arm.twin else arm.why or "did not run"
    return f"{arm.label} ({why})"


def _cycles(result: ArmResult) -> tuple[str, str]:
    """Where clocks differed, time and SM cycles say different things."""
    if result.statistics is UNSET or result.ratio is UNSET:
        return marked(result), ""
    cycles = result.statistics.cycles_ratio
    if cycles is UNSET or abs(cycles.estimate / result.ratio.estimate - 1) <= CYCLES_APART:
        return marked(result), ""
    return marked(result), (
        f"{1 / cycles.estimate:.3f} of A's SM cycles a step, in {1 / result.ratio.estimate:.3f} of "
        "its time: the two ran at different clocks"
    )


def _of_quality(results: Sequence[ArmResult]) -> Iterator[str]:
    judged = [
        result.quality
        for result in results
        if result.quality is not UNSET and result.verdict.quality != "NOT_EVALUATED"
    ]
    missing = {(str(q["gates_not_run"]), str(q.get("not_run_because", ""))) for q in judged}
    for gates, why in sorted(missing):
        if gates:
            yield f"quality is MARGINAL at best: gates not run ({why or gates})."
    shorter = {
        (int(result.quality["context"]), result.cell.context)
        for result in results
        if result.quality is not UNSET and int(result.quality["context"]) < result.cell.context
    }
    for prompt, context in sorted(shorter):
        yield f"quality is of {prompt} tokens, not {context}: the model has no more positions."
    yield from _shared(_unjudged(result) for result in results)
    yield from _shared(_doubtful(result) for result in results)


def _unjudged(result: ArmResult) -> tuple[str, str]:
    verdict = result.verdict
    if verdict.quality != "NOT_EVALUATED" or result.failure is not UNSET:
        return result.method, ""
    return result.method, f"quality NOT_EVALUATED ({verdict.quality_reason}){_because(result)}"


def _because(result: ArmResult) -> str:
    if result.quality is UNSET:
        return ""
    found = result.quality
    if result.verdict.quality_reason == NO_POWER:
        cosine = found["null_uniform"]
        return f": the plain mean of all values already has cosine {cosine:.4f} here"
    if result.verdict.quality_reason == OTHER_BUDGET:
        judged, timed = (float(found[f"{part}_share"]) for part in ("judged", "timed"))
        return (
            f": it attended to {judged:.1%} of the tokens where its outputs were judged, and to "
            f"{timed:.1%} in the steps that were timed"
        )
    if result.verdict.quality_reason == UNPREDICTED:
        return (
            ": to the model half of the text's tokens are as good as one of "
            f"{found['text_choices']:,.0f}, and a guess is one of {found['vocabulary']:,.0f}; its "
            "weights are random or damaged, or the tokenizer is another model's"
        )
    return ""


def _doubtful(result: ArmResult) -> tuple[str, str]:
    """A gate that an arm under test did not pass, and where its output is worst."""
    quality = result.quality
    if result.role is Role.CONTROL or quality is UNSET or not quality["worst_gate"]:
        return result.method, ""
    return result.method, (
        f"quality {result.verdict.quality} by {quality['worst_gate']}, worst in layer "
        f"{quality['worst_layer']}, head {quality['worst_head']}{_moment(quality)}"
    )


def _moment(quality: Mapping[str, float | int | str]) -> str:
    """Records from before it was kept do not say when."""
    if "worst_step" not in quality:
        return ""
    return f", at step {quality['worst_step']} of window {quality['worst_window']}"


def _open_latency(result: ArmResult) -> tuple[str, str]:
    """A failure says more than the advice that follows from it."""
    is_open = result.verdict.latency in OPEN and result.failure is UNSET
    return result.method, result.verdict.next_step if is_open else ""


def _failure(result: ArmResult) -> str:
    if result.failure is UNSET:
        return ""
    line = " ".join(result.failure.split("\n")[0].split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _shared(said: Iterable[tuple[str, str]], every: str = "every arm") -> Iterator[str]:
    """Each thing said once, after the arms that it is said of; nothing for what is empty."""
    arms_by_text: dict[str, dict[str, None]] = {}
    total: dict[str, None] = {}
    for arm, text in said:
        total[arm] = None
        if text:
            arms_by_text.setdefault(text, {})[arm] = None
    for text, arms in arms_by_text.items():
        everyone = len(arms) == len(total) > 1
        yield f"{every if everyone else ' · '.join(arms)}: {text}"
