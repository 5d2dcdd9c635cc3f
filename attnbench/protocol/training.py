"""What models trained from scratch say of a method that replaces the trained function.

One model an arm and seed; all arms see the same text in the same order, for as many steps. The
figure is the perplexity of a byte of held-out text at the training context: the best candidate
against the best baseline, seed by seed. Bounds of the verdict are CY-Sieve's own gate: a candidate
up to 1 % above passes, one more than 5 % above is killed.
"""

from __future__ import annotations

import gzip
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.errors import Exit
from attnbench.protocol.appraisal import Said
from attnbench.protocol.cell import Role
from attnbench.stats.student import mean_interval

PASS_TO, KILL_ABOVE = 0.01, 0.05  # of perplexity, over the best baseline
LEVEL = 0.95
OVERFIT = 1.05  # held-out loss at the end over its least
FEWEST_SEEDS = 2  # with an interval
NEXT = {
    "within-margin": "",
    "above-margin": "withdraw the method, or state the context and budget at which it holds",
    "not-resolved": "train more seeds, or longer",
    "one-seed": "train at least two seeds: one has no interval",
    "overfit": "train on more text or for fewer steps: the models learned it by heart",
    "diverged": "lower the learning rate; a loss that is no number says nothing",
    "not-learned": "train longer: the best baseline predicts no better than single bytes do",
    "baseline": "",
}


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Losses in nats a byte after so many steps, which went through the text `epochs` times."""

    step: int
    epochs: float
    training: float
    held_out: float


class SeedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its curve, its held-out loss in nats a byte by context, and what its scheme
    learned, by name, layer and head. A loss that was no number ended it where `diverged_at` says.
    """

    arm: str
    seed: int
    parameters: int
    curve: tuple[CurvePoint, ...]
    nats: dict[str, float] = {}
    learned: dict[str, list[list[float]]] = {}
    seconds: float = 0.0
    diverged_at: int | UnsetType = UNSET

    @property
    def overfit(self) -> float:
        """Held-out loss at the end over its least on the way."""
        return self.curve[-1].held_out / min(point.held_out for point in self.curve)


class TrainedSamples(msgspec.Struct, frozen=True, kw_only=True):
    """All models of a run, and the held-out loss of single bytes' frequencies."""

    context: int
    unigram_nats: float
    roles: dict[str, Role]
    outcomes: tuple[SeedOutcome, ...]


class Above(msgspec.Struct, frozen=True, kw_only=True):
    """By how much an arm's perplexity is above the best baseline's, as a share: the mean over seeds
    of the paired ratio, and its t interval where there are seeds enough."""

    baseline: str
    share: float
    low: float | UnsetType = UNSET
    high: float | UnsetType = UNSET
    level: float = LEVEL


class TrainingCell(msgspec.Struct, frozen=True, kw_only=True):
    """What was trained: `model` is `scratch:` and the preset, `context` that of training."""

    model: str
    context: int
    dtype: str
    device: str


class ArmTraining(msgspec.Struct, frozen=True, kw_only=True):
    """One arm of a run: the body of a record of `attnbench quality --train`.

    `perplexity` has the mean over seeds by context; `best` marks the candidate with the lowest at
    the training context, whose verdict is that of the run.
    """

    training: str  # the preset
    run: str
    cell: TrainingCell
    arm: str
    method: str
    family: str
    role: Role
    source_sha256: str
    verdict: Said
    environment: dict[str, str | int | float]
    recipe: dict[str, str | bool | int | float | list[int]]
    text: str
    text_sha256: str
    seeds: tuple[int, ...]
    best: bool = False
    perplexity: dict[str, float] = {}
    above: Above | UnsetType = UNSET
    unigram_perplexity: float = 0.0
    overfit: float = 0.0
    epochs: float = 0.0
    learned: dict[str, float] = {}


def judged(bare: ArmTraining, samples: TrainedSamples) -> ArmTraining:
    """The result with what the samples say of its arm."""
    outcomes = _of(samples, bare.arm)
    trained = [outcome for outcome in outcomes if outcome.diverged_at is UNSET]
    found = msgspec.structs.replace(
        bare,
        verdict=_verdict(bare.arm, samples),
        best=bare.arm == best(samples, Role.CANDIDATE),
        perplexity=_perplexity(trained),
        unigram_perplexity=math.exp(samples.unigram_nats),
        overfit=max((outcome.overfit for outcome in outcomes if outcome.curve), default=0.0),
        epochs=max((o.curve[-1].epochs for o in outcomes if o.curve), default=0.0),
        learned=_means(trained),
    )
    return msgspec.structs.replace(found, above=_above(bare.arm, samples))


