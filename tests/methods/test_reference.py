"""Attention by its definition does not depend on how its sums are cut up."""

from __future__ import annotations

import pytest
import torch

from attnbench.methods.reference import SUMMED_ROWS, exact_attention, weighted

LENGTHS = (1, SUMMED_ROWS - 1, SUMMED_ROWS, SUMMED_ROWS + 1, 3 * SUMMED_ROWS + 7)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_weighted_sum_is_that_over_all_rows_at_once(tokens):
    torch.manual_seed(tokens)
    weights = torch.rand(2, 3, tokens, dtype=torch.float64)
    values = torch.randn(2, tokens, 8, dtype=torch.float64)
    torch.testing.assert_close(weighted(weights, values), weights @ values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_attention_is_softmax_of_scaled_scores_times_values(tokens):
    torch.manual_seed(tokens)
    q = torch.randn(2, 6, 1, 16)
    k, v = (torch.randn(2, 2, tokens, 16) for _ in range(2))
    wide_k, wide_v = (rows.double().repeat_interleave(3, dim=1) for rows in (k, v))
    expected = torch.softmax(q.double() @ wide_k.mT * 0.3, dim=-1) @ wide_v
    torch.testing.assert_close(exact_attention(q, k, v, 0.3), expected, rtol=1e-12, atol=1e-12)
