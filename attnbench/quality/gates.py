"""Quality gates: from one arm's raw samples to PASS, MARGINAL, KILL or NOT_EVALUATED.

The verdict is the worst gate, and a gate that was not run caps it at MARGINAL. A cosine has to be
in a better band than that of the mean of all values, which knows nothing of q and k: else the gates
cannot tell the method from one that does not attend. numpy only, so that the parent process can
judge, and judge again later, without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf

import msgspec

from attnbench.errors import UsageError
from attnbench.protocol.bands import (
    ABLE,
    DEFAULT_BANDS,
    LOGIT_STEPS,
    NEEDLES,
    PERPLEXITY_WINDOWS,
    Band,
    Gate,
    GateBands,
)
from attnbench.protocol.verdict import NEXT_STEP, Reason
from attnbench.quality.believed import false_share
from attnbench.quality.figures import Figures, figures, uniform_figures
from attnbench.quality.levels import FACTS, facts_in
from attnbench.quality.samples import GateArrays, GateSamples
from attnbench.quality.worst import (
    Head,
    lowest_head,
    non_finite_head,
    worst_logits,
    worst_norm_ratio,
)

REPLACEMENT = "replacement"  # values of `methods.base.Family`, whose module imports torch
CONTROL = "control"
RANDOM = "random"
GATES_NOT_RUN = "gates-not-run"
ALL_PASSED = "all-gates-passed"
NO_POWER = "no-power"
UNPREDICTED = "text-not-predicted"
BETTER_THAN_GUESSING = 2.0  # how much more probable half of the tokens must be
COSINES = (Gate.MEAN_COSINE, Gate.P1_COSINE, Gate.LOWEST_HEAD)

MORE_BUDGET = "give the method more budget or precision where it is worst"
ADVICE = {
    Gate.NON_FINITE: "find out where the method makes NaN or infinity",
    Gate.NON_DETERMINISTIC: "find out why the same step gives two results",
    Gate.NORM_RATIO: "look for lost or doubled attention mass where it is worst",
    Gate.PERPLEXITY: "give the method more budget or precision, or run more text offsets",
    Gate.NEEDLE: "look for the tokens of the facts among what the method leaves out",
}


class Quality(StrEnum):
    """What the samples support."""

    PASS = "PASS"
    MARGINAL = "MARGINAL"
    KILL = "KILL"
    NOT_EVALUATED = "NOT_EVALUATED"


class QualityVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one arm, its reason, and all that it rests on.

    `worst_layer`, `worst_head` and, in these, `worst_window` and `worst_step` say where the output
    is worst: by norm ratio when that is the worst gate, else by cosine; `worst_logit_*` where the
    next-token distribution is. `bands` is the band of every gate that was run, `not_run` why the
    others were not. A verdict that does not count (controls) changes no exit code.
    """

    verdict: Quality
    reason: str
    next_step: str
    counts: bool
    worst_gate: str | None = None
    worst_layer: int | None = None
    worst_head: int | None = None
    worst_window: int | None = None
    worst_step: int | None = None
    worst_logit_window: int | None = None
    worst_logit_step: int | None = None
    figures: dict[str, float] = {}
    bands: dict[str, str] = {}
    not_run: dict[str, str] = {}
    gates_run: tuple[str, ...] = ()
    gates_not_run: tuple[str, ...] = tuple(Gate)
    windows: int = 0
    steps: int = 0
    context: int = 0


def refuse_replacement(label: str, family: str) -> None:
    """Raise UsageError for a method that only training can judge."""
    if family == REPLACEMENT:
        raise UsageError(
            f"{label} replaces the function that a model is trained with, so putting it into a "
            "trained model proves nothing about its quality",
            hint="judge it by training from scratch against baselines: attnbench quality "
            f"{label} --train",
        )


def not_evaluated(reason: str, next_step: str) -> QualityVerdict:
    """The verdict on an arm without samples that count."""
    return QualityVerdict(
        verdict=Quality.NOT_EVALUATED, reason=reason, next_step=next_step, counts=False
    )


def random_weights() -> QualityVerdict:
    """The verdict on every arm of a model whose weights are random."""
    return not_evaluated(
        "random-weights", "judge quality on a trained model: random weights prove nothing about it"
    )


