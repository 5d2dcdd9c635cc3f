"""Sessions of a calibration on a simulated GPU, whose spreads and waits are known."""

from __future__ import annotations

import msgspec

from attnbench.protocol.calibration import AGAIN, OTHER, SHAM, A, Calibrated, Injected
from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.presets import CANONICAL, Protocol
from attnbench.protocol.schedule import schedule
from tests.calibration.simulated_gpu import SimulatedArm, SimulatedGpu

LIKE_AN_H100 = SimulatedGpu(
    step_sd=0.002, session_sd=0.003, placement_sd=0.0004, capture_sd=0.0008, drift=0.002
)
LAYERS = 16
LAUNCH_US = 0.05  # what reading the timer twice takes
STEPS = 5
INJECTED = tuple(
    Injected(arm=f"+{percent:g}%", asked=percent / 100, wait_us=10 * percent)
    for percent in (0.2, 0.5, 1.0, 2.0, 5.0)
)
PHASES = {"load": 4.0, "set-up": 3.0, "warm-up": 1.0, "timed": 2.0, "checks": 5.0, "total": 20.0}


def calibrated(
    sessions: int = 30,
    gpu: SimulatedGpu = LIKE_AN_H100,
    seed: int = 1,
    protocol: Protocol = CANONICAL,
    **others: SimulatedArm,
) -> Calibrated:
    """Sessions of A, A', S (1000 µs), A with each wait, and X; `others` replace an arm."""
    arms = dict.fromkeys((A, AGAIN, SHAM), SimulatedArm())
    arms |= {each.arm: SimulatedArm(1000.0 + each.wait_us) for each in INJECTED}
    arms |= {OTHER: SimulatedArm(1004.0, session_sd=0.001)} | others
    plan = schedule(
        tuple(arms), sessions=sessions, blocks=protocol.blocks, groups=protocol.groups, seed=seed
    )
    return Calibrated(
        samples=[_witnessed(session) for session in gpu.run(plan, arms, STEPS, seed)],
        phases_s=[PHASES] * sessions,
        layers=LAYERS,
        injected=INJECTED,
        protocol=protocol,
    )


def _witnessed(session: SessionSamples) -> SessionSamples:
    waits_us = {A: 0.0} | {each.arm: each.wait_us for each in INJECTED}
    witness = {
        arm: {"kept_share": 1.0, "waited_us": (LAUNCH_US + wait_us) / LAYERS}
        for arm, wait_us in waits_us.items()
    }
    return msgspec.structs.replace(session, witness=witness)
