"""The training forward against the library's own, and what is saved against what was trained."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.model import Trainee, new_model, parameters, save_bf16
from training.schedule import SMOKE, Recipe, learning_rate, row_tokens
from training.tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return new_model(SMOKE, bos=0, eos=1)


def test_training_forward_without_dropout_is_the_library_forward(model):
    ids = torch.randint(0, SMOKE.vocabulary, (3, 40))
    targets = torch.randint(0, SMOKE.vocabulary, (3, 40))
    loss, _ = Trainee(model, 0.0, compiled=False).losses(ids, targets, torch.ones(3, 40))
    wanted = cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, wanted)


def test_targets_of_weight_zero_do_not_count(model):
    ids = torch.randint(0, SMOKE.vocabulary, (2, 20))
    weight = torch.zeros(2, 20)
    weight[0, 5] = 3.0
    loss, each = Trainee(model, 0.0, compiled=False).losses(ids, ids, weight)
    torch.testing.assert_close(loss, each[0, 5])


def test_saved_model_loads_as_bfloat16_and_says_nearly_the_same(model, tmp_path):
    save_bf16(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(0, SMOKE.vocabulary, (1, 16))
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(loaded(ids).logits.float(), model(ids).logits, atol=0.02, rtol=0.05)


def test_full_recipe_has_grouped_queries_and_fits_twelve_megabytes():
    recipe = Recipe()
    size = parameters(new_model(recipe, bos=0, eos=1))
    assert 4_500_000 < size < 5_500_000
    assert recipe.heads > recipe.kv_heads


def test_saved_tokenizer_splits_digits_and_puts_bos_in_front(tmp_path):
    save_tokenizer(train_tokenizer(["The number is 12."] * 3, 300), tmp_path, 64)
    ids = AutoTokenizer.from_pretrained(tmp_path)
    assert ids("is 407").tokens()[0] == "<s>"
    assert ids("is 407").tokens()[-3:] == ["4", "0", "7"]
    assert (
        ids.decode(ids("He said: “x” 12").input_ids, skip_special_tokens=True) == "He said: “x” 12"
    )


def test_rate_warms_up_holds_and_ends_at_zero():
    recipe = Recipe()
    assert 0 < learning_rate(0.0, recipe) < learning_rate(0.01, recipe) < recipe.peak_rate
    assert learning_rate(0.2, recipe) == recipe.peak_rate
    assert learning_rate(1.0, recipe) == 0


def test_rows_grow_to_the_whole_context():
    recipe = Recipe()
    lengths = [row_tokens(progress / 10, recipe) for progress in range(11)]
    assert lengths == sorted(lengths)
    assert lengths[-1] == recipe.context
