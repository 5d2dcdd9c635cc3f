"""What may be said of an arm's latency, why, and what to do next."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.protocol.result import Interval, NextPlan


class Verdict(StrEnum):
    """What the numbers support; everything starts at INCONCLUSIVE."""

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    EQUIVALENT = "EQUIVALENT"
    INCONCLUSIVE = "INCONCLUSIVE"
    VOID = "VOID"


class Reason(StrEnum):
    """Why a latency verdict is what it is."""

    INTERVAL_CLEAR = "interval-clear"
    WITHIN_MARGIN = "within-margin"
    NOT_RESOLVED = "not-resolved"
    TOO_FEW_SESSIONS = "too-few-sessions"
    HEAVY_TAIL = "heavy-tail"
    NOT_STRONGEST = "not-strongest"
    HOLM = "holm"
    NOT_MEASURED = "not-measured"
    DOES_NOT_FIT = "does-not-fit"
    OTHER_PROCESS = "other-process"
    THROTTLED = "throttled"
    ECC = "ecc"
    CLOCK_UNSTEADY = "clock-unsteady"
    BLOCKS_MISSING = "blocks-missing"
    NOT_WARM = "not-warm"
    TIMERS_DISAGREE = "timers-disagree"
    BELOW_FLOOR = "below-floor"
    ALLOCATOR_RETRY = "allocator-retry"
    KERNEL_LIST = "kernel-list"
    ABOVE_AMDAHL = "above-amdahl"
    PROBE_DOUBTFUL = "probe-doubtful"
    WRONG_OUTPUT = "wrong-output"
    OUTPUT_TYPE = "output-type"
    INPUTS_CHANGED = "inputs-changed"
    CACHE_CHANGED = "cache-changed"
    WEIGHTS_CHANGED = "weights-changed"
    GLOBAL_STATE = "global-state"
    PATCHED = "patched"
    LEFT_RUNNING = "left-running"
    CONTEXT_SKIPPED = "context-skipped"
    FALSE_WITNESS = "false-witness"
    CACHED = "cached"
    UNTIMED_WORK = "untimed-work"
    PRECISION = "precision"
    HUNG = "hung"
    AA_CONTROL = "aa-control"


NEXT_STEP = {
    Reason.INTERVAL_CLEAR: "read the quality verdict beside it before using it",
    Reason.WITHIN_MARGIN: "read the quality verdict beside it before using it",
    Reason.NOT_RESOLVED: "measure more sessions, or accept that the difference is too small to see",
    Reason.TOO_FEW_SESSIONS: "measure at least three sessions",
    Reason.HEAVY_TAIL: "look for groups that jump, quiet the machine, and measure more sessions",
    Reason.NOT_STRONGEST: "compare with that arm: beating a weaker exact arm is no speed-up",
    Reason.HOLM: "measure more sessions or fewer arms: among so many, one stands out by luck",
    Reason.NOT_MEASURED: "see why the arm failed, then measure again",
    Reason.DOES_NOT_FIT: "take a smaller context or batch, or a device with more memory",
    Reason.OTHER_PROCESS: "stop the other processes on the GPU and measure again",
    Reason.THROTTLED: "cool the GPU, lower its clock or raise its power limit, and measure again",
    Reason.ECC: "check the GPU's memory before trusting anything it computed",
    Reason.CLOCK_UNSTEADY: "lock the GPU's clocks and measure again",
    Reason.BLOCKS_MISSING: "see why visits are missing, then measure again",
    Reason.NOT_WARM: "raise the warm-up steps or quiet the machine, and measure again",
    Reason.TIMERS_DISAGREE: "look for work outside the timed stream, then measure again",
    Reason.BELOW_FLOOR: "look for work that was skipped or bytes that were wrongly declared",
    Reason.ALLOCATOR_RETRY: "free memory or take a smaller cell: the allocator ran out and retried",
    Reason.KERNEL_LIST: "pin what picks kernels anew in each process, then measure again",
    Reason.ABOVE_AMDAHL: "look for work outside attention that was skipped or moved elsewhere",
    Reason.WRONG_OUTPUT: "find the steps that compute something else, or mend the reference",
    Reason.OUTPUT_TYPE: "return a fresh, plain, contiguous tensor from every step",
    Reason.INPUTS_CHANGED: "work on a copy: a step may write row N of the cache and nothing else",
    Reason.CACHE_CHANGED: "write row N alone in a step, and zero it in reset",
    Reason.WEIGHTS_CHANGED: "leave the model's weights alone",
    Reason.GLOBAL_STATE: "restore what a step changes of the process before it returns",
    Reason.PATCHED: "leave other people's functions alone",
    Reason.LEFT_RUNNING: "join threads and streams before a step returns",
    Reason.CONTEXT_SKIPPED: "attend to every token, or declare the method approximate",
    Reason.FALSE_WITNESS: "count what is attended to, and say so in witness()",
    Reason.CACHED: "compute every step from its own input",
    Reason.UNTIMED_WORK: "declare its period, and do in maintain() what comes with it",
    Reason.PRECISION: "declare the method approximate: it rounds more than its dtype does",
    Reason.HUNG: "find what it waits for; a smaller cell tells whether it is only slow",
    Reason.PROBE_DOUBTFUL: "see why memory reads so slowly here, then measure again",
    Reason.AA_CONTROL: "quiet the machine or measure more sessions: this run cannot tell A from A′",
}


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Standard deviations of the log ratio between sessions, groups and blocks."""

    session_sd: float
    group_sd: float
    block_sd: float


class LatencyVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict with the figures that earned it; figures that could not be had are unset.

    Ratios are baseline time over arm time: above 1 is faster. `aa` is the same of A over A′.
    `position_effect` is a visit's time in the last position over the first, `carry_over` that of
    visits right after this arm over the others. `cycles` are SM clock cycles a step, `cycles_ratio`
    the baseline's over the arm's; they decide nothing. `next_plan` is the cheapest run that would
    know the ratio to half of the observed effect, or of the margin where that is greater.
    `p_value` is two-sided, against the claim and every exact arm; `equivalence_p` is against
    "outside the margin"; each is the worse of two centres.
    """

    arm: str
    verdict: Verdict
    reason: Reason
    next_step: str
    equivalent: bool = False
    claim: float = 0.0
    ratio: Interval | UnsetType = UNSET
    robust_ratio: Interval | UnsetType = UNSET
    p_value: float = 1.0
    equivalence_p: float = 1.0
    smallest_effect: float | UnsetType = UNSET
    sessions_needed: int | UnsetType = UNSET
    sessions: int = 0
    blocks_used: int = 0
    blocks_dropped: int = 0
    latency_ms: dict[str, float] | UnsetType = UNSET
    aa: Interval | UnsetType = UNSET
    aa_robust: Interval | UnsetType = UNSET
    position_effect: Interval | UnsetType = UNSET
    carry_over: Interval | UnsetType = UNSET
    cycles: float | UnsetType = UNSET
    cycles_ratio: Interval | UnsetType = UNSET
    next_plan: NextPlan | UnsetType = UNSET
    spread: Spread | UnsetType = UNSET
    not_beaten: tuple[str, ...] = ()


class Finding(msgspec.Struct, frozen=True):
    """A verdict with its reason, and the figures behind it in words."""

    verdict: Verdict
    reason: Reason
    detail: str = ""

    @property
    def next_step(self) -> str:
        """The detail, if there is one, and what to do."""
        advice = NEXT_STEP[self.reason]
        return f"{self.detail}; {advice}" if self.detail else advice
