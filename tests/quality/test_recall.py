"""Facts hidden in prose, without a model."""

from __future__ import annotations

import re
import zlib

import pytest

from attnbench.errors import UsageError
from attnbench.quality.recall import (
    all_keys,
    build_needle,
    draw_facts,
    held_out_keys,
    sentences,
    training_keys,
)

PROSE = "".join(
    f" Sentence number {chr(97 + i % 26)} is short. Mr. Smith knows it!" for i in range(60)
)


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids: tuple[int, ...]) -> str:
    return bytes(ids).decode()


def needle(depth: float = 0.5, tokens: int = 1200, seed: int = 3):
    haystack = [encode(sentence) for sentence in sentences(PROSE)]
    facts = draw_facts(held_out_keys(), 4, seed)
    built = build_needle(haystack, encode, tokens=tokens, facts=facts, depth=depth, seed=seed)
    return built, facts


def test_training_and_held_out_keys_share_nothing_and_make_up_all_keys():
    assert set(training_keys()).isdisjoint(held_out_keys())
    assert set(training_keys()) | set(held_out_keys()) == set(all_keys())
    assert len(held_out_keys()) * 8 == len(all_keys())


def test_facts_depend_on_the_seed_alone_and_share_neither_key_nor_number():
    facts = draw_facts(all_keys(), 50, seed=5)
    assert facts == draw_facts(all_keys(), 50, seed=5)
    assert facts != draw_facts(all_keys(), 50, seed=6)
    assert len({fact.key for fact in facts}) == len({fact.number for fact in facts}) == 50


def test_sentences_join_to_the_same_text_and_do_not_end_after_a_title():
    cut = sentences(PROSE)
    assert "".join(cut) == PROSE
    assert " Mr. Smith knows it!" in cut


def test_prompt_and_answer_have_the_length_asked_for():
    built, _ = needle(tokens=1200)
    assert len(built.prompt_ids) + len(built.answer_ids) == 1200


def test_prompt_states_every_fact_once_after_a_sentence_and_ends_with_the_question():
    built, facts = needle()
    text = decode(built.prompt_ids)
    assert text.endswith(facts[0].question)
    assert decode(built.answer_ids) == facts[0].number
    for fact in facts:
        assert text.count(fact.statement) == 1
        assert text[text.index(fact.statement) - 1] in ".!"


def test_fact_at_points_to_the_asked_fact():
    built, facts = needle()
    assert decode(built.prompt_ids)[built.fact_at :].startswith(facts[0].statement)


def test_question_ends_with_the_space_before_the_number():
    (fact,) = draw_facts(held_out_keys(), 1, seed=0)
    assert fact.question.endswith(" is ")
    assert fact.statement == f"{fact.question}{fact.number}."


def joins_space_and_two_digits(text: str) -> list[int]:
    """A tokenizer of words with the space before them, and of digits in pairs."""
    words = re.findall(r" ?\d\d| ?[a-zA-Z]+| |.", text)
    return [zlib.crc32(word.encode()) for word in words]


@pytest.mark.parametrize("encoder", [encode, joins_space_and_two_digits])
def test_prompt_and_answer_end_in_the_very_tokens_of_the_statement(encoder):
    haystack = [encoder(sentence) for sentence in sentences(PROSE)]
    facts = draw_facts(held_out_keys(), 3, seed=8)
    for asked in facts:
        built = build_needle(haystack, encoder, tokens=400, facts=[asked], depth=0.5, seed=1)
        stated = tuple(encoder(asked.statement))
        assert (*built.prompt_ids, *built.answer_ids, *encoder("."))[-len(stated) :] == stated
        assert built.prompt_ids[built.fact_at :][: len(stated)] == stated
        assert len(built.answer_ids) == len(encoder(f" {asked.number}")) - (encoder is encode)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.75, 1.0])
def test_fact_stands_near_the_depth_asked_for(depth: float):
    built, _ = needle(depth=depth)
    assert abs(built.fact_at / len(built.prompt_ids) - depth) < 0.15


def test_text_that_is_too_short_is_refused_with_a_hint():
    with pytest.raises(UsageError, match="too short") as caught:
        needle(tokens=100_000)
    assert caught.value.hint


def test_facts_that_fill_the_context_are_refused():
    with pytest.raises(UsageError, match="leave"):
        needle(tokens=100)
