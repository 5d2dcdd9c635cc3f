"""AETHER's governors as the sources have them: their rules, and what they do to a real layer."""

from __future__ import annotations

import math

import pytest
import torch

from attnbench.methods.aether import Aether
from attnbench.methods.aether_governors import G1_LEAST, G1_MOST, Seen, moved, start
from attnbench.methods.trial import Case, Trial
from attnbench.protocol.recomputed.governors import count_governor, settles, share_governor

CPU = torch.device("cpu")


def driven(governor: str, begin: float, steps: int, plant) -> list[float]:
    """ε at every step, of a plant that says what a step with ε does: (tokens, kept share)."""
    state = torch.tensor([start(governor, "default", begin)], dtype=torch.float64)
    seen = []
    for step in range(steps):
        epsilon = float(state[0, 0])
        seen.append(epsilon)
        tokens, share = plant(epsilon)
        did = Seen(torch.tensor([tokens]).double(), torch.tensor([share], dtype=torch.float64))
        state = moved(governor, "default", state, did, step)
    return seen


@pytest.mark.parametrize("demand", [2.0, 500.0, 9000.0])
def test_g1_does_what_the_claim_was_recomputed_with_and_does_not_settle(demand):
    seen = driven("g1", 0.0, 300, lambda epsilon: (demand / epsilon, 0.5))
    expected = count_governor(demand, 300, (0.01, 0.05))
    assert [demand / epsilon / 1000 for epsilon in seen] == pytest.approx(expected)
    assert not settles(expected)
    assert {min(seen), max(seen)} == {G1_LEAST, G1_MOST}


@pytest.mark.parametrize("begin", [0.1, 0.45, 0.55, 1.0])
def test_g2_does_what_the_claim_was_recomputed_with_and_runs_away(begin):
    seen = driven("g2", begin, 300, lambda epsilon: (0.0, min(epsilon, 1.0)))
    expected = share_governor(begin, 300, (0.1, 0.05))
    assert [(1 - min(epsilon, 1.0)) / 0.5 for epsilon in seen] == pytest.approx(expected)
    assert seen[-1] == 0.01 if begin < 0.5 else seen[-1] > 10


def test_g3_moves_epsilon_phi_and_p_by_hand():
    state = torch.tensor([start("g3", "gaming", 0.0)], dtype=torch.float64)
    assert state.tolist() == [[0.4, 0.2, 0.0, 0.0]]
    did = Seen(torch.tensor([10.0]).double(), torch.tensor([0.75], dtype=torch.float64))
    epsilon, phi, before, p = moved("g3", "gaming", state, did, 0)[0].tolist()
    angles = [2 * math.atan(f) for f in (0.75, 0.25, 0.75)]
    assert epsilon == pytest.approx(0.4 + 0.15 * math.cos(angles[0] + angles[1] + 0.2))
    assert phi == pytest.approx(0.2 + 0.25 * math.sin((angles[0] + angles[1]) / 2 - 0.2))
    assert p == pytest.approx(1 / (1 + math.exp(-(0.35 * math.cos(angles[2] * 0.2) + 0.05))))
    assert before == 0.75


@pytest.mark.parametrize("governor", ["g1", "g2", "g3"])
def test_a_layer_keeps_a_trajectory_that_each_sequence_has_for_itself(governor):
    trial = Trial.make(Case(70, 16, 2, batch=2), torch.float32, CPU, 6, seed=3)
    method = Aether("raw", 8, governor=governor)
    layer, defined = method.layer(trial.shape), method.reference_layer(trial.shape)
    for _ in zip(trial.appended_by(layer), trial.appended_by(defined), strict=True):
        pass
    trajectory = layer.state[70:77, :, 0]
    ahead = [[own[0] for own in defined.state[70 + at]] for at in range(7)]
    expected = torch.tensor(ahead, dtype=torch.float64)
    torch.testing.assert_close(trajectory, expected, rtol=1e-9, atol=0)
    assert len(set(trajectory[:, 0].tolist())) > 1
    assert layer.witness()["epsilon"] == pytest.approx(float(trajectory[5].mean()))


def test_g2_keeps_ever_fewer_blocks_of_a_real_layer_once_it_is_below_half():
    trial = Trial.make(Case(160, 16, 1, kv_heads=1), torch.float32, CPU, 12)
    layer = Aether(block=4, governor="g2", start=0.4).layer(trial.shape)
    shares = []
    for _ in trial.appended_by(layer):
        shares.append(layer.witness()["kept_share"])
    assert shares[0] == pytest.approx(0.4, abs=0.03)
    assert shares[-1] < shares[0] / 2
