"""The kernel that folds a cache gives what the definition gives, to the bit."""

from __future__ import annotations

import pytest
import torch

from attnbench.kernels.fold import fold, takes
from attnbench.measure.sums import PLACE_MULTIPLIER, cache_sums
from attnbench.methods.base import LayerShape
from attnbench.models.adapter import ExactCache, fold_multipliers, folded_rows, words_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def filled(head_dim: int, dtype: torch.dtype, capacity: int = 37) -> ExactCache:
    torch.manual_seed(head_dim)
    cache = ExactCache(
        [LayerShape(2, 6, 3, head_dim, capacity, dtype, DEVICE, layer, 1.0) for layer in range(2)]
    )
    for view in cache.views:
        for rows in (view.k, view.v):
            rows.normal_()
    return cache


def by_definition(rows: torch.Tensor) -> torch.Tensor:
    numbers = folded_rows(rows).flatten()
    odd = torch.arange(1, 2 * numbers.numel(), 2, device=rows.device)
    return (numbers * odd * PLACE_MULTIPLIER).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [32, 64, 256])
@pytest.mark.parametrize("capacity", [1, 37, 700])
def test_the_kernel_adds_up_what_the_definition_does(head_dim, dtype, capacity):
    rows = filled(head_dim, dtype, capacity).views[1].k
    words = words_of(rows)
    total = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    fold(words, fold_multipliers(words), total, PLACE_MULTIPLIER)
    assert total == by_definition(rows)


@pytest.mark.parametrize("skipped", [0, 5, 699])
def test_the_kernel_leaves_out_one_row_of_every_head(skipped):
    rows = filled(64, torch.bfloat16, 700).views[1].v
    words = words_of(rows)
    total = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    fold(words, fold_multipliers(words), total, PLACE_MULTIPLIER, skipped)
    rows[:, :, skipped] = 0
    assert total == by_definition(rows)


@pytest.mark.parametrize("head_dim", [6, 64, 80])
def test_every_tensor_of_a_cache_has_a_number_and_one_tokens_rows_can_be_left_out(head_dim):
    cache = filled(head_dim, torch.bfloat16)
    whole, without = cache_sums(cache), cache_sums(cache, without=5)
    assert whole.tolist() == [by_definition(r) for view in cache.views for r in (view.k, view.v)]
    assert (without != whole).all()
    for view in cache.views:
        for rows in (view.k, view.v):
            rows[:, :, 5] = 0
    assert torch.equal(cache_sums(cache), without)
    assert torch.equal(cache_sums(cache, without=5), without)


def test_rows_that_change_places_show():
    cache = filled(64, torch.bfloat16)
    before = cache_sums(cache)
    rows = cache.views[0].v
    rows[1, :, 3] = rows[1, :, 3].flip(0).clone()
    changed = cache_sums(cache) != before
    assert changed.tolist() == [False, True, False, False]


def test_it_takes_whole_rows_of_64_bit_words_on_a_gpu_and_nothing_else():
    rows = words_of(torch.zeros(2, 3, 5, 64, dtype=torch.bfloat16, device=DEVICE))
    assert takes(rows) == rows.is_cuda
    assert not takes(words_of(torch.zeros(2, 3, 5, 6, dtype=torch.bfloat16, device=DEVICE)))
    assert not takes(words_of(torch.zeros(2, 3, 5, 80, dtype=torch.bfloat16, device=DEVICE)))
    assert not takes(rows[:, :, 1:])
