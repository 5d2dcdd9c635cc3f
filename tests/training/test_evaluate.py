"""Baselines, perplexity, retrieval and attention figures on cases with known answers."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attnbench.quality.recall import Fact, Key, Needle, held_out_keys
from training.baselines import Bigram, Unigram
from training.corpus import undo_wikitext_spacing
from training.evaluate import attention_table, model_nll, recall_by_depth, retrieved, score_windows
from training.exam import all_needles, examine_again
from training.finish import curves_json, shortcomings
from training.model import new_model, save_bf16
from training.schedule import SMOKE
from training.tokenizer import save_tokenizer, train_tokenizer

BOOK = "It was cold. Nobody came. The house stood empty! " * 200
QUESTIONS = "".join(Fact(key, "").question for key in held_out_keys())


def test_bigram_probabilities_sum_to_one_in_every_row():
    ids = np.random.default_rng(0).integers(0, 20, 500)
    assert np.allclose(np.exp(Bigram(ids, 25).log_p).sum(1), 1)


def test_bigram_beats_unigram_on_text_with_order():
    ids = np.tile(np.arange(10), 100) + np.random.default_rng(1).integers(0, 2, 1000)
    bigram, unigram = Bigram(ids, 12), Unigram(ids, 12)
    assert bigram.nll(ids[:-1], ids[1:]) < 0.7 * unigram.nll(ids[1:])


def test_model_that_knows_nothing_has_the_vocabulary_as_perplexity():
    model = new_model(SMOKE, bos=0, eos=1)
    torch.nn.init.zeros_(model.lm_head.weight)
    scored = score_windows(np.arange(300) % 50, bos=0, window=32, text_bytes=600)
    assert scored.inputs.shape == (9, 32)
    assert math.exp(model_nll(model, scored)) == pytest.approx(SMOKE.vocabulary, rel=1e-4)


class Parrot:
    """Says that the token after next-to-come is `ids + 1`: right for counting rows only."""

    device = torch.device("cpu")

    def __call__(self, ids, use_cache, logits_to_keep):
        logits = torch.nn.functional.one_hot(ids + 1, 64).float()
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_needle_counts_only_when_every_token_of_the_answer_is_right():
    fact = Fact(Key("old", "house"), "1234")
    right = Needle((1, 2, 3), (4, 5, 6), fact, 0)
    last_wrong = Needle((1, 2, 3), (4, 5, 9), fact, 0)
    first_wrong = Needle((1, 2, 3), (9, 10, 11), fact, 0)
    assert retrieved(Parrot(), [right, last_wrong, first_wrong]) == [True, False, False]


def test_exam_asks_fewer_needles_where_the_context_is_longer():
    tokenizer = train_tokenizer([BOOK, QUESTIONS], SMOKE.vocabulary)
    asked = all_needles(tokenizer, {"book": BOOK * 5}, context=4096, count=10)
    assert {tokens: len(needles) for tokens, needles in asked.items()} == {
        256: 10,
        512: 10,
        1024: 10,
        2048: 10,
        4096: 5,
    }
    assert all(
        len(needle.prompt_ids) + len(needle.answer_ids) == tokens
        for tokens, needles in asked.items()
        for needle in needles
    )


def test_second_exam_replaces_retrieval_alone_and_says_where_it_was_taken(tmp_path):
    torch.manual_seed(0)
    save_bf16(new_model(SMOKE, bos=0, eos=1), tmp_path)
    tokenizer = train_tokenizer([BOOK, QUESTIONS], SMOKE.vocabulary)
    save_tokenizer(tokenizer, tmp_path, SMOKE.context)
    before = {"perplexity": {"a": 1}, "recall": {"64": {"retrieved": 1.0}}}
    after = examine_again(tmp_path, before, {"book": BOOK}, count=10, device="cpu")
    assert after["perplexity"] == {"a": 1}
    assert list(after["recall"]) == ["256"]
    assert after["recall"]["256"]["retrieved"] < 0.5
    assert after["recall_examined"]["when"].startswith("after training")
    assert after["recall_examined"]["device"].startswith("CPU")
    assert after["recall_examined"]["dtype"] == "float32"


def test_curves_keep_the_losses_of_the_log_and_nothing_else():
    log = [
        {"kind": "prepared", "seconds": 1.0},
        {"kind": "step", "step": 20, "prose_loss": 3.0},
        {"kind": "check", "progress": 0.5, "held_out_loss": 3.1, "recall_256": 0.0},
    ]
    assert json.loads(curves_json(log)) == [
        {"kind": "step", "step": 20, "prose_loss": 3.0},
        {"kind": "check", "progress": 0.5, "held_out_loss": 3.1},
    ]


def test_depth_bins_keep_their_order():
    assert recall_by_depth([True] * 4 + [False] * 6) == [1, 1, 0, 0, 0]


def test_uniform_attention_has_the_uniform_entropy_and_a_tiny_sink():
    n = 64
    p = torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]

    def eager(ids, output_attentions):
        return SimpleNamespace(attentions=[p[None, None]])

    eager.device = torch.device("cpu")
    (row,) = attention_table(eager, np.zeros((2, n), dtype=np.int64))
    assert row["entropy_nats"] == pytest.approx(row["uniform_nats"], rel=1e-4)
    assert row["sink_share"] == pytest.approx(row["previous_share"] / 2, rel=1e-4)


def test_wikitext_spacing_is_undone():
    spaced = ' It was " good " , a 1 @.@ 5 kg ( 3 lb ) well @-@ known dog \'s bone . '
    assert undo_wikitext_spacing(spaced) == (
        'It was "good", a 1.5 kg (3 lb) well-known dog\'s bone.'
    )


def test_model_without_retrieval_or_no_better_than_a_bigram_must_not_ship():
    good = {
        "perplexity": {"a": {"model": 20.0, "bigram": 60.0}},
        "recall": {"2048": {"retrieved": 0.95}},
    }
    assert shortcomings(good, 10_000_000) == []
    assert len(shortcomings(good, 13_000_000)) == 1
    weak = {
        "perplexity": {"a": {"model": 55.0, "bigram": 60.0}},
        "recall": {"2048": {"retrieved": 0.5}},
    }
    assert len(shortcomings(weak, 10_000_000)) == 2
