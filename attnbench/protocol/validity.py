"""When a number does not count: what voids a comparison, whatever its ratio says."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import msgspec

from attnbench.protocol.blocks import SessionBlocks, step_us
from attnbench.protocol.ceiling import above_ceiling
from attnbench.protocol.cell import SessionSamples, Visit
from attnbench.protocol.timers import timers_disagree
from attnbench.protocol.verdict import Finding, Reason, Verdict
from attnbench.stats.warmup import warmed_up

MOST_DROPPED = 0.1  # of all blocks
# NVML's reasons for a clock below what was asked: software power cap, hardware slowdown, software
# and hardware thermal slowdown, power brake. Idle, application clocks and sync boost are none.
THROTTLE_BITS = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
# Nanoseconds for which the clock was held down since the driver was loaded, and by what.
THROTTLE_COUNTERS = {"power_throttled_ns": "power", "heat_throttled_ns": "heat"}
BANDWIDTH_ERROR = 0.02  # of the measured read bandwidth


class ByteFloor(msgspec.Struct, frozen=True, kw_only=True):
    """The least bytes that one step of the arm must read, and the cache that could hold some."""

    read_bytes: int
    l2_bytes: int


@dataclass(frozen=True)
class Case:
    """What is checked: the sessions, the arms compared, and their blocks by session.

    `ceiling` is the zero-cost arm where it bounds the arm in question (`ceiling.ceiling_for`).
    """

    sessions: Sequence[SessionSamples]
    arms: tuple[str, ...]  # the arm in question first, then the baseline
    blocks: Sequence[SessionBlocks]
    floor: ByteFloor | None
    ceiling: str | None = None

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[1]


def void(case: Case) -> Finding | None:
    """The first reason why this comparison does not count; None when there is none."""
    for reason, check in CHECKS:
        detail = check(case)
        if detail:
            return Finding(Verdict.VOID, reason, detail)
    return None


def _not_measured(case: Case) -> str:
    for session in case.sessions:
        visited = {visit.arm for visit in session.visits}
        missing = [arm for arm in case.arms if arm not in visited]
        if missing:
            return f"session {session.session} has no visit of {', '.join(missing)}"
    return ""


def _other_process(case: Case) -> str:
    most = max(_states(case, "other_processes"), default=0)
    return f"up to {most} other processes were on the GPU" if most else ""


def _throttled(case: Case) -> str:
    bits = [state & THROTTLE_BITS for state in _states(case, "throttle_reasons")]
    seen = sum(1 for state in bits if state)
    if seen:
        return f"the GPU throttled at {seen} of {len(bits)} readings"
    held_ns = {what: _risen(case, counter) for counter, what in THROTTLE_COUNTERS.items()}
    said = " and ".join(f"{what} for {ns / 1e6:,.1f} ms" for what, ns in held_ns.items() if ns)
    return f"within visits the GPU's clock was held down by {said}" if said else ""


def _risen(case: Case, counter: str) -> int:
    """By how much a counter rose within the visits of all sessions."""
    visits = (visit.gpu for session in case.sessions for visit in session.visits)
    pairs = ((gpu.get(f"before_{counter}"), gpu.get(counter)) for gpu in visits)
    return sum(int(b) - int(a) for a, b in pairs if a is not None and b is not None)


def _ecc(case: Case) -> str:
    for session in case.sessions:
        errors = list(_session_states(session, "ecc_uncorrected"))
        if errors and max(errors) > min(errors):
            return f"{max(errors) - min(errors)} memory errors in session {session.session}"
    return ""


def _clock_unsteady(case: Case) -> str:
    return _dropped(case, lambda blocks: blocks.unsteady, "had a clock off its median")


def _blocks_missing(case: Case) -> str:
    return _dropped(case, lambda blocks: blocks.dropped, "are incomplete or had a clock off")


def _dropped(case: Case, count: Callable[[SessionBlocks], int], what: str) -> str:
    """Over the whole run, and for any session whose every block is gone."""
    total = sum(len(blocks.kept) + blocks.dropped for blocks in case.blocks)
    dropped = sum(count(blocks) for blocks in case.blocks)
    gone = any(count(blocks) and not blocks.kept for blocks in case.blocks)
    return f"{dropped} of {total} blocks {what}" if gone or dropped > MOST_DROPPED * total else ""


def _not_warm(case: Case) -> str:
    for session in case.sessions:
        for arm in case.arms:
            if not warmed_up(session.warmup_us.get(arm, ())):
                return f"{arm} was still changing when session {session.session} began timing"
    return ""


def _allocator_retry(case: Case) -> str:
    for session in case.sessions:
        for visit in session.visits:
            retries = _retries(visit) if visit.arm in case.arms else 0
            if retries:
                return f"{retries} in a visit of {visit.arm} in session {session.session}"
    return ""


def _retries(visit: Visit) -> int:
    """How often the allocator freed what it had cached and began again; 0 where it does not say."""
    if not {"before_alloc_retries", "alloc_retries"} <= visit.gpu.keys():
        return 0
    return max(0, int(visit.gpu["alloc_retries"]) - int(visit.gpu["before_alloc_retries"]))


def _kernel_list(case: Case) -> str:
    """One arm's kernels in two sessions, where both are known: another list is another method."""
    for arm in case.arms:
        known = [(s.session, names) for s in case.sessions if (names := s.kernels.get(arm))]
        for session, names in known[1:]:
            if names != known[0][1]:
                apart = _first_apart(known[0][1], names)
                return f"{arm} launched other kernels in session {session} than before: {apart}"
    return ""