def retrained(body: Mapping[str, Any], blob: bytes) -> dict[str, Any]:
    """A recorded body once more, from the samples alone."""
    samples = msgspec.json.decode(gzip.decompress(blob), type=TrainedSamples)
    result = judged(msgspec.convert(body, ArmTraining), samples)
    rebuilt: dict[str, Any] = msgspec.to_builtins(result)
    return rebuilt


def training_exit(results: Iterable[ArmTraining]) -> Exit:
    """By the best candidate: 10 where it was killed, 11 where it could not be judged."""
    said = [result.verdict.quality for result in results if result.best]
    if not said or said[0] == "NOT_EVALUATED":
        return Exit.INCONCLUSIVE
    return Exit.FALSIFIED if said[0] == "KILL" else Exit.DONE


def best(samples: TrainedSamples, role: Role) -> str:
    """The arm of that role with the lowest mean loss at the training context; empty for none."""
    arms = [arm for arm, its_role in samples.roles.items() if its_role is role]
    means = {arm: _mean_nats(arm, samples) for arm in arms}
    known = {arm: mean for arm, mean in means.items() if mean is not None}
    return min(known, key=known.__getitem__, default="")


def log_ratios(arm: str, baseline: str, samples: TrainedSamples) -> list[float]:
    """ln of the arm's perplexity over the baseline's, seed by seed."""
    key = str(samples.context)
    own, other = ({o.seed: o for o in _of(samples, name)} for name in (arm, baseline))
    return [
        own[seed].nats[key] - other[seed].nats[key]
        for seed in sorted(own)
        if seed in other and key in own[seed].nats and key in other[seed].nats
    ]


def _verdict(arm: str, samples: TrainedSamples) -> Said:
    if samples.roles[arm] is not Role.CANDIDATE:
        return _said("NOT_EVALUATED", "baseline")
    against = best(samples, Role.BASELINE)
    pair = [*_of(samples, arm), *_of(samples, against)]
    if not against or any(outcome.diverged_at is not UNSET for outcome in pair):
        return _said("NOT_EVALUATED", "diverged")
    if (_mean_nats(against, samples) or math.inf) >= samples.unigram_nats:
        return _said("NOT_EVALUATED", "not-learned")
    if max(outcome.overfit for outcome in pair) > OVERFIT:
        return _said("NOT_EVALUATED", "overfit")
    above = _above(arm, samples)
    if above is UNSET or above.low is UNSET or above.high is UNSET:
        return _said("MARGINAL", "one-seed")
    if above.share <= PASS_TO and above.high <= KILL_ABOVE:
        return _said("PASS", "within-margin")
    if above.share > KILL_ABOVE and above.low > PASS_TO:
        return _said("KILL", "above-margin")
    return _said("MARGINAL", "not-resolved")


def _said(quality: str, reason: str) -> Said:
    return Said(quality=quality, quality_reason=reason, next_step=NEXT[reason])


def _above(arm: str, samples: TrainedSamples) -> Above | UnsetType:
    against = best(samples, Role.BASELINE)
    ratios = log_ratios(arm, against, samples) if against and arm != against else []
    if not ratios:
        return UNSET
    if len(ratios) < FEWEST_SEEDS:
        return Above(baseline=against, share=math.expm1(ratios[0]))
    interval = mean_interval(ratios, LEVEL)
    return Above(
        baseline=against,
        share=math.expm1(interval.mean),
        low=math.expm1(interval.low),
        high=math.expm1(interval.high),
    )


def _of(samples: TrainedSamples, arm: str) -> list[SeedOutcome]:
    return [outcome for outcome in samples.outcomes if outcome.arm == arm]


def _mean_nats(arm: str, samples: TrainedSamples) -> float | None:
    nats = [o.nats.get(str(samples.context)) for o in _of(samples, arm)]
    known = [value for value in nats if value is not None]
    return statistics.fmean(known) if known and len(known) == len(nats) else None


def _perplexity(outcomes: Sequence[SeedOutcome]) -> dict[str, float]:
    """exp of the mean loss over seeds, by context."""
    contexts = dict.fromkeys(context for outcome in outcomes for context in outcome.nats)
    return {
        context: math.exp(statistics.fmean(outcome.nats[context] for outcome in outcomes))
        for context in contexts
    }


def _means(outcomes: Sequence[SeedOutcome]) -> dict[str, float]:
    """Of what a scheme learned, the mean over heads and layers, then over seeds."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.learned)
    return {
        name: statistics.fmean(
            statistics.fmean(value for layer in outcome.learned[name] for value in layer)
            for outcome in outcomes
        )
        for name in names
    }
