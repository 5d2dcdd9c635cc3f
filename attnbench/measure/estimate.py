"""About how long a run takes: a guess from bytes, launches and counts of steps, no measurement.

What a step and a process cost was read off runs on an H100 and on one core of a server; the guess
should be right within a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from attnbench.measure.layout import REHEARSALS, quality_counts, steps_of
from attnbench.measure.overseer import ALWAYS_PROBED, PROBED_SHARE
from attnbench.measure.place import (
    PILOT_BLOCKS,
    PILOT_STEPS,
)
from attnbench.measure.plan import Plan, PlannedArm
from attnbench.measure.tasks import StepCounts
from attnbench.measure.visits import EXTRA_SHARE, EXTRA_UNTIMED
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.family import Family
from attnbench.quality.levels import MOST_ROWS, QUESTION_STEPS, facts_in

LAUNCH_US_A_LAYER = {Mode.EAGER: 350.0, Mode.GRAPH: 25.0, Mode.COMPILED: 15.0}
CPU_BANDWIDTH_GB_S = 8.0  # one thread of a common server
# How often an arm that copies KV heads moves the cache: on an H100, four query heads a KV head. On
# a CPU a step is mostly launches.
REREADS = {"cuda": {"sdpa_repeat_kv": 16.0, "eager_repeat_kv": 28.0}, "cpu": {}}
PLANNING_S = {"cuda": 5.0, "cpu": 2.5}
PROCESS_S = {"cuda": 8.0, "cpu": 3.5}  # imports, and on a GPU its context
LOADING_S = {"cuda": 1.0, "cpu": 2.0}  # beside the weights: text, survey, prefill
TUNING_S_AN_ARM = {"cuda": 6.0, "cpu": 0.0}
PROFILE_S_AN_ARM = 4.0  # of a GPU: set-up, and energy over two seconds
GROWN_S_AN_ARM = 1.5  # in the first session
FORK_S_AN_ARM = 0.3  # of the memory part
# In steps: what is checked of a visit, of the probes and of an arm's trial in the pilot, and the
# null models and repetitions of the quality gates in a window.
CHECKS_A_VISIT, PROBES, TRIAL, GATES = 5, 50, 20, 40
FLOPS = {"cuda": 2e14, "cpu": 4e10}  # of a prefill; a CPU's of one thread
LOOK_S = 0.012  # at the process, around an arm's turn at a layer


def minutes(plan: Plan) -> float:
    """About how long a decode run of this plan takes."""
    parts_s = (
        PLANNING_S[plan.device],
        _pilot_s(plan),
        _sessions_s(plan),
        _memory_s(plan),
        _profile_s(plan),
    )
    judged = plan.request.wants_quality
    return (sum(parts_s) + (quality_s(plan, _judged(plan)) if judged else 0.0)) / 60


def between_places_s(plan: Plan) -> float:
    """Seconds that a further place of the same run saves: processes that stand already."""
    processes = 1 + plan.request.protocol.sessions
    if plan.request.wants_quality and plan.info.weights == "trained":
        processes += 1
    loading_s = PROCESS_S[plan.device] + plan.weight_bytes / 1e9
    return PLANNING_S[plan.device] + processes * loading_s + PROCESS_S[plan.device]


def in_words(about_minutes: float) -> str:
    """In minutes, or in seconds below one."""
    if about_minutes < 1:
        return f"about {max(1, round(60 * about_minutes))} s"
    return f"about {about_minutes:.0f} min"


def _pilot_s(plan: Plan) -> float:
    exact = [arm for arm in plan.arms if arm.family is Family.EXACT and not arm.twin]
    trials_s = sum(
        TUNING_S_AN_ARM[plan.device] + TRIAL * _slowest_step_s(plan, arm) for arm in plan.arms
    )
    probes_s = sum(PROBES * _slowest_step_s(plan, arm) for arm in exact)
    timed_s = sum(
        _arm_s(step_s, PILOT_STEPS, PILOT_BLOCKS, 1, period)
        for step_s, period in _steps_s(plan, exact)
    )
    return _process_s(plan) + trials_s + timed_s + probes_s


def _sessions_s(plan: Plan) -> float:
    """Every arm but those of the pilot alone, and the baseline once more."""
    protocol, arms = plan.request.protocol, [arm for arm in plan.arms if not arm.pilot_only]
    counts = steps_of(protocol)
    timed_s = sum(
        _arm_s(step_s, counts, protocol.blocks, protocol.groups, period)
        for step_s, period in _steps_s(plan, arms)
    )
    probes_s = sum(PROBES * _slowest_step_s(plan, arm) for arm in arms)
    spared = max(0, protocol.sessions - ALWAYS_PROBED)
    probed = protocol.sessions - spared * (1 - PROBED_SHARE)
    with_again = (len(arms) + 1) / max(1, len(arms))
    grown_s = GROWN_S_AN_ARM * len(arms)
    in_all_s = protocol.sessions * (_process_s(plan) + timed_s * with_again)
    return in_all_s + probed * probes_s + grown_s


def _memory_s(plan: Plan) -> float:
    return PROCESS_S[plan.device] + FORK_S_AN_ARM * len(plan.arms)


def _profile_s(plan: Plan) -> float:
    """Nothing on a CPU."""
    if plan.device != "cuda":
        return 0.0
    cells = sum(scope is Scope.STEP for scope, _ in plan.cells)
    arms = [arm for arm in plan.arms if not arm.pilot_only]
    return _process_s(plan) + cells * PROFILE_S_AN_ARM * len(arms)


def _judged(plan: Plan) -> list[PlannedArm]:
    return [arm for arm in plan.arms if not arm.pilot_only]


def quality_s(plan: Plan, arms: list[PlannedArm], *, kept_map: bool = False) -> float:
    """Seconds of the gates, and of a map of kept tokens; nothing where weights are random: there is
    nothing to judge."""
    if plan.info.weights != "trained":
        return 0.0
    counts = quality_counts(plan)
    at_once = MOST_ROWS if plan.device == "cuda" else 1  # a step of many costs a GPU that of one
    inside = math.ceil(counts.windows / at_once) * counts.logit_steps
    turns = math.ceil(facts_in(counts.context) / at_once)
    inside += counts.haystacks * turns * QUESTION_STEPS // 2
    steps = inside + counts.windows * (counts.steps + GATES)
    if counts.kept_mass:
        steps += 2 * counts.context // plan.info.head_dim // at_once
    if kept_map:
        steps += counts.steps + 2 * counts.context // plan.info.head_dim // at_once
    steps_s = [_slowest_step_s(plan, arm) for arm in arms]
    exact_s = inside * min(steps_s, default=0.0)  # what the others are compared with
    prefills_s = (counts.windows + counts.haystacks) * _prefill_s(plan, counts.context)
    looks_s = len(arms) * counts.windows * (plan.info.layers + 1) * LOOK_S
    return _process_s(plan) + exact_s + prefills_s + looks_s + steps * sum(steps_s)


def _prefill_s(plan: Plan, tokens: int) -> float:
    """Products with the weights, and causal attention, which grows with the square."""
    info = plan.info
    attention = 2 * info.layers * info.heads * info.head_dim * tokens**2
    return (2 * info.parameters * tokens + attention) / FLOPS[plan.device]


def _process_s(plan: Plan) -> float:
    """A process that stands ready, model and cache in it."""
    return PROCESS_S[plan.device] + LOADING_S[plan.device] + plan.weight_bytes / 1e9


def _arm_s(step_s: float, counts: StepCounts, blocks: int, groups: int, period: int) -> float:
    """One arm in one cell of one session: warm-up, visits, rehearsals, and what is checked."""
    least = max(counts.timed_steps, counts.min_visit_ms / 1e3 / step_s)
    timed = max(least, 2 * period if period > 1 else 0) * (1 + EXTRA_SHARE / 2)
    visit = counts.untimed_steps + EXTRA_UNTIMED / 2 + timed + CHECKS_A_VISIT
    again = (groups - 1) * counts.untimed_steps
    return step_s * (counts.warmup_steps + again + (blocks + REHEARSALS) * visit)


def _steps_s(plan: Plan, arms: list[PlannedArm]) -> Iterator[tuple[float, int]]:
    """A step of every arm in every cell, and the arm's period."""
    return ((_step_s(plan, arm, mode), arm.period) for _, mode in plan.cells for arm in arms)


def _slowest_step_s(plan: Plan, arm: PlannedArm) -> float:
    return max((_step_s(plan, arm, mode) for _, mode in plan.cells), default=0.0)


def _step_s(plan: Plan, arm: PlannedArm, mode: Mode) -> float:
    bandwidth = plan.facts.theoretical_bandwidth_gb_s or CPU_BANDWIDTH_GB_S
    moved = plan.weight_bytes + plan.cache_bytes * REREADS[plan.device].get(arm.label, 1.0)
    return moved / (bandwidth * 1e9) + plan.info.layers * LAUNCH_US_A_LAYER[mode] / 1e6
