"""What A/A runs and injected slow-downs say of the instrument: a function of raw samples.

The arms of one calibration are the same method with the same extra kernel, which waits: A, A' and
the sham S not at all, the others for a known time. X is another exact method, waiting as little.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from attnbench.protocol.blocks import latency_ms, session_blocks, step_us
from attnbench.protocol.calibration_result import Count, Findings, Level
from attnbench.protocol.calibration_spread import counts, pair_spread
from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.comparison import Comparison
from attnbench.protocol.decide import SPEEDS, latency_verdict
from attnbench.protocol.presets import FEWEST_SESSIONS, Protocol
from attnbench.protocol.result import Interval
from attnbench.protocol.validity import Case, void
from attnbench.protocol.verdict import LatencyVerdict, Verdict
from attnbench.stats.binomial import exact_interval
from attnbench.stats.student import MeanInterval

A, AGAIN, SHAM, OTHER = "A", "A#2", "S", "X"
# An arm, what it is compared with, and the control of that comparison: none differs from another.
EQUAL_PAIRS = ((SHAM, A, AGAIN), (AGAIN, A, SHAM), (SHAM, AGAIN, A))
ENOUGH = 0.8  # of the runs find it
# Phases that any way of measuring would have; "untimed" is the warm-up of each visit.
MEASURING = ("load", "compile", "set-up", "warm-up", "untimed", "timed")
TOTAL = "total"
WAITED = "waited_us"


@dataclass(frozen=True)
class Injected:
    """An arm that waits: its label, the share of A's step that was asked for, and microseconds."""

    arm: str
    asked: float
    wait_us: float


@dataclass(frozen=True)
class Calibrated:
    """All closed sessions of a calibration.

    `layers` full-attention layers were averaged in a witness; `phases_s` are each worker's seconds
    by phase.
    """

    samples: Sequence[SessionSamples]
    phases_s: Sequence[Mapping[str, float]]
    layers: int
    injected: tuple[Injected, ...]
    protocol: Protocol


def findings(seen: Calibrated) -> Findings:
    """Spreads, false positives, what was found of what was injected, and the harness's own time."""
    runs = runs_of_three(seen.samples)
    judged = replace(seen.protocol, sessions=FEWEST_SESSIONS, looks=())
    shams = [_verdict(run, *EQUAL_PAIRS[0], judged) for run in runs]
    equals = [_verdict(run, *pair, judged) for run in runs for pair in EQUAL_PAIRS]
    levels = tuple(_level(seen, injected, runs, judged) for injected in seen.injected)
    return Findings(
        sessions=len(seen.samples),
        void=dict(_void(seen)),
        step_ms=latency_ms(seen.samples, A).get("median", UNSET),
        aa=pair_spread(seen.samples, ((AGAIN, A), (SHAM, A)), seen.protocol.level),
        ab=pair_spread(seen.samples, ((OTHER, A),), seen.protocol.level),
        levels=levels,
        sham_verdicts=_tally(shams),
        false_positives=_false_positives(shams, seen.protocol.level),
        false_positives_of_pairs=_false_positives(equals, seen.protocol.level),
        smallest_found=smallest_found(levels),
        phases_s=_phases(seen.phases_s),
        harness_share=harness_share(seen.phases_s),
    )


def runs_of_three(samples: Sequence[SessionSamples]) -> list[Sequence[SessionSamples]]:
    """Disjoint runs of consecutive sessions, each what one canonical run would be; a rest of one
    or two is left over."""
    whole = len(samples) // FEWEST_SESSIONS * FEWEST_SESSIONS
    return [samples[i : i + FEWEST_SESSIONS] for i in range(0, whole, FEWEST_SESSIONS)]


def smallest_found(levels: Sequence[Level]) -> float | UnsetType:
    """The least slow-down that enough runs find, as they do every greater one."""
    least: float | UnsetType = UNSET
    for level in sorted(levels, key=lambda each: each.asked, reverse=True):
        if not level.runs or level.found < ENOUGH * level.runs:
            break
        least = level.asked
    return least


def harness_share(phases_s: Sequence[Mapping[str, float]]) -> float | UnsetType:
    """Median over sessions of the share of time that is not what any measurement needs."""
    shares = [
        1 - math.fsum(phases.get(phase, 0.0) for phase in MEASURING) / phases[TOTAL]
        for phases in phases_s
        if phases.get(TOTAL)
    ]
    return statistics.median(shares) if shares else UNSET


