"""Where the spread of a ratio comes from, and the cheapest plan for next time.

Block values are y = mean + session + group + block, nested, each term with a variance of its own;
split by the method of moments (Kalibera and Jones 2013, "Rigorous benchmarking in reasonable
time").
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.stats.equivalence import SESSIONS
from attnbench.stats.student import mean_and_sd, t_quantile

Session = Sequence[Sequence[float]]
GROUPS = range(2, 21)
BLOCKS_PER_GROUP = range(2, 11)


@dataclass(frozen=True)
class Variance:
    """Variances of log ratios: between sessions, groups of a session, blocks of a group."""

    session: float
    group: float
    block: float

    def of_session_mean(self, groups: int, blocks_per_group: int) -> float:
        """Variance of a session's mean over that many groups and blocks."""
        return self.session + self.group / groups + self.block / (groups * blocks_per_group)


@dataclass(frozen=True)
class Costs:
    """Seconds that each more session, group and block takes, without what it holds."""

    session_s: float
    group_s: float
    block_s: float


@dataclass(frozen=True)
class Plan:
    """A run, how long it takes and the half-width (of the log ratio) it should reach."""

    sessions: int
    groups: int
    blocks_per_group: int
    seconds: float
    half_width: float


def split_variance(sessions: Sequence[Session]) -> Variance:
    """Variances by level from block values by session and group; negative estimates become 0.

    Raises `ValueError` below two sessions, or where no session has two groups or no group two
    blocks.
    """
    groups = [[group for group in session if group] for session in sessions]
    block = _pooled_variance([group for session in groups for group in session])
    means = [[math.fsum(group) / len(group) for group in session] for session in groups]
    per_group = statistics.harmonic_mean([len(group) for session in groups for group in session])
    of_groups = _pooled_variance(means)
    session_means = [math.fsum(session) / len(session) for session in means]
    per_session = statistics.harmonic_mean([len(session) for session in means])
    of_sessions = mean_and_sd(session_means)[1] ** 2
    return Variance(
        session=max(0.0, of_sessions - of_groups / per_session),
        group=max(0.0, of_groups - block / per_group),
        block=block,
    )


def cheapest_plan(variance: Variance, costs: Costs, half_width: float, level: float) -> Plan | None:
    """The plan of least time whose t interval at `level` is expected within `half_width`.

    `half_width` is of the log ratio. None where a thousand sessions would not reach it.
    """
    plans = (
        _plan(variance, costs, half_width, level, groups, blocks)
        for groups in GROUPS
        for blocks in BLOCKS_PER_GROUP
    )
    return min((plan for plan in plans if plan), key=lambda plan: plan.seconds, default=None)


def _plan(
    variance: Variance, costs: Costs, wanted: float, level: float, groups: int, blocks: int
) -> Plan | None:
    sd = math.sqrt(variance.of_session_mean(groups, blocks))

    def reached(sessions: int) -> float:
        return t_quantile(sessions - 1, (1 + level) / 2) * sd / math.sqrt(sessions)

    index = bisect_left(SESSIONS, True, key=lambda sessions: reached(sessions) <= wanted)
    if index == len(SESSIONS):
        return None
    sessions = SESSIONS[index]
    one_session_s = costs.session_s + groups * (costs.group_s + blocks * costs.block_s)
    return Plan(sessions, groups, blocks, sessions * one_session_s, reached(sessions))


def _pooled_variance(samples: Sequence[Sequence[float]]) -> float:
    """Variance within samples, pooled by degrees of freedom."""
    several = [sample for sample in samples if len(sample) > 1]
    if not several:
        raise ValueError("a split of variance needs two values at every level")
    degrees = sum(len(sample) - 1 for sample in several)
    squares = math.fsum((len(sample) - 1) * mean_and_sd(sample)[1] ** 2 for sample in several)
    return squares / degrees
