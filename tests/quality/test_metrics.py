import math

import pytest
import torch

from attnbench.quality.metrics import head_metrics


def test_metrics_of_two_plane_vectors_are_those_computed_by_hand():
    found = head_metrics(torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0]))
    assert found.cosine.item() == pytest.approx(1)
    assert found.relative_l2.item() == pytest.approx(0.5)
    assert found.norm_ratio.item() == pytest.approx(0.5)

    found = head_metrics(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
    assert found.cosine.item() == pytest.approx(1 / math.sqrt(2))
    assert found.relative_l2.item() == pytest.approx(math.sqrt(2) / 2)
    assert found.norm_ratio.item() == pytest.approx(math.sqrt(2) / 2)


def test_every_head_is_compared_apart():
    exact = torch.eye(3).expand(2, 3, 3)
    output = exact.clone()
    output[1, 2] = torch.tensor([0.0, 1.0, 0.0])
    assert head_metrics(output, exact).cosine.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_zero_vector_has_cosine_zero():
    found = head_metrics(torch.zeros(4), torch.ones(4))
    assert found.cosine.item() == 0
    assert found.relative_l2.item() == 1
    assert found.norm_ratio.item() == 0


def test_a_tiny_vector_in_the_right_direction_is_not_taken_for_zero():
    exact = torch.randn(8, generator=torch.Generator().manual_seed(1))
    assert head_metrics(exact * 1e-30, exact).cosine.item() == pytest.approx(1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_makes_the_head_nan(bad):
    output = torch.ones(2, 4)
    output[1, 3] = bad
    found = head_metrics(output, torch.ones(2, 4))
    for values in found:
        assert values[0].isfinite()
        assert values[1].isnan()
