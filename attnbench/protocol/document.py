"""A protocol file: what is claimed, how it will be measured, and what decides; before it runs.

The schema is these records. Everything that could be chosen after the numbers are there is in it:
the cells, the arms, the baseline, the schedule, the margins, the bands of the quality gates, the
control that has to be found, and the text that will be published either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import inf
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from attnbench.protocol.bands import DEFAULT_BANDS, Bands, GateBands
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.claim import Claim, Direction, Reach
from attnbench.protocol.decided import STRONGEST
from attnbench.protocol.presets import Protocol, preset

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]


class Quantity(StrEnum):
    """What the bound of a claim is a bound of."""

    SPEED_UP = "speed-up"  # the baseline's time over the arm's
    KV_BYTES = "kv-bytes"  # the arm's reachable KV bytes over the baseline's
    ORDER_EFFECT = "order-effect"  # one method's time measured first over its time measured second
    COSINE = "cosine"  # of the arm's outputs with SDPA's, averaged over layers, heads and steps
    OVER_RANDOM = "over-random"  # that cosine less the one of as many random tokens, or blocks
    SKILL = "selection-skill"  # the cosine's place between random tokens (0) and the best ones (1)
    PERPLEXITY = "perplexity-change"  # with the arm inside the model, in per cent
    KEPT_SHARE = "kept-share"  # of the tokens, as the arm's witness declares it
    BOUND_VIOLATIONS = "bound-violations"  # share of blocks with a logit above its bound


OF_QUALITY = frozenset(
    {
        Quantity.COSINE,
        Quantity.OVER_RANDOM,
        Quantity.SKILL,
        Quantity.PERPLEXITY,
        Quantity.KEPT_SHARE,
        Quantity.BOUND_VIOLATIONS,
    }
)
QUALITY_LEVEL = 0.95  # of their intervals, which are over offsets of text


class Rule(StrEnum):
    """Which cells decide, where there are several."""

    FIRST = "first-cell"  # the others are shown beside it
    EVERY = "every-cell"  # it must hold in each; one where it fails is enough against it


class ClaimPart(msgspec.Struct, frozen=True, kw_only=True):
    """The claim: `value of the quantity` `direction` `bound`, of this arm.

    `key` names an imported claim of the ledger. `tolerance` is relative to the bound and goes with
    `about` alone.
    """

    statement: Text
    bound: float
    direction: Direction
    reach: Reach
    quantity: Quantity = Quantity.SPEED_UP
    arm: str = ""
    key: str = ""
    tolerance: float = 0.0
    keeps_quality: bool = False


class CellPart(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is measured; nothing of it is left to the machine. `gpu` is as records name it.

    A claim that names another value for each cell has it as `claimed`: what was measured is held
    against the bound as a share of that.
    """

    model: Text
    context: Count
    dtype: Literal["float32", "float16", "bfloat16"]
    device: Literal["cuda", "cpu"]
    scope: Scope
    mode: Mode
    batch: Count = 1
    gpu: str = ""
    threads: Count = 1
    text: str = ""
    claimed: Annotated[float, Meta(gt=0)] = 1.0


class SchedulePart(msgspec.Struct, frozen=True, kw_only=True):
    """A preset, and what of it is different here."""

    preset: str = "canonical"
    seed: Annotated[int, Meta(ge=0)] = 0
    warmup_steps: int | UnsetType = UNSET
    untimed_steps: int | UnsetType = UNSET
    timed_steps: int | UnsetType = UNSET
    min_visit_ms: float | UnsetType = UNSET
    blocks: int | UnsetType = UNSET
    groups: int | UnsetType = UNSET
    sessions: int | UnsetType = UNSET
    looks: tuple[int, ...] | UnsetType = UNSET


class DecisionPart(msgspec.Struct, frozen=True, kw_only=True):
    """Which cells decide, and the levels and margin of `presets.Protocol`."""

    rule: Rule = Rule.FIRST
    level: float | UnsetType = UNSET
    aa_level: float | UnsetType = UNSET
    equivalence_margin: float | UnsetType = UNSET


class ControlPart(msgspec.Struct, frozen=True, kw_only=True):
    """An arm whose effect is known: a run that does not find it says nothing."""

    arm: Text
    direction: Direction
    bound: float
    why: Text


