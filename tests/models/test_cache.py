"""The exact cache: what is spare is zero, and its hash sees everything."""

import pytest
import torch

from attnbench.errors import DoesNotFit
from attnbench.models.adapter import ExactCache, attention_router, folded_rows
from attnbench.models.prefill import prefill, rope_depends_on_length, synthetic_fill
from attnbench.models.survey import survey
from tests.models.tiny import COMMON, build, loaded, prompt, wrap

CPU = torch.device("cpu")


def filled(dtype=torch.float32):
    model = loaded("llama")
    with attention_router(model.module) as router:
        surveyed = survey(model, router, 2, 12, dtype, CPU)
    cache = ExactCache([layer.shape for layer in surveyed])
    synthetic_fill(cache, 9, seed=5)
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hash_is_a_function_of_the_bytes(dtype):
    assert filled(dtype).sha256() == filled(dtype).sha256()


def test_hash_sees_a_dirty_tail():
    cache = filled()
    before = cache.sha256()
    cache.views[2].v[1, 1, 11, 7] = 1e-30
    assert cache.sha256() != before


def test_hash_sees_the_length():
    cache = filled()
    before = cache.sha256()
    cache.length.advance()
    assert cache.sha256() != before


def test_reset_brings_back_the_hash_after_steps_have_written():
    cache = filled()
    before = cache.sha256()
    for view in cache.views:
        view.k[:, :, 9:] = 3.0
        view.v[:, :, 11] = float("nan")
    cache.length.set(12)
    cache.reset(9)
    assert cache.sha256() == before


def test_length_on_the_device_follows_the_host():
    cache = filled()
    assert cache.length.tokens == 9
    assert cache.length.tensor.tolist() == [9]


def test_synthetic_rows_differ_by_layer_and_spare_rows_are_zero():
    cache = filled()
    for view in cache.views:
        for rows in (view.k, view.v):
            assert rows[:, :, :9].std() == pytest.approx(1, abs=0.2)
            assert not rows[:, :, 9:].any()
    assert not torch.equal(cache.views[0].k, cache.views[1].k)
    assert not torch.equal(cache.views[0].k, cache.views[0].v)


def test_synthetic_fill_depends_on_the_seed_alone():
    first, second = filled(), filled()
    synthetic_fill(second, 9, seed=6)
    assert first.sha256() != second.sha256()
    synthetic_fill(second, 9, seed=5)
    assert first.sha256() == second.sha256()


@pytest.mark.parametrize("tokens", [0, 13])
def test_a_fill_that_does_not_fit_is_refused(tokens):
    with pytest.raises(DoesNotFit):
        synthetic_fill(filled(), tokens, seed=0)


def test_prefill_leaves_the_length_and_zeros_behind_it():
    model = loaded("llama")
    with attention_router(model.module) as router:
        surveyed = survey(model, router, 2, 12, torch.float32, CPU)
        cache = ExactCache([layer.shape for layer in surveyed])
        for view in cache.views:
            view.k.fill_(float("nan"))
        prefill(model, router, cache, prompt(2, 9), chunk=4)
        assert cache.length.tokens == 9
        for view in cache.views:
            assert view.k[:, :, :9].abs().amin(-1).min() > 0
            assert not view.k[:, :, 9:].any()
        with pytest.raises(DoesNotFit):
            prefill(model, router, cache, prompt(2, 13))


def test_prefill_never_projects_more_than_one_token():
    model = loaded("llama")
    projected = []
    model.module.lm_head.register_forward_hook(lambda m, i, o: projected.append(o.shape[1]))
    with attention_router(model.module) as router:
        surveyed = survey(model, router, 2, 12, torch.float32, CPU)
        cache = ExactCache([layer.shape for layer in surveyed])
        projected.clear()
        prefill(model, router, cache, prompt(2, 9), chunk=4)
    assert projected == [1, 1, 1]


def test_a_prompt_is_not_cut_where_rotation_depends_on_its_length():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = wrap(build("llama", {**COMMON, "max_position_embeddings": 8, "rope_parameters": rope}))
    assert rope_depends_on_length(model.module.config)
    assert not rope_depends_on_length(loaded("llama").module.config)
    ids = prompt(1, 20)
    with torch.no_grad():
        expected = model.module(ids).logits[:, -1]
    with attention_router(model.module) as router:
        surveyed = survey(model, router, 1, 20, torch.float32, CPU)
        cache = ExactCache([layer.shape for layer in surveyed])
        actual = prefill(model, router, cache, ids, chunk=4)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [1, 6, 8])
def test_every_row_is_folded_into_one_number_and_one_bit_of_it_shows_there_alone(dtype, head_dim):
    rows = torch.randn(2, 3, 5, head_dim).to(dtype)
    before = folded_rows(rows)
    assert (before.shape, before.dtype) == ((2, 3, 5), torch.int64)
    for byte in range(rows.itemsize * head_dim):
        changed = rows.clone()
        changed.view(torch.uint8)[1, 2, 4, byte] ^= 128
        assert (folded_rows(changed) != before).nonzero().tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_words_that_changed_places_within_a_row_show(dtype):
    rows = torch.randn(1, 1, 1, 16).to(dtype)
    assert folded_rows(rows.roll(8, dims=-1)) != folded_rows(rows)
    assert folded_rows(rows.roll(1, dims=-1)) != folded_rows(rows)


def test_equal_rows_fold_alike_wherever_they_lie_and_zeros_fold_to_zero():
    rows = torch.randn(8).expand(2, 3, 5, 8).contiguous()
    assert folded_rows(rows).unique().numel() == 1
    assert not folded_rows(torch.zeros(2, 3, 5, 8)).any()


def test_a_hash_sees_rows_that_changed_places():
    cache = filled()
    before = cache.sha256()
    rows = cache.views[1].k
    rows[0, 0, [2, 3]] = rows[0, 0, [3, 2]]
    assert cache.sha256() != before
