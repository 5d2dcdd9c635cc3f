"""A GPU that takes simulated time, with the disturbances that real ones have.

Every disturbance is a knob; all act on log time, so that 0.01 is one per cent. What is common to
the arms (session, drift, two speeds) a paired design must cancel; what belongs to one arm (its
placement, by session or by capture) it must not mistake for a difference between methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from attnbench.protocol.cell import SessionSamples, Visit
from attnbench.protocol.schedule import Schedule, SessionSchedule

BANDWIDTH_GB_S = 2000.0
WARMUP_STEPS = 50


@dataclass(frozen=True)
class SimulatedArm:
    """`step_us` is its undisturbed time.

    It is `slow_by` slower in `slow_share` of its captures, each process draws one of
    `session_speeds`, and on top of its placement it varies from process to process by `session_sd`.
    """

    step_us: float = 1000.0
    slow_share: float = 0.0
    slow_by: float = 0.0
    session_speeds: tuple[float, ...] = (0.0,)
    session_sd: float = 0.0


@dataclass(frozen=True)
class SimulatedGpu:
    """Standard deviations, probabilities and sizes of its disturbances, on log time."""

    step_sd: float = 0.01  # each step
    session_sd: float = 0.01  # each process, common to its arms
    session_speeds: tuple[float, ...] = (0.0,)  # each process draws one, common to its arms
    placement_sd: float = 0.001  # each arm in each process
    capture_sd: float = 0.001  # each arm in each group
    drift: float = 0.01  # from the first visit of a session to its last, common
    second_speed: float = 0.0  # common; entered and left at random visits
    switch_share: float = 0.1
    spike_share: float = 0.0  # of steps
    spike: float = 0.0
    gpu: dict[str, float | int | str] = field(default_factory=dict)

    def run(
        self, plan: Schedule, arms: Mapping[str, SimulatedArm], steps: int, seed: int
    ) -> list[SessionSamples]:
        """All sessions of a schedule, with visits of `steps` timed steps."""
        rng = np.random.default_rng(seed)
        return [self.session(session, arms, steps, rng) for session in plan.sessions]

    def session(
        self,
        plan: SessionSchedule,
        arms: Mapping[str, SimulatedArm],
        steps: int,
        rng: np.random.Generator,
    ) -> SessionSamples:
        """One process walking its schedule."""
        places = _places(plan)
        labels = list(arms)
        column = np.array([labels.index(arm) for _, _, _, arm in places])
        groups = np.array([group for group, _, _, _ in places])
        log_us = self._of_arms(arms, len(plan.groups), rng)[groups, column]
        log_us += self._common(len(places), rng)
        times_us = np.exp(log_us[:, None] + self._of_steps((len(places), steps), rng)).tolist()
        return SessionSamples(
            session=plan.session,
            seed=plan.seed,
            warmup_us={arm: self._warm_up(arms[arm], rng) for arm in labels},
            visits=tuple(
                Visit(
                    arm=arm,
                    group=group,
                    block=block,
                    position=position,
                    steps_us=tuple(steps_us),
                    wall_us=sum(steps_us),
                    gpu=self.gpu,
                )
                for (group, block, position, arm), steps_us in zip(places, times_us, strict=True)
            ),
            bandwidth_gb_s=BANDWIDTH_GB_S,
            witness={},
            environment={},
        )

    def _of_arms(
        self, arms: Mapping[str, SimulatedArm], groups: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Log time of each arm in each group, [groups, arms]."""
        kinds = list(arms.values())
        typical = np.log([kind.step_us for kind in kinds])
        speeds = np.array([rng.choice(kind.session_speeds) for kind in kinds])
        own_sd = np.hypot(self.placement_sd, [kind.session_sd for kind in kinds])
        placement = rng.normal(0, own_sd)
        capture = rng.normal(0, self.capture_sd, (groups, len(kinds)))
        slow = rng.random((groups, len(kinds))) < [kind.slow_share for kind in kinds]
        return typical + speeds + placement + capture + slow * [kind.slow_by for kind in kinds]

    def _common(self, visits: int, rng: np.random.Generator) -> np.ndarray:
        """What every arm suffers alike, by visit."""
        switches = np.cumsum(rng.random(visits) < self.switch_share)
        slow = (switches + rng.integers(2)) % 2
        drift = self.drift * np.linspace(0, 1, visits)
        session = rng.normal(0, self.session_sd) + rng.choice(self.session_speeds)
        return session + drift + self.second_speed * slow

    def _of_steps(self, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        spikes = self.spike * (rng.random(shape) < self.spike_share)
        return rng.normal(0, self.step_sd, shape) + spikes

    def _warm_up(self, arm: SimulatedArm, rng: np.random.Generator) -> tuple[float, ...]:
        """Cold at first, settled well before the half."""
        cold = 0.5 * np.exp(-np.arange(WARMUP_STEPS) / 3)
        noise = self._of_steps((1, WARMUP_STEPS), rng)[0]
        return tuple((arm.step_us * np.exp(cold + noise)).tolist())


def _places(plan: SessionSchedule) -> list[tuple[int, int, int, str]]:
    """Group, block (counted through the session), position and arm of every visit, in order."""
    blocks = [(group, block) for group, of in enumerate(plan.groups) for block in of.blocks]
    return [
        (group, number, position, arm)
        for number, (group, block) in enumerate(blocks)
        for position, arm in enumerate(block.arms)
    ]