class RequirePart(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be so for the claim to be asked at all: a figure of an arm within its limits.

    At least one of `least` and `greatest` is there.
    """

    arm: Text
    quantity: Quantity
    why: Text
    least: float = -inf
    greatest: float = inf


class GatePart(msgspec.Struct, frozen=True, kw_only=True):
    """Other bands than the default of one quality gate; what is left out stays."""

    pass_from: float | UnsetType = UNSET
    pass_to: float | UnsetType = UNSET
    kill_below: float | UnsetType = UNSET
    kill_above: float | UnsetType = UNSET

    def over(self, bands: Bands) -> Bands:
        """The default with these limits in place of its own."""
        low, high = bands.passes
        least, most = bands.lives
        return Bands(
            bands.figure,
            (_or(self.pass_from, low), _or(self.pass_to, high)),
            (_or(self.kill_below, least), _or(self.kill_above, most)),
        )


class PublishPart(msgspec.Struct, frozen=True, kw_only=True):
    """The texts, written before anybody knows which one it will be."""

    if_holds: Text
    if_fails: Text
    void_if: Annotated[tuple[Text, ...], Meta(min_length=1)]


class ProtocolFile(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file."""

    id: Text
    title: Text
    source: Text
    claim: ClaimPart
    cell: tuple[CellPart, ...]
    publish: PublishPart
    arms: tuple[Text, ...] = ()
    baseline: Text = STRONGEST
    quality: bool = True
    schedule: SchedulePart = SchedulePart()
    decision: DecisionPart = DecisionPart()
    control: ControlPart | UnsetType = UNSET
    require: tuple[RequirePart, ...] = ()
    gates: dict[str, GatePart] = {}

    @property
    def deciding(self) -> int:
        """How many of the cells decide."""
        return len(self.cell) if self.decision.rule is Rule.EVERY else 1

    @property
    def is_of_quality(self) -> bool:
        """Whether its quantity is one of the quality gates': nothing is timed."""
        return self.claim.quantity in OF_QUALITY

    @property
    def is_thorough(self) -> bool:
        """Whether the quality gates take more text than it takes to make every one."""
        return self.schedule.preset == "rigorous"

    @property
    def asks_for_bounds(self) -> bool:
        """Whether bounds have to be held against logits."""
        asked = (self.claim.quantity, *(each.quantity for each in self.require))
        return Quantity.BOUND_VIOLATIONS in asked

    @property
    def named_baseline(self) -> str:
        """Empty where the pilot chooses."""
        return "" if self.baseline == STRONGEST else self.baseline

    def protocol(self) -> Protocol:
        """How each cell is measured and judged; raises UsageError."""
        return schedule_of(self.schedule, self.decision, self.deciding)

    def claim_of(self, gpu: str = "", model: str = "") -> Claim:
        """The claim, of what it names; raises UsageError."""
        return claim_of(self.claim, gpu=gpu, model=model)

    def bands(self) -> GateBands:
        """The bands by which quality is judged."""
        return bands_over(self.gates)

    def to_clear(self) -> float:
        """The speed-up (or, of a claim to be slower, slow-down) minus one that a verdict on the
        claim's arm has to clear, so that it is also shown beside every exact arm."""
        bound, direction = self.claim.bound, self.claim.direction
        if self.claim.quantity is not Quantity.SPEED_UP:
            return 0.0
        if direction is Direction.AT_LEAST and bound > 1:
            return bound - 1
        return 1 / bound - 1 if direction is Direction.AT_MOST and 0 < bound < 1 else 0.0


def bands_over(gates: Mapping[str, GatePart]) -> GateBands:
    """The default bands with those of some gates, by name, in place of their own."""
    return {
        gate: tuple(gates[gate].over(part) for part in parts) if gate in gates else parts
        for gate, parts in DEFAULT_BANDS.items()
    }


def claim_of(part: ClaimPart, *, gpu: str, model: str) -> Claim:
    """As the verdict reads it; raises UsageError where its parts do not fit together."""
    return Claim(
        statement=part.statement,
        bound=part.bound,
        direction=part.direction,
        reach=part.reach,
        tolerance=part.tolerance,
        gpu=gpu,
        model=model,
        keeps_quality=part.keeps_quality,
    )


def schedule_of(schedule: SchedulePart, decision: DecisionPart, deciding: int) -> Protocol:
    """The preset with what is different here; the error rate is shared by the cells that decide.

    A preset's looks are left out where the number of sessions is another one. Raises UsageError.
    """
    chosen = preset(schedule.preset)
    changes = {**dict(set_parts(schedule)), **dict(set_parts(decision))}
    for name in ("preset", "seed", "rule"):
        changes.pop(name)
    if "sessions" in changes and "looks" not in changes:
        changes["looks"] = ()
    changed = msgspec.structs.replace(chosen, **changes)
    if changed != chosen:
        changed = msgspec.structs.replace(changed, name=f"{chosen.name}, changed")
    level = 1 - (1 - changed.level) / deciding
    return msgspec.structs.replace(changed, level=level) if deciding > 1 else changed


def one_sided(bands: Bands) -> tuple[bool, bool]:
    """Whether a gate's figure has a lower and an upper limit."""
    return bands.passes[0] != -inf, bands.passes[1] != inf


def set_parts(part: SchedulePart | DecisionPart) -> list[tuple[str, object]]:
    """The keys that have a value, and it."""
    return [(k, v) for k, v in msgspec.structs.asdict(part).items() if v is not UNSET]


def _or(value: float | UnsetType, default: float) -> float:
    return default if value is UNSET else value
