"""What the quality gates alone say of an arm: the bodies of the records of `attnbench quality`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.errors import Exit
from attnbench.protocol.cell import Role
from attnbench.protocol.exit import gravest
from attnbench.protocol.kept_map import KeptMap
from attnbench.protocol.result import Interval, Promise


class QualityCell(msgspec.Struct, frozen=True, kw_only=True):
    """Where quality was judged; `context` is the prompt's length in tokens."""

    model: str
    context: int
    dtype: str
    device: str


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on quality, its reason code, and what to do next."""

    quality: str
    quality_reason: str
    next_step: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an arm is worst: by its outputs in a layer, head, window and step, by its logits in a
    window and step; -1 where that was not run."""

    layer: int
    head: int
    window: int
    step: int
    logit_window: int
    logit_step: int


class ArmQuality(msgspec.Struct, frozen=True, kw_only=True):
    """The gates of one arm.

    `gates` has the band of every gate that was run, `not_run` why the others were not, `bands` the
    limits that are not the default, as `band_options` reads them. `floor` marks exact attention
    computed in another way, whose errors no method can avoid. `contrast` has figures of the local
    gate by place, on made-up data and on random weights, where nothing earns a verdict. `kept` says
    where in the text its attention went, if that was asked for and it leaves any token out. Under
    a protocol's `promise` there are `quantities`, as `document.Quantity` names them, with intervals
    over offsets of text.
    """

    appraisal: str  # the level: how much was run
    run: str
    cell: QualityCell
    arm: str
    method: str
    family: str
    role: Role
    floor: bool
    source_sha256: str
    verdict: Said
    environment: dict[str, str | int | float]
    counts: dict[str, int | bool]
    gates: dict[str, str] = {}
    not_run: dict[str, str] = {}
    bands: tuple[str, ...] = ()
    figures: dict[str, float] = {}
    worst: Place | UnsetType = UNSET
    text: str = ""
    text_sha256: str = ""
    tokens_sha256: str = ""
    failure: str | UnsetType = UNSET
    contrast: dict[str, dict[str, float]] | UnsetType = UNSET
    kept: KeptMap | UnsetType = UNSET
    promise: Promise | UnsetType = UNSET
    quantities: dict[str, Interval] | UnsetType = UNSET


def as_earned(result: ArmQuality) -> ArmQuality:
    """As `result.as_earned`: none on random weights, none of a method that training must judge."""
    random = result.environment.get("weights") == "random"
    if result.verdict.quality == "NOT_EVALUATED" or not (random or result.family == "replacement"):
        return result
    reason = "random-weights" if random else "replacement"
    said = Said(quality="NOT_EVALUATED", quality_reason=reason, next_step="")
    return msgspec.structs.replace(result, verdict=said, gates={}, figures={})


def appraisal_exit(results: Iterable[ArmQuality]) -> Exit:
    """10 where a candidate was killed, 11 where one could not be judged, else 0."""
    return gravest(_codes(results))


def _codes(results: Iterable[ArmQuality]) -> Iterator[Exit]:
    for result in results:
        if result.role is not Role.CANDIDATE or result.floor:
            continue
        if result.verdict.quality == "KILL":
            yield Exit.FALSIFIED
        if result.verdict.quality == "NOT_EVALUATED":
            yield Exit.INCONCLUSIVE
