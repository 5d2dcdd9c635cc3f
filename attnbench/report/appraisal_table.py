"""The table of a quality run: a row for every gate, a column for every arm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import UNSET
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from attnbench.ledger.entry import model_name
from attnbench.protocol.appraisal import ArmQuality
from attnbench.protocol.band_options import bands_of
from attnbench.protocol.bands import DEFAULT_BANDS, Gate, changed_bands
from attnbench.protocol.cell import Role
from attnbench.report.words import ABSENT

STYLES = {"PASS": "green", "MARGINAL": "yellow", "KILL": "red"}
WHOLE = 0.9995  # a kept share from which on nothing was selected
GATE_WIDTH, ARM_WIDTH = 50, 27  # characters that the first two columns take, and that an arm needs
Figures = Mapping[str, float]
Words = Callable[[Figures], str]


def appraisal_table(results: Sequence[ArmQuality]) -> RenderableType:
    """Verdicts, gates, null models and notes, as people read them."""
    first = results[0]
    title = (
        f"{model_name(first.cell.model)} · {first.cell.context} tokens · {first.cell.dtype} · "
        f"{first.appraisal} · {first.cell.device}"
    )
    lines = [Text(line) for line in appraisal_notes(results)]
    return Group(Text(title, style="bold"), _Tables(results), *lines, Text())


class _Tables:
    """One table, or several of fewer arms each where all of them do not fit beside each other."""

    def __init__(self, results: Sequence[ArmQuality]) -> None:
        self._results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fit = max(1, (options.max_width - GATE_WIDTH) // ARM_WIDTH)
        for begin in range(0, len(self._results), fit):
            yield _table(self._results[begin : begin + fit])


def _table(results: Sequence[ArmQuality]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("gate")
    table.add_column("passes")
    for result in results:
        name = result.arm.replace(",", "\n") + ("\n(floor)" if result.floor else "")
        table.add_column(name, overflow="fold", style="dim" if _aside(result) else "")
    table.add_row("verdict", "", *(_verdict(result) for result in results))
    for gate in Gate:
        table.add_row(
            gate.value, _wanted(gate, results), *(_gate(result, gate) for result in results)
        )
    table.add_section()
    for name, words in BESIDE.items():
        table.add_row(name, "", *(Text(words(result.figures)) for result in results))
    return table


def _aside(result: ArmQuality) -> bool:
    return result.floor or result.role is Role.CONTROL


def _verdict(result: ArmQuality) -> Text:
    said = result.verdict
    reason = "" if said.quality == "PASS" else f"\n{said.quality_reason}"
    return Text(f"{said.quality}{reason}", STYLES.get(said.quality, ""))


def _wanted(gate: Gate, results: Sequence[ArmQuality]) -> str:
    if any(gate.value in other_bands(result) for result in results):
        return "see below"
    if gate is Gate.NON_DETERMINISTIC:
        return "no"
    return DEFAULT_BANDS[gate][0].wanted.removeprefix("passes ").removeprefix("should be ")


def _gate(result: ArmQuality, gate: Gate) -> Text:
    return Text(gate_words(result, gate), STYLES.get(result.gates.get(gate.value, ""), ""))


def gate_words(result: ArmQuality, gate: Gate) -> str:
    """The figures of a gate of an arm."""
    if gate.value in result.gates:
        return GATES[gate](result.figures)
    return "not run" if result.figures else ABSENT


def other_bands(result: ArmQuality) -> dict[str, str]:
    """By gate, in words, what it was judged by where that is not the default."""
    return changed_bands(bands_of(result.bands))


def beside_words(result: ArmQuality, name: str) -> str:
    """A figure that decides nothing, by its name in `BESIDE`."""
    return BESIDE[name](result.figures)


def _figure(name: str, form: str) -> Words:
    return lambda found: format(found[name], form) if name in found else ABSENT


def _pair(low: str, high: str, form: str, joint: str) -> Words:
    first, second = _figure(low, form), _figure(high, form)
    return lambda found: ABSENT if low not in found else f"{first(found)}{joint}{second(found)}"


def _perplexity(found: Figures) -> str:
    if "perplexity_change_low" not in found:
        return ABSENT
    low, high = found["perplexity_change_low"], found["perplexity_change_high"]
    return f"{found['perplexity_change']:+.2%} [{low:+.1%}, {high:+.1%}]"


def _needle(found: Figures) -> str:
    if "needle_hits" not in found:
        return ABSENT
    asked = round(found["needles"])
    own, sdpa = (round(found[name] * asked) for name in ("needle_hits", "needle_hits_sdpa"))
    chance = found.get("needle_probability")
    shown = "NaN" if chance is None else f"{chance:.2f}"
    chance_sdpa = found["needle_probability_sdpa"]
    return f"{own} of {asked} (SDPA {sdpa}), p {shown} ({chance_sdpa:.2f})"


def _deterministic(found: Figures) -> str:
    if "deterministic" not in found:
        return ABSENT
    return "no" if found["deterministic"] == 1 else "yes"


def _null(name: str) -> Words:
    """Of a selection: where all is kept there is none."""
    cosine = _figure(name, ".4f")
    return lambda found: ABSENT if found.get("kept_share", 0.0) >= WHOLE else cosine(found)


def _skill(found: Figures) -> str:
    if "skill" not in found:
        return ABSENT
    if "skill_low" not in found:
        return f"{found['skill']:.2f}"
    return f"{found['skill']:.2f} [{found['skill_low']:.2f}, {found['skill_high']:.2f}]"


GATES: Mapping[Gate, Words] = {
    Gate.NON_FINITE: _figure("non_finite", ".0f"),
    Gate.NON_DETERMINISTIC: _deterministic,
    Gate.MEAN_COSINE: _figure("cosine_mean", ".4f"),
    Gate.P1_COSINE: _figure("cosine_p1", ".4f"),
    Gate.LOWEST_HEAD: _figure("cosine_lowest_head", ".4f"),
    Gate.NORM_RATIO: _pair("norm_ratio_low", "norm_ratio_high", ".3f", " to "),
    Gate.LOGIT_KL: _pair("kl_mean_nats", "kl_p99_nats", ".4f", ", p99 "),
    Gate.TOP1: _figure("top1_agreement", ".2%"),
    Gate.PERPLEXITY: _perplexity,
    Gate.NEEDLE: _needle,
}
# What stands beside the gates and decides nothing.
BESIDE: Mapping[str, Words] = {
    "kept tokens": _figure("kept_share", ".1%"),
    "kept mass: mean, lowest head": _pair("kept_mass_mean", "kept_mass_min", ".3f", ", "),
    "relative L2": _figure("relative_l2_mean", ".2e"),
    "  SDPA against float64": _figure("floor_relative_l2", ".2e"),
    "  SDPA math against flash": _figure("math_flash_relative_l2", ".2e"),
    "cosine of null models": lambda _: "",
    "  mean of all values": _figure("null_uniform", ".4f"),
    "  random tokens": _null("null_random"),
    "  longest values": _null("null_value_norm"),
    "  sinks and recent": _null("null_recent"),
    "  oracle": _null("null_oracle"),
    "selection skill": _skill,
}


def appraisal_notes(results: Sequence[ArmQuality]) -> Iterator[str]:
    """What the figures rest on, where an arm is worst, and what was not run."""
    judged = next((result for result in results if result.figures), None)
    if judged is not None:
        counts = judged.counts
        yield (
            f"on {judged.text} (sha256 {judged.text_sha256[:12]}): {counts['windows']} offsets, "
            f"{counts['steps']} steps compared in each layer, {counts['logit_steps']} inside the "
            "model; null models at the arm's own budget; intervals are 95 %, t over offsets."
        )
        yield from _reading(judged.figures)
    for result in results:
        yield from _of_arm(result)


def _reading(found: Figures) -> Iterator[str]:
    if "text_choices" in found:
        yield (
            f"SDPA's perplexity on this text is {found['text_perplexity']:,.1f}, and half of its "
            f"tokens are at least as probable as one of {found['text_choices']:,.1f}; a guess is "
            f"one of {found['vocabulary']:,.0f}."
        )


def _of_arm(result: ArmQuality) -> Iterator[str]:
    if result.failure is not UNSET:
        yield f"{result.arm}: not judged: {result.failure.splitlines()[0]}"
    bad = [f"{gate} {band}" for gate, band in result.gates.items() if band != "PASS"]
    if bad and not result.floor:
        yield f"{result.arm}: {', '.join(bad)}{_where(result)}"
    repeats = result.failure is not UNSET and result.verdict.next_step in result.failure
    if result.verdict.next_step and not result.floor and not repeats:
        yield f"{result.arm}: next: {result.verdict.next_step}"
    for gate, why in result.not_run.items():
        yield f"{result.arm}: {gate} NOT_EVALUATED: {why}"
    for gate, band in other_bands(result).items():
        yield f"{result.arm}: {gate} judged by another band: {band}"


def _where(result: ArmQuality) -> str:
    worst = result.worst
    if worst is UNSET:
        return ""
    place = (
        f"; worst in layer {worst.layer}, head {worst.head}, at step {worst.step} of window "
        f"{worst.window}"
    )
    if worst.logit_step < 0:
        return place
    return f"{place}; logits farthest at step {worst.logit_step} of window {worst.logit_window}"
