"""Whether an arm keeps less memory: a saving counts when two ways of measuring it agree."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import UNSET, UnsetType

AGREE_SHARE = 0.02  # of the baseline's bytes
AGREE_BYTES = 1 << 20  # the allocator's own rounding, for small caches
HOST_BYTES = 8 << 20  # by which a resident set grows without anybody keeping anything
MARGIN = 0.01  # of the baseline's bytes; a smaller saving is none


class MemoryOutcome(StrEnum):
    """What two measurements of memory support."""

    SMALLER = "SMALLER"
    LARGER = "LARGER"
    EQUIVALENT = "EQUIVALENT"
    INCONCLUSIVE = "INCONCLUSIVE"
    VOID = "VOID"


class MemoryReason(StrEnum):
    """Why a memory verdict is what it is."""

    FIGURES_AGREE = "figures-agree"
    FIGURES_DISAGREE = "figures-disagree"
    HIDDEN_STATE = "hidden-state"
    ONE_FIGURE_CLEAR = "one-figure-clear"
    NOT_MEASURED = "not-measured"


NEXT_STEP = {
    MemoryReason.FIGURES_AGREE: "read the quality verdict beside it before using it",
    MemoryReason.FIGURES_DISAGREE: "find what tensors() names and the allocator does not hold",
    MemoryReason.HIDDEN_STATE: "find what the arm keeps outside tensors(), on the host as well",
    MemoryReason.ONE_FIGURE_CLEAR: "measure with a larger cache, where rounding does not matter",
    MemoryReason.NOT_MEASURED: "see why the baseline or the arm has no figures, then measure again",
}


class MemoryVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome; `saving` is the smaller of both as a share of the baseline's bytes."""

    verdict: MemoryOutcome
    reason: MemoryReason
    next_step: str
    saving: float | UnsetType = UNSET


def memory_verdict(
    *, baseline_bytes: int, reachable_saving: int, allocated_saving: int, host_bytes: int = 0
) -> MemoryVerdict:
    """What the savings in bytes, reachable and allocated, say against the baseline's reachable.

    Savings are the baseline's bytes less the arm's. They agree within 2 % of the baseline's bytes,
    or within 1 MiB. An arm that holds more than it names, or keeps `host_bytes` more than the
    baseline in host memory that is no tensor's, hides its state.
    """
    if baseline_bytes <= 0:
        return _verdict(MemoryOutcome.VOID, MemoryReason.NOT_MEASURED)
    shares = [saving / baseline_bytes for saving in (reachable_saving, allocated_saving)]
    smaller = min(shares, key=abs)
    hidden = reachable_saving - allocated_saving
    tolerance = max(AGREE_SHARE * baseline_bytes, AGREE_BYTES)
    if hidden > tolerance or host_bytes > tolerance + HOST_BYTES:
        return _verdict(MemoryOutcome.VOID, MemoryReason.HIDDEN_STATE, smaller)
    if -hidden > tolerance:
        return _verdict(MemoryOutcome.INCONCLUSIVE, MemoryReason.FIGURES_DISAGREE, smaller)
    outcomes = {_outcome(share) for share in shares}
    if len(outcomes) > 1:
        return _verdict(MemoryOutcome.INCONCLUSIVE, MemoryReason.ONE_FIGURE_CLEAR, smaller)
    return _verdict(outcomes.pop(), MemoryReason.FIGURES_AGREE, smaller)


def not_measured() -> MemoryVerdict:
    """For an arm, or a run, without memory figures."""
    return _verdict(MemoryOutcome.VOID, MemoryReason.NOT_MEASURED)


def _outcome(share: float) -> MemoryOutcome:
    if abs(share) <= MARGIN:
        return MemoryOutcome.EQUIVALENT
    return MemoryOutcome.SMALLER if share > 0 else MemoryOutcome.LARGER


def _verdict(
    outcome: MemoryOutcome, reason: MemoryReason, saving: float | UnsetType = UNSET
) -> MemoryVerdict:
    return MemoryVerdict(verdict=outcome, reason=reason, next_step=NEXT_STEP[reason], saving=saving)
