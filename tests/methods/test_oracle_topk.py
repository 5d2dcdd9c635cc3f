"""The oracle keeps what the null model of that name keeps, and of equal tokens the first."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from attnbench.methods.base import Family
from attnbench.methods.conformance import BOUNDS, Outcome, relative_error
from attnbench.methods.conformance_share import check_share
from attnbench.methods.oracle_topk import OracleTopK, highest
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Case, Trial, prefilled
from attnbench.quality.nulls import exact_weights
from attnbench.quality.replay import replay
from tests.quality.layers import gaussian_trace

CPU = torch.device("cpu")


def sorted_by_hand(row: torch.Tensor, count: int) -> list[int]:
    """The first `count` of a list sorted by falling score, then by index."""
    return sorted(sorted(range(len(row)), key=lambda at: (-float(row[at]), at))[:count])


@pytest.mark.parametrize("count", [1, 2, 13, 50, 100])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_the_highest_are_chosen_and_of_equals_the_first(count, levels):
    scores = torch.randint(levels, (2, 3, 100), generator=torch.Generator().manual_seed(levels))
    found = highest(scores.double() - 1, count)
    assert found.shape == (2, 3, count)
    for row, rows in zip(scores.flatten(0, 1), found.flatten(0, 1), strict=True):
        assert sorted(rows.tolist()) == sorted_by_hand(row, count)


def test_what_is_no_number_is_among_the_highest():
    scores = torch.arange(20.0).double()
    scores[4] = float("nan")
    assert sorted(highest(scores, 3).tolist()) == [4, 18, 19]


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5, 1.0])
def test_it_is_the_oracle_of_the_null_models(share):
    trace = gaussian_trace(context=200, steps=1, sharpness=3)
    weights = exact_weights(trace.q, trace.k, trace.v, trace.shape.scale, trace.context)
    ran = replay(OracleTopK(share=share), trace)
    kept = round(share * 201)
    assert ran.kept_share == (kept / 201,)
    torch.testing.assert_close(ran.outputs.double(), weights.oracle(kept), rtol=1e-5, atol=1e-6)


def test_a_shared_selection_is_by_the_sum_of_the_heads_weights():
    trial = Trial.make(Case(60, 64, 3, batch=2), torch.float32, CPU)
    step, shape = trial.steps[0], trial.shape
    k, v = torch.cat((trial.k, step.k), dim=2), torch.cat((trial.v, step.v), dim=2)
    method = OracleTopK(share=0.2, shared=True)
    out = trial.first_output(method.layer(shape))
    for b in range(2):
        for h in range(trial.case.kv_heads):
            weights = torch.zeros(61, dtype=torch.float64)
            for query in step.q[b, 3 * h : 3 * h + 3, 0].double():
                weights += torch.softmax(k[b, h].double() @ query * shape.scale, dim=0)
            rows = sorted_by_hand(weights, 12)
            expected = exact_attention(
                step.q[b : b + 1, 3 * h : 3 * h + 3],
                k[b : b + 1, h : h + 1, rows],
                v[b : b + 1, h : h + 1, rows],
                shape.scale,
            )
            assert relative_error(out[b : b + 1, 3 * h : 3 * h + 3], expected) < 1e-5
    assert relative_error(out, trial.first_output(OracleTopK(share=0.2).layer(shape))) > 1e-2


def test_of_tokens_with_the_same_key_the_first_are_kept():
    trial = Trial.make(Case(40, 64, 4), torch.float16, CPU)
    trial.k[:] = trial.k[:, :, :1]
    step, shape = trial.steps[0], trial.shape
    last = trial.k[:, :, :1].clone()
    layer, _ = prefilled(OracleTopK(share=0.25), trial)
    expected = exact_attention(step.q, trial.k[:, :, :10], trial.v[:, :, :10], shape.scale)
    assert relative_error(layer.decode(step.q, last, step.v), expected) < BOUNDS[torch.float16]


def test_it_reads_all_keys_and_the_values_that_it_keeps():
    trial = Trial.make(Case(199, 64, 4), torch.float16, CPU)
    layer, _ = prefilled(OracleTopK(), trial)
    assert layer.bytes_read() == (200 + 30) * trial.shape.row_bytes // 2
    assert layer.witness() == {"kept_share": 30 / 200, "attended_tokens": 30.0}


@pytest.mark.parametrize("shared", [False, True])
def test_what_it_declares_for_each_query_head_is_what_counts(shared):
    """The check that a control is spared."""

    class Judged(OracleTopK):
        family: ClassVar[Family] = Family.APPROXIMATE

    found = check_share(Judged(share=0.3, shared=shared), torch.float32, CPU)
    assert found.outcome is Outcome.PASSED
    assert "declared 0.2941" in found.detail