def _verdict(
    run: Sequence[SessionSamples], arm: str, baseline: str, again: str, protocol: Protocol
) -> LatencyVerdict:
    """What the pipeline says of one run of three."""
    return latency_verdict(run, arm, baseline=baseline, baseline_again=again, protocol=protocol)


def _tally(verdicts: Sequence[LatencyVerdict]) -> dict[str, int]:
    """How often each was said; a void one with its reason."""
    said = (
        f"{v.verdict} ({v.reason})" if v.verdict is Verdict.VOID else v.verdict.value
        for v in verdicts
    )
    return dict(Counter(said))


def _false_positives(verdicts: Sequence[LatencyVerdict], level: float) -> Count | UnsetType:
    """Among the runs that count: a void one says nothing, neither rightly nor wrongly."""
    counted = [verdict.verdict for verdict in verdicts if verdict.verdict is not Verdict.VOID]
    if not counted:
        return UNSET
    hits = sum(verdict in SPEEDS for verdict in counted)
    low, high = exact_interval(hits, len(counted), level)
    return Count(hits=hits, trials=len(counted), low=low, high=high, level=level)


def _level(
    seen: Calibrated,
    injected: Injected,
    runs: Sequence[Sequence[SessionSamples]],
    judged: Protocol,
) -> Level:
    verdicts = [_verdict(run, injected.arm, A, AGAIN, judged) for run in runs]
    waited = list(_waited(seen, injected.arm))
    compared = [session for session in seen.samples if counts(session, (injected.arm, A))]
    measured = _measured(compared, injected.arm, judged.level)
    return Level(
        arm=injected.arm,
        asked=injected.asked,
        wait_us=injected.wait_us,
        found=sum(verdict.verdict is Verdict.SLOWER for verdict in verdicts),
        runs=len(verdicts),
        verdicts=_tally(verdicts),
        waited_us=statistics.fmean(us for us, _ in waited) if waited else UNSET,
        true=statistics.fmean(us / step for us, step in waited) if waited else UNSET,
        measured=measured[0] if measured else UNSET,
        measured_robust=measured[1] if measured else UNSET,
    )


def _waited(seen: Calibrated, arm: str) -> Iterator[tuple[float, float]]:
    """By session, microseconds that a step of `arm` waited beyond A's, and A's mean step."""
    for session in seen.samples:
        kept = session_blocks(session, (A, arm)).kept
        known = all(WAITED in session.witness.get(label, {}) for label in (A, arm))
        if kept and known:
            more_us = session.witness[arm][WAITED] - session.witness[A][WAITED]
            yield more_us * seen.layers, statistics.fmean(step_us(block[A]) for block in kept)


def _measured(
    sessions: Sequence[SessionSamples], arm: str, level: float
) -> tuple[Interval, Interval] | None:
    """The slow-down of an arm against A by both centres; None below two sessions."""
    if len(sessions) < 2:
        return None
    pair = Comparison.of([session_blocks(s, (arm, A)).kept for s in sessions], arm, A)
    return _slow_down(pair.mean(level), level), _slow_down(pair.robust(level), level)


def _slow_down(interval: MeanInterval, level: float) -> Interval:
    """A log ratio as a ratio minus one."""
    return Interval(
        estimate=math.expm1(interval.mean),
        low=math.expm1(interval.low),
        high=math.expm1(interval.high),
        level=level,
    )


def _void(seen: Calibrated) -> Iterator[tuple[str, str]]:
    """Sessions in which some arm does not count, by number, and the first reason."""
    arms = (SHAM, A, AGAIN, OTHER, *(injected.arm for injected in seen.injected))
    for session in seen.samples:
        finding = void(Case([session], arms, [session_blocks(session, arms)], None))
        if finding is not None:
            yield str(session.session), f"{finding.reason}: {finding.detail}"


def _phases(phases_s: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median seconds of a session by phase, zero where a session lacks it."""
    names = dict.fromkeys(name for phases in phases_s for name in phases)
    return {name: statistics.median(p.get(name, 0.0) for p in phases_s) for name in names}
