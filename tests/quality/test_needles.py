"""Facts planted in text and asked for, with a model whose answers are known."""

import re
import zlib

import numpy as np
import pytest
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.sdpa import Sdpa
from attnbench.quality.candidates import Candidate, Roster
from attnbench.quality.capture import routed
from attnbench.quality.needles import (
    NeedleGate,
    _answers,
    _ids,
    _scored,
    facts_in,
    haystacks,
    pieces,
)
from attnbench.quality.recall import Fact, Key, Question
from attnbench.quality.text import named_text
from tests.models import tiny
from tests.quality.layers import Mutant
from tests.quality.test_gates import perfect

CPU = torch.device("cpu")
PROSE = named_text("prose", "".join(f" The {'very ' * (i % 5)}same day came." for i in range(400)))


class Letters:
    """A token a letter, and one in front of a text."""

    bos_token_id = 1

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [2 + ord(letter) % (tiny.VOCAB - 2) for letter in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


def planted(tokens=600, count=2, seed=4, text=PROSE):
    return haystacks(Letters(), text, tokens, count, seed)


def test_haystacks_have_the_length_asked_for_and_begin_as_the_tokenizer_does():
    for each in planted():
        assert len(each.prompt_ids) == 600
        assert each.prompt_ids[0] == 1
        assert len(each.questions) == 8


def test_every_fact_stands_whole_where_it_is_said_to_and_near_its_depth():
    letters = Letters()
    for number, each in enumerate(planted(tokens=1200)):
        for fact, asked in enumerate(each.questions):
            stated = letters(asked.fact.statement, add_special_tokens=False)["input_ids"]
            assert list(each.prompt_ids[asked.fact_at :][: len(stated)]) == stated
            assert [*asked.question_ids, *asked.answer_ids] == stated[:-1]
            depth = (fact + (number + 0.5) / 2) / 8
            assert asked.fact_at / 1200 == pytest.approx(depth, abs=0.25)


def test_haystacks_follow_the_seed():
    assert planted() == planted()
    assert planted() != planted(seed=5)
    first, second = planted()
    assert {q.fact.key for q in first.questions} != {q.fact.key for q in second.questions}


def test_a_text_without_sentences_is_cut_before_spaces():
    words = "word " * 400
    cut = pieces(words)
    assert "".join(cut) == words
    assert len(cut) > 8
    assert all(piece.startswith(" ") for piece in cut[1:])


def test_a_short_context_holds_fewer_facts_or_none():
    assert [facts_in(tokens) for tokens in (50, 100, 200, 4096)] == [0, 2, 4, 8]


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(UsageError, match="too short"):
        planted(text=named_text("short", " It is. It was."))


QUESTION = Question(Fact(Key("old", "lady"), "12"), 0, (5, 6), (2, 0))


def test_an_answer_is_scored_by_its_probability_and_the_worst_rank_of_its_tokens():
    logits = torch.tensor([[9.0, 0, 0, 0], [1.0, 2.0, 3.0, 0.0], [1.0, 3.0, 3.0, 3.0]])
    found = _scored(logits, QUESTION)
    expected = logits[1].log_softmax(-1)[2] + logits[2].log_softmax(-1)[0]
    assert found.nats == pytest.approx(-expected.item(), rel=1e-6)
    assert found.rank == 4
    assert _scored(logits[:2].flip(0), QUESTION).rank == 1


def test_logits_that_are_not_finite_are_no_hit():
    found = _scored(torch.full((3, 4), torch.nan), QUESTION)
    assert np.isnan(found.nats)
    assert found.rank == 5


def test_of_questions_of_unequal_length_each_is_scored_at_its_own_end():
    longer = Question(QUESTION.fact, 0, (5, 6, 7), (1, 3))
    turn, rows = [QUESTION, longer], 3
    ids = _ids(torch.tensor([[9, 8]]), turn, rows)
    assert ids.tolist() == [[9, 8, 5, 6, 2, 2], [9, 8, 5, 6, 7, 1], [9, 8, 5, 6, 7, 1]]
    logits = torch.randn(4, rows, 8)  # of the four tokens that are fed after the text
    alone = [_scored(logits[:3, 0], QUESTION), _scored(logits[:, 1], longer)]
    assert _answers(logits, turn) == alone
    assert alone[0] != _scored(logits[:, 0], QUESTION)


class Words(Letters):
    """A token a word, a digit or a mark, so that facts are short."""

    def __call__(self, text, add_special_tokens=True, verbose=True):
        words = re.findall(r" ?[A-Za-z]+|.", text)
        ids = [2 + zlib.crc32(word.encode()) % (tiny.VOCAB - 2) for word in words]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


def asked_of(*methods, rows=1):
    roster = Roster([Candidate(method.label, method) for method in methods])
    gate = NeedleGate(roster)
    with routed(tiny.loaded("llama"), 100 + 24, torch.float32, CPU, rows=rows) as bench:
        for each in haystacks(Words(), PROSE, 100, 1, 0):
            gate.add_haystack(bench, each, lambda _: None)
    return gate.completed({method.label: perfect() for method in methods}), roster


def test_sdpa_answers_as_sdpa_and_a_spoiled_method_otherwise():
    spoiled = Mutant(lambda output: output.flip(1))
    found, _ = asked_of(Sdpa(), spoiled)
    same, other = found["sdpa"], found[spoiled.label]
    assert len(same.needle_rank) == 2
    np.testing.assert_allclose(same.needle_nats, same.needle_nats_sdpa, rtol=1e-4)
    np.testing.assert_array_equal(same.needle_rank, same.needle_rank_sdpa)
    assert np.abs(other.needle_nats - other.needle_nats_sdpa).min() > 1e-3
    assert (np.diff(same.needle_depth) > 0).all()


@pytest.mark.parametrize("rows", [2, 3])
def test_facts_that_are_asked_for_at_once_are_answered_as_alone(rows):
    spoiled = Mutant(lambda output: output.flip(1))
    alone, _ = asked_of(Sdpa(), spoiled)
    at_once, _ = asked_of(Sdpa(), spoiled, rows=rows)
    for label, arrays in alone.items():
        for name in ("needle_depth", "needle_nats", "needle_rank", "needle_nats_sdpa"):
            np.testing.assert_allclose(
                getattr(at_once[label], name), getattr(arrays, name), rtol=1e-4, err_msg=name
            )


def test_a_method_that_fails_at_a_question_is_left_out():
    def fails(output):
        raise Unsupported("not this many tokens")

    broken = Mutant(fails)
    found, roster = asked_of(broken, Sdpa())
    assert list(roster.failures) == [broken.label]
    assert found[broken.label].needle_rank.size == 0
    assert len(found["sdpa"].needle_rank) == 2
