"""What a quality worker's samples say of an arm: the judged part of an `ArmQuality`, without torch.

It is computed when the run ends, and again when the ledger is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.measure.answers import QualityResult
from attnbench.measure.tasks import ArmFailure
from attnbench.protocol.appraisal import ArmQuality, Place, Said
from attnbench.protocol.band_options import bands_of
from attnbench.protocol.kept_map import KeptMap
from attnbench.protocol.result import Interval
from attnbench.protocol.verdict import NEXT_STEP, Reason
from attnbench.quality.claimed import quantities
from attnbench.quality.figures import figures
from attnbench.quality.gates import QualityVerdict, judge, not_evaluated
from attnbench.quality.mapped import kept_map_of


def judged(bare: ArmQuality, found: QualityResult, weights: str) -> ArmQuality:
    """The result with its verdict, gates and figures, from the samples of its arm."""
    verdict = _verdict(bare, found, weights)
    failure = found.failures.get(bare.arm)
    return msgspec.structs.replace(
        bare,
        cell=msgspec.structs.replace(bare.cell, context=verdict.context or bare.cell.context),
        verdict=Said(
            quality=verdict.verdict.value,
            quality_reason=verdict.reason,
            next_step=verdict.next_step,
        ),
        gates=verdict.bands,
        not_run=verdict.not_run,
        figures=verdict.figures,
        worst=UNSET if verdict.worst_layer is None else _place(verdict),
        text=found.text_name,
        text_sha256=found.text_sha256,
        tokens_sha256=found.tokens_sha256,
        failure=f"{failure.type}: {failure.message}" if failure else UNSET,
        contrast=_contrast(bare.arm, found),
        kept=_kept(bare.arm, found),
        quantities=_quantities(bare, found),
    )


def _quantities(bare: ArmQuality, found: QualityResult) -> dict[str, Interval] | UnsetType:
    if bare.promise is UNSET:
        return UNSET
    samples = found.arms.get(bare.arm)
    return {} if samples is None else quantities(samples.arrays())


def _kept(arm: str, found: QualityResult) -> KeptMap | UnsetType:
    samples = found.arms.get(arm)
    mapped = None if samples is None else kept_map_of(samples.arrays())
    return UNSET if mapped is None else mapped


def _contrast(arm: str, found: QualityResult) -> dict[str, dict[str, float]] | UnsetType:
    if not found.contrast:
        return UNSET
    return {
        place: figures(arms[arm].arrays()) for place, arms in found.contrast.items() if arm in arms
    }


def rejudged(body: Mapping[str, Any], found: QualityResult) -> dict[str, Any]:
    """A recorded body once more, from the samples alone."""
    recorded = msgspec.convert(body, ArmQuality)
    again = judged(recorded, found, str(recorded.environment["weights"]))
    rebuilt: dict[str, Any] = msgspec.to_builtins(again)
    return rebuilt


def _verdict(bare: ArmQuality, found: QualityResult, weights: str) -> QualityVerdict:
    samples = found.arms.get(bare.arm)
    if samples is not None:
        return judge(samples, bare.family, weights, bands_of(bare.bands))
    return without_samples(found.failures.get(bare.arm))


def without_samples(why: ArmFailure | None) -> QualityVerdict:
    """The verdict on an arm that could not be judged; its reason is what it did, where that has a
    name."""
    if why is None:
        return not_evaluated("not-measured", "see why the arm did not run")
    if why.reason in set(Reason):
        return not_evaluated(why.reason, why.hint or NEXT_STEP[Reason(why.reason)])
    return not_evaluated("not-measured", why.hint or why.message)


def _place(verdict: QualityVerdict) -> Place:
    names = ("layer", "head", "window", "step", "logit_window", "logit_step")
    found = (getattr(verdict, f"worst_{name}") for name in names)
    return Place(
        **{name: -1 if value is None else value for name, value in zip(names, found, strict=True)}
    )
