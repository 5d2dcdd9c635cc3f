"""What `attnbench memory` says: the body of a record about the memory of several methods."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

CELL, FIT = "cell", "fit"  # what `FootprintResult.footprint` says that was looked for


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """The largest context that fits, in tokens, 0 where none does; see `tasks.Fit`."""

    context: int
    fails_at: int
    predicted: int
    bytes_a_token: float
    fixed_bytes: float
    keeps_exact_cache: bool
    trials: int


class PlaceFootprint(msgspec.Struct, frozen=True, kw_only=True):
    """One batch, at one context or up to the limit: by method, its four figures in bytes or the
    largest context, and why there is none.

    `verdicts` compare with the first arm, an exact one.
    """

    batch: int
    weight_bytes: int
    context: int | UnsetType = UNSET
    limit_bytes: int | UnsetType = UNSET
    free_before_bytes: int | UnsetType = UNSET
    free_after_bytes: int | UnsetType = UNSET
    figures: dict[str, dict[str, int | str | bool]] = {}
    verdicts: dict[str, str] = {}
    fits: dict[str, Fitted] = {}
    failures: dict[str, str] = {}


class FootprintResult(msgspec.Struct, frozen=True, kw_only=True):
    """All places of one run; `arms` says by label what each method is and `sources` of which
    source."""

    footprint: str
    run: str
    model: str
    dtype: str
    device: str
    places: tuple[PlaceFootprint, ...]
    arms: dict[str, str]
    sources: dict[str, str]
    environment: dict[str, str | int | float]
    remarks: tuple[str, ...] = ()
