import dataclasses
import math

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods.reference import exact_attention
from attnbench.methods.sdpa import Sdpa
from attnbench.quality.metrics import head_metrics
from attnbench.quality.null_cosines import NullCosines, math_against_flash
from attnbench.quality.nulls import exact_weights
from attnbench.quality.replay import sdpa_outputs
from tests.quality.layers import gaussian_trace


def weights_of(trace):
    return exact_weights(trace.q, trace.k, trace.v, trace.shape.scale, trace.context)


def test_exact_weights_agree_with_the_reference_at_every_step():
    trace = gaussian_trace(heads=6, kv_heads=2)
    outputs = weights_of(trace).exact()
    for step in range(trace.steps):
        rows = slice(0, trace.context + step + 1)
        expected = exact_attention(
            trace.q[step][None, :, None],
            trace.k[None, :, rows],
            trace.v[None, :, rows],
            trace.shape.scale,
        )
        torch.testing.assert_close(outputs[step], expected[0, :, 0])


def test_uniform_is_the_mean_of_the_values_that_a_step_sees():
    trace = gaussian_trace(heads=4, kv_heads=2)
    uniform = weights_of(trace).uniform()
    seen = trace.v[1, : trace.context + 3].double().mean(0)
    torch.testing.assert_close(uniform[2, 2], seen)
    torch.testing.assert_close(uniform[2, 3], seen)


def test_recent_keeps_sinks_and_the_latest_rows_and_nothing_else():
    trace = gaussian_trace(context=50, heads=2, kv_heads=1)
    kept = [0, 1, 2, 3, *range(45, 52)]  # of the 52 rows that step 1 sees
    expected = exact_attention(
        trace.q[1][None, :, None],
        trace.k[None, :, kept],
        trace.v[None, :, kept],
        trace.shape.scale,
    )
    torch.testing.assert_close(weights_of(trace).recent(len(kept))[1], expected[0, :, 0])


def test_the_oracle_keeps_the_rows_of_the_largest_weights():
    trace = gaussian_trace(context=50, heads=2, kv_heads=1, sharpness=3)
    scores = trace.k[0, :51] @ trace.q[0, 1]
    kept = scores.topk(10).indices.tolist()
    expected = exact_attention(
        trace.q[:1, 1:, None],
        trace.k[None, :, kept],
        trace.v[None, :, kept],
        trace.shape.scale,
    )
    torch.testing.assert_close(weights_of(trace).oracle(10)[0, 1], expected[0, 0, 0])


def test_value_norm_keeps_the_rows_of_the_longest_values_that_a_step_sees():
    trace = gaussian_trace(context=50, heads=2, kv_heads=1)
    kept = trace.v[0, :51].norm(dim=-1).topk(10).indices.tolist()
    expected = exact_attention(
        trace.q[:1, :, None].transpose(1, 2).reshape(1, 2, 1, -1),
        trace.k[None, :, kept],
        trace.v[None, :, kept],
        trace.shape.scale,
    )
    torch.testing.assert_close(weights_of(trace).value_norm(10)[0], expected[0, :, 0])


def test_the_two_ways_to_compute_sdpa_set_the_floor():
    trace = gaussian_trace()
    found = math_against_flash(trace)
    assert found.cosine.shape == (4,)
    assert 0 < found.relative_l2.max() < 1e-5
    halves = dataclasses.replace(
        trace, q=trace.q.bfloat16(), k=trace.k.bfloat16(), v=trace.v.bfloat16()
    )
    assert 1e-4 < math_against_flash(halves).relative_l2.max() < 1e-1


def test_where_a_backend_refuses_there_is_no_such_floor(monkeypatch):
    def refuses(*_):
        raise Unsupported("no such backend")

    monkeypatch.setattr(Sdpa, "attend", refuses)
    assert math_against_flash(gaussian_trace()).cosine.isnan().all()


def test_random_k_scores_about_the_square_root_of_the_kept_share_on_gaussian_data():
    trace = gaussian_trace(context=2000, steps=8, heads=8, kv_heads=8, dim=64, sharpness=0)
    exact = sdpa_outputs(trace)
    for share in (0.1, 0.25, 0.5):
        nulls = NullCosines(trace, exact, (3,))
        assert nulls.at(share)["null_random"].mean().item() == pytest.approx(
            math.sqrt(share), abs=0.03
        )


def test_the_oracle_beats_random_selection_where_attention_is_sharp():
    trace = gaussian_trace(context=500, sharpness=4)
    found = NullCosines(trace, sdpa_outputs(trace), (0,)).at(0.1)
    assert (found["null_oracle"] > found["null_random"] + 0.2).all()


def test_random_draws_follow_the_seed():
    trace = gaussian_trace()
    exact = sdpa_outputs(trace)
    first, again, other = (
        NullCosines(trace, exact, seed).at(0.2)["null_random"] for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_draw_without_any_weight_gives_a_zero_output_and_not_nan():
    trace = gaussian_trace(context=1, steps=6, seed=4)
    weights = weights_of(trace)
    draws = weights.random(1, 40, torch.Generator().manual_seed(0))
    outputs = torch.stack(list(draws))
    assert outputs.isfinite().all()
    assert (outputs == 0).all(-1).any()  # step 0 sees 2 of 7 rows


@pytest.mark.parametrize(("share", "cosine"), [(0.0, 0.0), (1.0, 1.0), (1.3, 1.0)])
def test_with_nothing_or_everything_kept_there_is_nothing_to_select(share, cosine):
    trace = gaussian_trace()
    found = NullCosines(trace, sdpa_outputs(trace), (0,)).at(share)
    assert torch.equal(found["null_random"], found["null_oracle"])
    assert found["null_random"].mean().item() == pytest.approx(cosine)


def test_the_floor_is_the_error_of_sdpa_in_the_dtype_of_the_cell():
    trace = gaussian_trace()
    exact = sdpa_outputs(trace)
    assert NullCosines(trace, exact, (0,)).unconditional["floor_relative_l2"].max() < 1e-5
    rounded = exact.bfloat16()
    floor = NullCosines(trace, rounded, (0,)).unconditional["floor_relative_l2"]
    assert 1e-4 < floor.mean() < 1e-2
    assert head_metrics(rounded, exact).relative_l2.mean().item() == pytest.approx(
        floor.mean().item(), rel=0.01
    )
