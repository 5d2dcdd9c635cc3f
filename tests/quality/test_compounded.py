import math

import pytest
import torch

from attnbench.quality.compounded import compare_logits


def logits_of(*probabilities):
    return torch.tensor([probabilities]).log() + 3  # a constant changes no distribution


def compared(arm, sdpa, target):
    found = compare_logits(logits_of(*arm), logits_of(*sdpa), torch.tensor([target]))
    return {name: values.item() for name, values in found.items()}


def test_logit_samples_are_those_computed_by_hand():
    found = compared(arm=(0.25, 0.75), sdpa=(0.5, 0.5), target=1)
    assert found["kl_nats"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert found["nll_nats"] == pytest.approx(-math.log(0.75))
    assert found["nll_sdpa_nats"] == pytest.approx(math.log(2))


def test_two_arms_agree_where_they_rank_the_same_token_first():
    assert compared((0.2, 0.7, 0.1), (0.3, 0.4, 0.3), 0)["agree"] == 1
    assert compared((0.7, 0.2, 0.1), (0.3, 0.4, 0.3), 0)["agree"] == 0


def test_a_shared_first_place_is_no_disagreement():
    assert compared((0.1, 0.2, 0.7), (0.4, 0.2, 0.4), 0)["agree"] == 1
    assert compared((0.1, 0.8, 0.1), (0.4, 0.2, 0.4), 0)["agree"] == 0


def test_who_has_many_first_places_agrees_with_none_of_them_fully():
    sdpa = torch.tensor([[2.0, 2.0, 0.0, 0.0]] * 4)
    arm = torch.tensor([[2.0, 2.0, 0, 0], [2.0, 1.0, 0, 0], [0.0, 0, 2.0, 0], [1.0, 1, 1, 1]])
    found = compare_logits(arm, sdpa, torch.zeros(4, dtype=torch.int64))["agree"]
    assert found.tolist() == [1, 1, 0, 0.5]
    all_alike = compare_logits(
        torch.zeros(1, 1000), torch.arange(1000.0)[None], torch.zeros(1, dtype=torch.int64)
    )
    assert all_alike["agree"].item() == 0.001
