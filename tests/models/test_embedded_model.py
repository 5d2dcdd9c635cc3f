"""The model that ships: it loads, it is small, and it finds facts in a text it never saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import attnbench.models
from attnbench.quality.recall import build_needle, draw_facts, held_out_keys, sentences

FOLDER = Path(attnbench.models.__file__).parent / "embedded"
NEEDLES = 10
TOKENS = 2048
# Written for this test: what retrieval needs of the prose is only that it does not answer.
SCENES = (
    " The tide had gone out before anyone in the village was awake.",
    " A boy with a basket walked along the wet sand and looked for shells.",
    " His aunt, who disliked the cold, stayed behind and put more wood on the fire.",
    " Nobody spoke of the letter that had come on Monday!",
    " By noon the fog was so thick that the church could not be seen from the bridge.",
    " Was it the same man who had asked the way to the mill?",
    " They ate their supper late, and the dog slept under the table.",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_folder_is_at_most_twelve_megabytes():
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert sum((FOLDER / name).stat().st_size for name in names) <= 12_000_000


def test_model_is_a_llama_with_grouped_queries_and_head_dimension_64(model):
    config = model.config
    assert config.model_type == "llama"
    assert config.num_attention_heads > config.num_key_value_heads
    assert config.head_dim == 64
    assert config.max_position_embeddings >= 2048
    assert config.vocab_size == 2048


def test_weights_are_stored_as_bfloat16():
    assert AutoModelForCausalLM.from_pretrained(FOLDER).dtype == torch.bfloat16


def test_tokenizer_gives_text_back_and_every_digit_its_own_token(tokenizer):
    text = "He said: “It is 4071, naïve!”\n\nShe left."
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.tokenize("4071") == ["4", "0", "7", "1"]


def test_question_and_answer_are_the_statements_own_tokens(tokenizer):
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    for fact in draw_facts(held_out_keys(), 20, seed=1):
        assert ids(fact.question) + ids(fact.number) + ids(".") == ids(fact.statement)


def test_greedy_decoding_retrieves_facts(model, tokenizer):
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    haystack = [encode(sentence) for sentence in sentences("".join(SCENES) * 40)]
    found = 0
    for number in range(NEEDLES):
        needle = build_needle(
            haystack,
            encode,
            tokens=TOKENS,
            facts=draw_facts(held_out_keys(), 6, seed=number),
            depth=(number + 0.5) / NEEDLES,
            seed=number,
            prefix_ids=(tokenizer.bos_token_id,),
        )
        prompt = torch.tensor([needle.prompt_ids])
        new = len(needle.answer_ids)
        written = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        found += tuple(written[0, -new:].tolist()) == needle.answer_ids
    assert found >= NEEDLES - 1


def test_shuffled_words_surprise_the_model_more_than_sentences(model, tokenizer):
    text = "".join(SCENES).strip()
    words = text.split(" ")
    shuffled = " ".join(words[i] for i in torch.randperm(len(words), generator=seeded()).tolist())

    def loss(text: str) -> float:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            return model(ids, labels=ids).loss.item()

    assert loss(text) + 1.0 < loss(shuffled)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_card_reports_what_the_results_say():
    results = json.loads((FOLDER / "results.json").read_text())
    card = (FOLDER / "MODEL_CARD.md").read_text()
    assert results["recall"]["2048"]["retrieved"] >= 0.9
    for row in results["perplexity"].values():
        assert row["model"] < 0.8 * row["bigram"]
        assert f"**{row['model']:.1f}**" in card
    for tokens, row in results["recall"].items():
        assert f"| {tokens} | {row['needles']} | **{100 * row['retrieved']:.1f} %** |" in card