def judge(
    samples: GateSamples, family: str, weights: str, bands: GateBands = DEFAULT_BANDS
) -> QualityVerdict:
    """The verdict on one arm of `family` in a model with "trained" or "random" `weights`.

    `bands` are the default ones, or those that a protocol registered.
    With random weights it is NOT_EVALUATED whatever the figures, which are there all the same; so
    it is where the model does not predict the text, and then no gate has a band.
    Raises UsageError for a REPLACEMENT method.
    """
    refuse_replacement("this method", family)
    arrays = samples.arrays()
    lie = false_share(arrays)
    found = {name: value for name, value in figures(arrays).items() if not (lie and _rests(name))}
    if not _predicts(found):
        return _unpredicted(arrays, found)
    in_band = gate_bands(found, bands)
    verdict = _Judge(bands, in_band, found, lie).verdict(arrays, family, weights)
    worst, logits = _worst_head(arrays, verdict.worst_gate), worst_logits(arrays)
    windows, _, steps, _ = arrays.cosine.shape
    return msgspec.structs.replace(
        verdict,
        worst_layer=worst.layer,
        worst_head=worst.head,
        worst_window=worst.window,
        worst_step=worst.step,
        worst_logit_window=logits.window if logits else None,
        worst_logit_step=logits.step if logits else None,
        figures=found,
        bands={gate.value: band.name for gate, band in in_band.items()},
        gates_run=tuple(in_band),
        gates_not_run=tuple(gate for gate in Gate if gate not in in_band),
        not_run={gate.value: _why_not(gate, arrays) for gate in Gate if gate not in in_band},
        windows=windows,
        steps=steps,
        context=int(arrays.context[0]),
    )


def _predicts(found: Figures) -> bool:
    """Whether half of the tokens are at least twice as probable as a guess; true where that was
    not measured."""
    return found.get("text_choices", 0.0) <= found.get("vocabulary", inf) / BETTER_THAN_GUESSING


def _unpredicted(arrays: GateArrays, found: Figures) -> QualityVerdict:
    """No verdict, and no band of any gate: what changes in guesses says nothing of a method."""
    verdict = not_evaluated(
        UNPREDICTED,
        "the model does not predict this text: under SDPA half of its tokens are no more probable "
        f"than one of {found['text_choices']:,.0f}, and a guess is one of "
        f"{found['vocabulary']:,.0f} (perplexity {found['text_perplexity']:,.0f}): its weights are "
        "random or damaged, or the tokenizer is another model's; else name a text of its language",
    )
    windows, _, steps, _ = arrays.cosine.shape
    return msgspec.structs.replace(
        verdict, figures=found, windows=windows, steps=steps, context=int(arrays.context[0])
    )


def _rests(name: str) -> bool:
    """Whether a figure stands or falls with the declared share."""
    return name.startswith("skill") or (name.startswith("null_") and name != "null_uniform")


def _why_not(gate: Gate, arrays: GateArrays) -> str:
    """Why a gate has no figure."""
    windows, steps = arrays.kl_nats.shape if arrays.kl_nats.size else (0, 0)
    if gate in (Gate.LOGIT_KL, Gate.TOP1) and steps < LOGIT_STEPS:
        return f"{steps} steps inside the model, and it takes {LOGIT_STEPS}"
    if gate is Gate.PERPLEXITY and (steps < LOGIT_STEPS or windows < PERPLEXITY_WINDOWS):
        return f"{windows} text offsets, and it takes {PERPLEXITY_WINDOWS} of {LOGIT_STEPS} steps"
    asked = len(arrays.needle_rank)
    if gate is Gate.NEEDLE and asked < NEEDLES:
        tokens = int(arrays.context[0])
        held = facts_in(tokens)
        few = f"; a prompt of {tokens} tokens holds {held or 'none'}" if held < FACTS else ""
        return f"{asked} facts asked for, and it takes {NEEDLES}{few}"
    if gate is Gate.NEEDLE:
        hits = int((arrays.needle_rank_sdpa == 1).sum())
        return f"the model retrieves {hits} of {asked} facts under SDPA, and it takes {ABLE:.0%}"
    return "no sample is finite"


