"""What a calibration says of the instrument: the bodies of its `result` records."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.protocol.cell import Cell
from attnbench.protocol.result import Interval, Promise

INSTRUMENT, ORDER_EFFECT = "instrument", "order-effect"  # what `calibration` of a record may be


class Sd(msgspec.Struct, frozen=True, kw_only=True):
    """A standard deviation of session values (log ratios); it stays under `upper` at `level`."""

    sd: float
    degrees: float
    upper: float
    level: float


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Standard deviation of a mean of `blocks` blocks: of one capture, and each of another one.

    `gain` is the first over the second: above 1, placing arms anew in memory pays.
    """

    blocks: int
    one_capture: float
    several_captures: float
    gain: Interval | UnsetType = UNSET


class PairSpread(msgspec.Struct, frozen=True, kw_only=True):
    """How the ratio of two arms of equal speed spreads over sessions, by its two centres.

    `robust_gain` is the spread by mean over the spread by robust centre. `smallest_effects` are
    ratios minus one that so many sessions find in four of five runs, by the greater spread.
    """

    pairs: tuple[str, ...]
    sessions: int
    mean: Sd | UnsetType = UNSET
    robust: Sd | UnsetType = UNSET
    robust_gain: Interval | UnsetType = UNSET
    placement: Placement | UnsetType = UNSET
    smallest_effects: dict[str, float] = {}


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """So many of so many, with the exact interval of the share."""

    hits: int
    trials: int
    low: float
    high: float
    level: float


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """An injected slow-down: what was asked for, what the device says it was, what was measured.

    Slow-downs are ratios minus one. `verdicts` counts runs of three sessions; `found` are those
    that say SLOWER.
    """

    arm: str
    asked: float
    wait_us: float
    found: int
    runs: int
    verdicts: dict[str, int]
    waited_us: float | UnsetType = UNSET
    true: float | UnsetType = UNSET
    measured: Interval | UnsetType = UNSET
    measured_robust: Interval | UnsetType = UNSET


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """The instrument as its sessions show it.

    `void` holds the sessions that do not count in some comparison, and why; they enter no spread,
    and the runs of three that hold them are judged like any other. `false_positives` are of the
    sham alone; `false_positives_of_pairs` of all three pairs among A, A' and the sham, which share
    arms, so that its interval is somewhat too narrow. `smallest_found` is the least injected
    slow-down from which on at least four of five runs say SLOWER. `harness_share` is the part of a
    session that is neither loading, set-up, warm-up nor timed steps.
    """

    sessions: int
    void: dict[str, str]
    step_ms: float | UnsetType
    aa: PairSpread
    ab: PairSpread
    levels: tuple[Level, ...]
    sham_verdicts: dict[str, int]
    false_positives: Count | UnsetType = UNSET
    false_positives_of_pairs: Count | UnsetType = UNSET
    smallest_found: float | UnsetType = UNSET
    phases_s: dict[str, float] = {}
    harness_share: float | UnsetType = UNSET


class Bias(msgspec.Struct, frozen=True, kw_only=True):
    """The time of one method measured first over its time measured second, by way of measuring.

    1 is right; above it, the second looks faster than itself. `ratio` is over processes, of the
    mean step; `of_medians` of the median step; `each` holds every process's ratio of means.
    """

    how: str
    processes: int
    each: tuple[float, ...]
    ratio: Interval | UnsetType = UNSET
    of_medians: Interval | UnsetType = UNSET


class CalibrationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a record; `arms` says what each arm ran, `kernels` with which configuration."""

    calibration: str
    run: str
    cell: Cell
    arms: dict[str, str]
    protocol: dict[str, int | float | str | tuple[int, ...]]
    environment: dict[str, str | int | float]
    sources: dict[str, str]
    kernels: dict[str, dict[str, int]] = {}
    findings: Findings | UnsetType = UNSET
    order_effect: tuple[Bias, ...] | UnsetType = UNSET
    promise: Promise | UnsetType = UNSET
