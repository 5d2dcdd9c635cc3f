"""What a run says of one arm in one cell: the body of a `result` record."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.protocol.cell import Cell, Role


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its confidence interval at `level`."""

    estimate: float
    low: float
    high: float
    level: float


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """The three verdicts on an arm, each with its reason code, and what to do next."""

    latency: str
    latency_reason: str
    quality: str
    quality_reason: str
    memory: str
    memory_reason: str
    next_step: str


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """The least bytes a step must read and how long the measured bandwidth needs for them.

    `weight_bytes` are those of a whole step, 0 in scope attention; `kv_bytes` the rest, which is
    what the method reads of cached keys and values. `bandwidth_gb_s` was measured in the run's own
    sessions; `theoretical_gb_s` is memory clock times bus width, 0 where neither can be
    asked, and in results from before it was.
    """

    read_bytes: int
    bandwidth_gb_s: float
    ms: float
    theoretical_gb_s: float = 0.0
    weight_bytes: int | UnsetType = UNSET
    kv_bytes: int | UnsetType = UNSET


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """The cell's zero-cost arm: what no attention method can be faster than.

    `ms` is its median step, `speed_up` the baseline's time over its.
    """

    ms: float
    speed_up: Interval | UnsetType = UNSET


class How(StrEnum):
    """How a step was split into its parts."""

    KERNELS = "kernels"  # a profiler told each kernel
    ATTENTION_ALONE = "attention-alone"  # timed alone in the same session; the rest is a difference


class KernelTime(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel in a step, by name: launches and milliseconds a step, and how much of it is
    attention."""

    name: str
    launches: float
    ms: float
    attention_share: float


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """The baseline's step in parts. Without `gaps_ms` the gaps are part of `other_ms`.

    `step_ms` is the median of its timed steps; `attention_share` is over sessions, where several
    told it. `other_kernels` counts kernels that are not named.
    """

    how: How
    step_ms: float
    attention_ms: float
    other_ms: float
    gaps_ms: float | UnsetType = UNSET
    attention_share: Interval | UnsetType = UNSET
    kernels: tuple[KernelTime, ...] = ()
    other_kernels: int = 0


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of the whole GPU while one arm's steps ran without a break, by its own counter.

    The counter moved `updates` times in these `seconds`, so that the energy is known to about one
    part in so many. One process, no interval.
    """

    joules_per_token: float
    seconds: float
    steps: int
    updates: int


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside an arm's median step.

    `slow_steps` of all timed ones took five times the median and more; `recurring_share` of its
    time is theirs beyond what such steps take of the baseline's, in every session, 0 where that is
    little. `set_up_ms` is the median of layers built, prefilled and captured, 0 where it was not
    measured; after each set-up at least `steps_a_set_up` steps were run: what an arm does less
    often may be in none of them.
    """

    slowest_ms: float
    slow_steps: int
    timed_steps: int
    recurring_share: float
    set_up_ms: float
    steps_a_set_up: int


def read_ms(read_bytes: int, gb_s: float) -> float:
    """Milliseconds to read so many bytes at `gb_s` (10^9 bytes a second)."""
    return read_bytes / gb_s / 1e6


class NextPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A run of this cell, its seconds, and the half-width of the log ratio that it should reach."""

    sessions: int
    groups: int
    blocks_per_group: int
    seconds: float
    half_width: float


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a latency verdict rests on beside its ratio; fields as in `verdict.LatencyVerdict`.

    `claim` is the speed-up minus one that a protocol registered, and FASTER had to clear.
    """

    equivalent: bool
    p_value: float
    equivalence_p: float
    sessions: int
    blocks_used: int
    blocks_dropped: int
    not_beaten: tuple[str, ...]
    claim: float = 0.0
    smallest_effect: float | UnsetType = UNSET
    sessions_needed: int | UnsetType = UNSET
    aa: Interval | UnsetType = UNSET
    aa_robust: Interval | UnsetType = UNSET
    position_effect: Interval | UnsetType = UNSET
    carry_over: Interval | UnsetType = UNSET
    cycles: float | UnsetType = UNSET
    cycles_ratio: Interval | UnsetType = UNSET
    next_plan: NextPlan | UnsetType = UNSET
    session_sd: float | UnsetType = UNSET
    group_sd: float | UnsetType = UNSET
    block_sd: float | UnsetType = UNSET


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """The protocol file that a record was measured under: it stands in all records of its run.

    `registration` is the id of the record that promised it, empty where there was none;
    `file_sha256` is of the file's bytes. `baseline` is the one that the file names, empty for the
    strongest. An exploratory run was not registered, or not so.
    """

    protocol: str
    file_sha256: str
    exploratory: bool
    registration: str = ""
    version: int = 0
    baseline: str = ""


class ArmResult(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. `ratio` is the speed-up, baseline time over this arm's time.

    `kernel_source` is the table that the kernel configuration is from, where it was not searched
    for; of the baseline, `launched` counts what a step of its attention launches, by name.
    `primary`: of the run's primary cell; the verdicts of all other cells share one error rate.
    """

    run: str
    cell: Cell
    arm: str
    method: str
    family: str
    role: Role
    source_sha256: str
    baseline: str
    verdict: Verdicts
    protocol: dict[str, int | float | str | tuple[int, ...]]
    environment: dict[str, str | int | float]
    primary: bool = False
    latency_ms: dict[str, float] | UnsetType = UNSET
    ratio: Interval | UnsetType = UNSET
    robust_ratio: Interval | UnsetType = UNSET
    statistics: Statistics | UnsetType = UNSET
    floor: Floor | UnsetType = UNSET
    ceiling: Ceiling | UnsetType = UNSET
    # Share of the way from the baseline's latency to the zero-cost arm's that this arm went.
    captured_share: float | UnsetType = UNSET
    captured_interval: Interval | UnsetType = UNSET
    tokens_per_s: float | UnsetType = UNSET  # of all sequences together, in scope step
    energy: Energy | UnsetType = UNSET
    beside: Beside | UnsetType = UNSET
    breakdown: Breakdown | UnsetType = UNSET  # of the baseline in scope step
    memory: dict[str, int | str | bool] | UnsetType = UNSET
    quality: dict[str, float | int | str] | UnsetType = UNSET
    witness: dict[str, float] | UnsetType = UNSET
    kernel: dict[str, int] | UnsetType = UNSET
    promise: Promise | UnsetType = UNSET
    kernel_source: str | UnsetType = UNSET
    launched: dict[str, int] | UnsetType = UNSET
    failure: str | UnsetType = UNSET


def as_earned(result: ArmResult) -> ArmResult:
    """The result without a quality verdict that its own record says it cannot have.

    Nothing is judged on random weights, nor of a method that only training can judge.
    """
    if result.verdict.quality not in ("PASS", "MARGINAL", "KILL"):
        return result
    if result.environment.get("weights") == "random":
        reason = "random-weights"
    elif result.family == "replacement":
        reason = "replacement"
    else:
        return result
    verdict = msgspec.structs.replace(
        result.verdict, quality="NOT_EVALUATED", quality_reason=reason
    )
    return msgspec.structs.replace(result, verdict=verdict, quality=UNSET)