def gate_bands(found: Figures, bands: GateBands = DEFAULT_BANDS) -> dict[Gate, Band]:
    """The band of every gate whose figures are there.

    A change in perplexity whose interval reaches what kills is known too vaguely to pass, and one
    whose interval reaches what passes is known too vaguely to kill.
    """
    in_band = {
        gate: max(part.of(found[part.figure]) for part in parts)
        for gate, parts in bands.items()
        if all(part.figure in found for part in parts)
    }
    if Gate.PERPLEXITY in in_band and _vague(found, bands):
        in_band[Gate.PERPLEXITY] = Band.MARGINAL
    return in_band


def _vague(found: Figures, bands: GateBands) -> str:
    """In words, the end of the interval of a change in perplexity that keeps it from the band of
    its estimate; empty where the interval is narrow enough, or not there."""
    if "perplexity_change_high" not in found:
        return ""
    band = bands[Gate.PERPLEXITY][0]
    low, own, high = (found[f"perplexity_change{end}"] for end in ("_low", "", "_high"))
    if band.of(own) is Band.PASS and band.of(high) is Band.KILL:
        return f"perplexity_change is {own:.4g} and may be {high:.4g}, which {band.kills}"
    if band.of(own) is Band.KILL and band.of(low) is Band.PASS:
        return f"perplexity_change is {own:.4g} and may be {low:.4g}, which {band.wanted}"
    return ""


@dataclass(frozen=True)
class _Judge:
    """The bands that count, where one arm's figures lie in them, the figures, and in words what
    its witness says that cannot be."""

    bands: GateBands
    in_band: Mapping[Gate, Band]
    found: Figures
    lie: str = ""

    def verdict(self, arrays: GateArrays, family: str, weights: str) -> QualityVerdict:
        if weights == RANDOM:
            return random_weights()
        decided = self._decide(family != CONTROL)
        if decided.verdict is Quality.KILL:
            return decided
        if self.lie:
            return not_evaluated(
                Reason.FALSE_WITNESS.value, f"{self.lie}; {NEXT_STEP[Reason.FALSE_WITNESS]}"
            )
        if self._tells_from_uniform(arrays):
            return decided
        return not_evaluated(
            NO_POWER,
            f"judge on a model or text whose attention is not uniform: the mean of all values has "
            f"cosine {self.found['null_uniform']:.4f} here",
        )

    def _tells_from_uniform(self, arrays: GateArrays) -> bool:
        """Whether an arm's cosines lie in a better band than those of the null model."""
        null = gate_bands(uniform_figures(arrays), self.bands)
        own = max(self.in_band[gate] for gate in COSINES if gate in self.in_band)
        return own < max(null.values())

    def _decide(self, counts: bool) -> QualityVerdict:
        in_band = self.in_band
        worst = max(in_band, key=lambda gate: in_band[gate])  # the first of them, in gates' order
        missing = [gate for gate in Gate if gate not in in_band]
        if in_band[worst] is not Band.PASS:
            return QualityVerdict(
                verdict=Quality.KILL if in_band[worst] is Band.KILL else Quality.MARGINAL,
                reason=worst,
                next_step=self._look_at(worst),
                counts=counts,
                worst_gate=worst,
            )
        return QualityVerdict(
            verdict=Quality.MARGINAL if missing else Quality.PASS,
            reason=GATES_NOT_RUN if missing else ALL_PASSED,
            next_step=f"run the gates that are missing: {', '.join(missing)}" if missing else "",
            counts=counts,
        )

    def _look_at(self, gate: Gate) -> str:
        shown = [
            f"{part.figure} is {self.found[part.figure]:.4g}, {part.wanted}"
            for part in self.bands[gate]
            if part.of(self.found[part.figure]) is not Band.PASS
        ]
        vague = _vague(self.found, self.bands) if gate is Gate.PERPLEXITY else ""
        shown = [vague] if vague else shown
        return f"{ADVICE.get(gate, MORE_BUDGET)} ({', '.join(shown)})"


def _worst_head(arrays: GateArrays, worst_gate: str | None) -> Head:
    if worst_gate == Gate.NORM_RATIO:
        return worst_norm_ratio(arrays)
    return non_finite_head(arrays) if worst_gate == Gate.NON_FINITE else lowest_head(arrays)
