"""Several looks at a growing run: split, they keep the level; unsplit, they do not."""

from __future__ import annotations

import msgspec
import pytest

from attnbench.protocol.looks import looks_of, protocol_at, settled
from attnbench.protocol.presets import SEQUENTIAL
from attnbench.protocol.verdict import Verdict
from tests.calibration.pipeline import SAID_DIFFERENT, experiment, judged, said, share
from tests.calibration.simulated_gpu import SimulatedArm, SimulatedGpu

replace = msgspec.structs.replace
RUNS = 2000
MOST_FALSE = 0.065  # at a nominal 5 %
# Fewer blocks than the preset has: sessions are what is looked at.
PROTOCOL = replace(SEQUENTIAL, blocks=4, groups=2)
QUIET = SimulatedGpu(step_sd=0.002, session_sd=0.003, placement_sd=0.0004, capture_sd=0.0008)
# Its own spread, which the quiet control does not share: nothing else keeps it from a false word.
NO_FASTER = SimulatedArm(session_sd=0.01)


def stopped(sessions, protocols):
    """The verdict at the first look that settles it, or else at the last."""
    looks = (judged(sessions[: protocol.sessions], protocol) for protocol in protocols)
    found = next(looks)
    while not settled(found.verdict, found.reason) and (later := next(looks, None)) is not None:
        found = later
    return found


def outcomes(arm, count, protocols):
    """Where each of so many runs stopped, seeds 0 to count - 1."""
    runs = (experiment(QUIET, arm, seed, PROTOCOL) for seed in range(count))
    return [stopped(sessions, protocols) for sessions in runs]


SPLIT = [protocol_at(PROTOCOL, sessions) for sessions in looks_of(PROTOCOL)]
WHENEVER = [replace(PROTOCOL, sessions=sessions, looks=()) for sessions in range(3, 9)]


def test_planned_looks_keep_the_level_of_the_whole_run():
    found = outcomes(NO_FASTER, RUNS, SPLIT)
    assert share(found, said(*SAID_DIFFERENT)) <= MOST_FALSE


def test_looking_after_every_session_without_splitting_does_not():
    found = outcomes(NO_FASTER, 600, WHENEVER)
    assert share(found, said(*SAID_DIFFERENT)) > 1.5 * MOST_FALSE


@pytest.mark.parametrize(("step_us", "least_early"), [(1000.0 / 1.2, 0.95), (1000.0 / 1.01, 0.0)])
def test_a_large_difference_ends_the_run_early_and_a_small_one_is_still_found(step_us, least_early):
    arm = SimulatedArm(step_us, session_sd=0.003)
    found = outcomes(arm, 300, SPLIT)
    assert share(found, said(Verdict.FASTER)) >= 0.95
    assert share(found, lambda verdict: verdict.sessions < 8) >= least_early
