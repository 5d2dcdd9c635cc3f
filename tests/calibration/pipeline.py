"""Many experiments on a simulated GPU, each through the whole pipeline: schedule to verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy import stats

from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.decide import latency_verdict
from attnbench.protocol.presets import CANONICAL, Protocol
from attnbench.protocol.result import Interval
from attnbench.protocol.schedule import Schedule, schedule
from attnbench.protocol.verdict import LatencyVerdict, Verdict
from tests.calibration.simulated_gpu import SimulatedArm, SimulatedGpu

STEPS = 5  # a visit; more would only lower the noise of steps
PLANS = 64  # schedules, each of which serves many runs, since making them takes longer than a run
SAID_DIFFERENT = (Verdict.FASTER, Verdict.SLOWER)


def experiment(
    gpu: SimulatedGpu, candidate: SimulatedArm, seed: int, protocol: Protocol = CANONICAL
) -> list[SessionSamples]:
    """The samples of one run of A, A' (1000 µs) and a candidate."""
    arms = {"a": SimulatedArm(), "a2": SimulatedArm(), "c": candidate}
    plan = _plan(protocol.sessions, protocol.blocks, protocol.groups, seed % PLANS)
    return gpu.run(plan, arms, STEPS, seed)


@cache
def _plan(sessions: int, blocks: int, groups: int, seed: int) -> Schedule:
    return schedule(("a", "a2", "c"), sessions=sessions, blocks=blocks, groups=groups, seed=seed)


def judged(sessions: Sequence[SessionSamples], protocol: Protocol) -> LatencyVerdict:
    """The verdict on the candidate."""
    return latency_verdict(
        sessions,
        "c",
        baseline="a",
        baseline_again="a2",
        protocol=protocol,
        exact_arms=("a",),
    )


def verdicts(
    gpu: SimulatedGpu,
    candidate: SimulatedArm,
    count: int,
    protocol: Protocol = CANONICAL,
) -> list[LatencyVerdict]:
    """The verdict on the candidate in each of `count` runs, seeds 0 to count - 1."""
    return [judged(experiment(gpu, candidate, seed, protocol), protocol) for seed in range(count)]


def share(found: Sequence[LatencyVerdict], holds: Callable[[LatencyVerdict], bool]) -> float:
    """The share of runs of which this holds."""
    return sum(holds(verdict) for verdict in found) / len(found)


def said(*names: Verdict) -> Callable[[LatencyVerdict], bool]:
    """Whether the verdict is one of these."""
    return lambda found: found.verdict in names


def excludes(interval: Interval, ratio: float) -> bool:
    """Whether the interval leaves out this ratio."""
    return not interval.low <= ratio <= interval.high


def pooled_steps_differ(sessions: Sequence[SessionSamples]) -> bool:
    """The naive analysis: every timed step of every session a replicate, Welch's t at 5 %."""
    steps = {
        arm: np.concatenate(
            [visit.steps_us for session in sessions for visit in session.visits if visit.arm == arm]
        )
        for arm in ("a", "c")
    }
    return bool(stats.ttest_ind(steps["a"], steps["c"], equal_var=False).pvalue <= 0.05)


def pooled_blocks_differ(sessions: Sequence[SessionSamples]) -> bool:
    """Less naive and still wrong: every block of every session a replicate of log(A/B)."""
    times = {
        (session.session, visit.block, visit.arm): np.mean(visit.steps_us)
        for session in sessions
        for visit in session.visits
    }
    ratios = [np.log(t / times[s, b, "c"]) for (s, b, arm), t in times.items() if arm == "a"]
    return bool(stats.ttest_1samp(ratios, 0.0).pvalue <= 0.05)