def _first_apart(before: Sequence[str], after: Sequence[str]) -> str:
    pairs = zip_longest(before, after, fillvalue="nothing")
    return next(f"{new} for {old}" for old, new in pairs if old != new)


def _timers_disagree(case: Case) -> str:
    found = (timers_disagree(session, case.arms, case.baseline) for session in case.sessions)
    return next(filter(None, found), "")


def _above_amdahl(case: Case) -> str:
    if case.ceiling is None:
        return ""
    return above_ceiling(case.sessions, case.arms[0], case.ceiling)


def _below_floor(case: Case) -> str:
    """Never where everything read fits into L2, which may hold it from step to step."""
    if case.floor is None:
        return ""
    for session, blocks in zip(case.sessions, case.blocks, strict=True):
        taken_us = statistics.fmean(step_us(block[case.arms[0]]) for block in blocks.kept)
        floor_us = floor_ms(case.floor, session.bandwidth_gb_s) * 1e3
        if taken_us < floor_us:
            return f"{taken_us:.1f} µs a step, but its bytes alone take {floor_us:.1f} µs"
    return ""


def floor_ms(floor: ByteFloor, bandwidth_gb_s: float) -> float:
    """Least milliseconds for the bytes that L2 cannot hold, allowing for the bandwidth's error."""
    from_memory = max(0, floor.read_bytes - floor.l2_bytes)
    return from_memory / (bandwidth_gb_s * (1 + BANDWIDTH_ERROR)) / 1e6


def _states(case: Case, name: str) -> Iterator[int]:
    for session in case.sessions:
        yield from _session_states(session, name)


def _session_states(session: SessionSamples, name: str) -> Iterator[int]:
    """Every reading of a GPU state in a session, before and after visits."""
    for visit in session.visits:
        for key in (f"before_{name}", name):
            if key in visit.gpu:
                yield int(visit.gpu[key])


CHECKS: tuple[tuple[Reason, Callable[[Case], str]], ...] = (
    (Reason.NOT_MEASURED, _not_measured),
    (Reason.OTHER_PROCESS, _other_process),
    (Reason.THROTTLED, _throttled),
    (Reason.ECC, _ecc),
    (Reason.CLOCK_UNSTEADY, _clock_unsteady),
    (Reason.BLOCKS_MISSING, _blocks_missing),
    (Reason.NOT_WARM, _not_warm),
    (Reason.ALLOCATOR_RETRY, _allocator_retry),
    (Reason.KERNEL_LIST, _kernel_list),
    (Reason.TIMERS_DISAGREE, _timers_disagree),
    (Reason.BELOW_FLOOR, _below_floor),
    (Reason.ABOVE_AMDAHL, _above_amdahl),
)
