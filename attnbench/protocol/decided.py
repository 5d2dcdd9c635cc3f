"""What decides a claim, in a form that a machine compares: which figure, of which arm, where.

The words of a rule say it for people; a protocol or a recorded result that is to decide a claim has
to be what stands here. A rule without it is about something that attnbench cannot measure yet, and
nothing decides it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from attnbench.protocol.cell import Mode, Scope

Count = Annotated[int, Meta(ge=1)]
Level = Annotated[float, Meta(gt=0, lt=1)]
STRONGEST = "strongest"


class Measure(StrEnum):
    """The figure that is held against the bound."""

    SPEED_UP = "speed-up"  # the baseline's time over the arm's
    KV_BYTES = "kv-bytes"  # the arm's reachable KV bytes over the baseline's
    ORDER_EFFECT = "order-effect"  # one method's time measured first over its time measured second
    STEP_TIME = "step-time"  # the median step of a session, ms
    BYTE_FLOOR = "byte-floor"  # the bytes that a step reads over the session's bandwidth, ms
    COSINE = "cosine"  # of outputs with SDPA's; this and the next four are of the quality gates
    OVER_RANDOM = "over-random"  # the cosine less that of as many random tokens, or blocks
    SKILL = "selection-skill"  # its place between random tokens and the best ones
    PERPLEXITY = "perplexity-change"  # per cent
    KEPT_SHARE = "kept-share"
    BOUND_VIOLATIONS = "bound-violations"  # share of blocks with a logit above their bound
    READ_RATE = "read-rate"  # the bytes that a step of attention reads over its time, TB/s


AGAINST_A_BASELINE = (Measure.SPEED_UP, Measure.KV_BYTES)
BY_PROTOCOL = (
    Measure.SPEED_UP,
    Measure.KV_BYTES,
    Measure.ORDER_EFFECT,
    Measure.COSINE,
    Measure.OVER_RANDOM,
    Measure.SKILL,
    Measure.PERPLEXITY,
    Measure.KEPT_SHARE,
    Measure.BOUND_VIOLATIONS,
)
BY_RESULTS = (Measure.SPEED_UP, Measure.STEP_TIME, Measure.BYTE_FLOOR, Measure.READ_RATE)


class Decided(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What has to be measured; what is left out, the claim leaves open.

    `arms` are methods as `decode --method` has them, one of which is measured, in whatever
    implementation; `strongest` is the fastest exact arm of the run's pilot. `models` are those that
    have the claimed shape. `level` and `sessions` are the least, as `least_context` is. Where a
    claim names another value for each context, `claimed` has them: all of them are measured, and
    each has to hold.
    """

    quantity: Measure
    arms: tuple[str, ...] = ()
    baseline: str = ""
    models: tuple[str, ...] = ()
    context: Count | UnsetType = UNSET
    least_context: Count | UnsetType = UNSET
    claimed: dict[str, float] | UnsetType = UNSET
    batch: Count | UnsetType = UNSET
    dtype: Literal["float32", "float16", "bfloat16"] | UnsetType = UNSET
    device: Literal["cuda", "cpu"] | UnsetType = UNSET
    scope: Scope | UnsetType = UNSET
    mode: Mode | UnsetType = UNSET
    sessions: Count = 3
    level: Level = 0.95

    def problems(self) -> Iterator[str]:
        """What makes no sense together."""
        if bool(self.arms) == (self.quantity is Measure.ORDER_EFFECT):
            yield "decided.arms are named of every quantity but an order effect"
        if bool(self.baseline) != (self.quantity in AGAINST_A_BASELINE):
            known = " and ".join(AGAINST_A_BASELINE)
            yield f"decided.baseline goes with {known}, and only with them"
        if self.claimed is not UNSET:
            if not all(name.isdigit() and value > 0 for name, value in self.claimed.items()):
                yield "decided.claimed has a value above 0 for each context"
            if self.quantity not in BY_PROTOCOL:
                yield f"decided.claimed goes with {', '.join(BY_PROTOCOL)}"
        if self.quantity is Measure.READ_RATE and self.scope is not Scope.ATTENTION:
            yield "decided.scope is attention where a read rate is: a step reads weights, too"

    def is_arm(self, method: str) -> bool:
        """Whether one of the arms is this method, in whatever implementation."""
        return any(same_method(arm, method) for arm in self.arms)


def same_method(one: str, other: str) -> bool:
    """Whether two descriptions name one method with the same parameters; `impl` is none."""
    return _parts(one) == _parts(other)


def _parts(spec: str) -> tuple[str, frozenset[str]]:
    name, *parameters = (part.strip() for part in spec.split(","))
    return name, frozenset(part for part in parameters if not part.startswith("impl="))
