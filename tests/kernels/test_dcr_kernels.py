"""The passes of direction-cosine ranking, each alone, through the interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch

from attnbench.kernels.gather_decode import gather_decode
from attnbench.kernels.splits import SplitWorkspace
from attnbench.kernels.token_scores import score_tokens
from attnbench.methods.conformance import BOUNDS, relative_error
from attnbench.methods.random_k import gathered
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Case, Trial

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = {"block_n": 32, "num_warps": 4, "num_stages": 2}


def scored(trial: Trial, splits: int, dtype: torch.dtype = torch.float32, **how):
    """Scores of the first step, and the cache after it."""
    cache, step = trial.cache(), trial.steps[0]
    scores = score_tokens(
        step.q,
        step.k,
        step.v,
        cache.k,
        cache.v,
        cache.length.tensor,
        dtype=dtype,
        splits=splits,
        **LAUNCH,
        **how,
    )
    return scores[:, : trial.case.tokens + 1], cache


def defined(trial: Trial) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and query lengths by definition, float64: [B,H,N+1] and [B,H,1]."""
    step = trial.steps[0]
    q, k = step.q[:, :, 0].double(), torch.cat((trial.k, step.k), dim=2).double()
    length = q.norm(dim=-1, keepdim=True)
    keys = k.repeat_interleave(trial.case.group, dim=1)
    return (keys @ (q / length)[..., None])[..., 0], length


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case(1, 64, 4, kv_heads=1), torch.float32),
        (Case(31, 128, 3), torch.float16),
        (Case(100, 64, 1, batch=2, kv_heads=1), torch.float16),
    ],
)
def test_scores_are_products_with_the_direction_of_the_query(case, dtype, splits):
    trial = Trial.make(case, dtype, DEVICE)
    scores, _ = scored(trial, splits)
    expected, _ = defined(trial)
    torch.testing.assert_close(scores.double(), expected.flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_scores_in_the_caches_dtype_are_rounded_once():
    trial = Trial.make(Case(40, 64, 4, kv_heads=1), torch.float16, DEVICE)
    exact, _ = scored(trial, 2)
    assert torch.equal(scored(trial, 2, torch.float16)[0], exact.half())


def test_a_query_of_zeros_scores_all_tokens_alike():
    trial = Trial.make(Case(20, 64, 4, kv_heads=1), torch.float16, DEVICE, sharpness=0.0)
    assert not scored(trial, 1)[0].any()


def test_the_new_row_is_appended_and_no_other_is_touched_or_scored():
    trial = Trial.make(Case(40, 64, 4, kv_heads=1), torch.float16, DEVICE)
    step, before = trial.steps[0], trial.cache()
    clean, cache = scored(trial, 2)
    for rows, new, old in ((cache.k, step.k, before.k), (cache.v, step.v, before.v)):
        old[:, :, 40:41] = new
        assert torch.equal(rows, old)
    assert torch.equal(scored(Trial(**(vars(trial) | {"tail": float("nan")})), 2)[0], clean)


@pytest.mark.parametrize(("splits", "group"), [(1, 3), (3, 4)])
def test_a_group_s_score_is_the_sum_of_its_heads_weights(splits, group):
    trial = Trial.make(Case(70, 64, group), torch.float16, DEVICE)
    found, _ = scored(trial, splits, shared_scale=trial.shape.scale)
    scores, length = defined(trial)
    weights = torch.softmax(scores * length * trial.shape.scale, dim=-1)
    expected = weights.view(2, group, -1).sum(dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("kept", "splits"), [(1, 1), (50, 3), (64, 1), (90, 5)])
def test_attention_is_to_the_chosen_rows_alone(shared, kept, splits):
    trial = Trial.make(Case(95, 64, 3), torch.float16, DEVICE)
    cache, step, shape = trial.cache(), trial.steps[0], trial.shape
    choices = shape.kv_heads if shared else shape.heads
    order = torch.rand(1, choices, 95, generator=torch.Generator().manual_seed(kept))
    rows = order.argsort(dim=-1)[..., :kept].sort(dim=-1).values.to(DEVICE)
    cache.length.set(94)
    workspace = SplitWorkspace.allocate(choices, splits, shape.heads // choices, 64, DEVICE)
    out = gather_decode(
        step.q,
        cache.k,
        cache.v,
        rows[0].int(),
        cache.length.tensor,
        (0, 1, kept, 1),
        workspace,
        scale=shape.scale,
        **LAUNCH,
    )
    each = rows.repeat_interleave(shape.heads // choices, dim=1)
    k, v = (part.repeat_interleave(3, dim=1) for part in (cache.k, cache.v))
    expected = exact_attention(step.q, gathered(k, each), gathered(v, each), shape.scale)
    assert relative_error(out, expected) < BOUNDS[torch.float16]
    assert not workspace.finished.any()
