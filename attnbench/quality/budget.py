"""Whether quality was judged at the budget that was timed; no torch."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from attnbench.quality.gates import Quality, QualityVerdict, not_evaluated
from attnbench.quality.samples import GateSamples

OTHER_BUDGET = "other-budget"
# Of the timed share, and of all tokens: what a choice by the data or by whole blocks may keep more.
MORE_SHARE, MORE_AT_ALL = 1.25, 0.01


def judged_share(samples: GateSamples) -> float:
    """The share of tokens that the arm attended to where outputs were compared: that of the step
    with most, averaged over windows and layers; NaN where it said nothing."""
    kept = samples.arrays().kept_share
    by_step = kept.reshape(-1, kept.shape[-1]).mean(axis=0, dtype=np.float64)
    return float(by_step.max()) if by_step.size else np.nan


def at_timed_budget(
    verdict: QualityVerdict, samples: GateSamples, timed_share: float | None, context: int
) -> QualityVerdict:
    """The same, unless the arm keeps more where it is judged than in the steps that were timed,
    after `context` tokens: then its time and its quality are those of two methods.

    A window of so many tokens is a larger share of a shorter text, and may be. What is killed with
    more than was timed stays killed.
    """
    stands = verdict.verdict not in (Quality.PASS, Quality.MARGINAL)
    if stands or timed_share is None:
        return verdict
    judged, shorter = judged_share(samples), max(1.0, context / max(verdict.context, 1))
    if not judged > MORE_SHARE * shorter * timed_share + MORE_AT_ALL:
        return verdict
    refused = not_evaluated(
        OTHER_BUDGET,
        f"it attended to {judged:.1%} of the tokens where its outputs were judged (after "
        f"{verdict.context} tokens) and to {timed_share:.1%} in the steps that were timed (after "
        f"{context}): give it one budget for both",
    )
    return replace(
        verdict,
        verdict=refused.verdict,
        reason=refused.reason,
        next_step=refused.next_step,
        counts=refused.counts,
        figures={**verdict.figures, "judged_share": judged, "timed_share": timed_share},
    )
