"""Rows with facts spliced into prose, decoded and read back."""

from __future__ import annotations

import re

import pytest
import torch
from tokenizers import Tokenizer

from attnbench.quality.recall import training_keys
from training.batches import draw_batch, echo_rows, slots_for
from training.recall import ANSWER_WEIGHT, Prose, sentence_gaps, tokenise_keys
from training.tokenizer import BOS, encode_document, train_tokenizer

TEXT = (
    "The sea was calm that day. Mr. Brown went out early! Nobody saw him “again.” He slept. " * 400
)
STATED = re.compile(r" The number of the (\w+ \w+) is (\d{4})\.")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    keys = " ".join(f"{key.adjective} {key.noun}." for key in training_keys())
    return train_tokenizer([TEXT, "The number of the house is.", keys], 600)


@pytest.fixture(scope="module")
def material(tokenizer: Tokenizer):
    ids = torch.from_numpy(encode_document(tokenizer, TEXT))
    prose = Prose(ids, sentence_gaps(tokenizer, ids))
    return prose, tokenise_keys(tokenizer, training_keys(), torch.device("cpu"))


@pytest.fixture(scope="module")
def batch(tokenizer: Tokenizer, material):
    torch.manual_seed(0)
    prose, sentences = material
    return draw_batch(
        prose, sentences, tokenizer.token_to_id(BOS), rows=16, tokens=512, echoes=True
    )


def test_spliced_sentence_is_tokenised_as_the_tokenizer_would(tokenizer, batch):
    for row in batch.targets[:8]:
        text = tokenizer.decode(row.tolist())
        for stated in STATED.finditer(text):
            ids = tokenizer.encode(stated.group(), add_special_tokens=False).ids
            joined = ",".join(map(str, row.tolist()))
            assert ",".join(map(str, ids)) in joined


def test_same_key_has_the_same_number_throughout_a_row_and_others_differ(tokenizer, batch):
    pairs = 0
    for row in batch.targets[:8]:
        numbers: dict[str, set[str]] = {}
        for key, number in STATED.findall(tokenizer.decode(row.tolist())):
            numbers.setdefault(key, set()).add(number)
            pairs += 1
        assert all(len(values) == 1 for values in numbers.values())
    assert pairs > 20


def test_only_digits_stated_before_in_the_row_are_scored_as_recall(tokenizer, batch):
    scored_digits = 0
    for row, recall in zip(batch.targets[:8], batch.recall[:8], strict=True):
        for at in recall.nonzero().flatten().tolist():
            before = tokenizer.decode(row[: at + 1].tolist())
            question = re.search(r"The number of the (\w+ \w+) is (\d+)$", before)
            assert question is not None
            key, digits = question.groups()
            assert re.search(
                rf"The number of the {key} is {digits}\d*\.", before[: question.start()]
            )
            scored_digits += 1
    assert scored_digits > 40


def test_prose_without_its_spliced_sentences_is_the_original_text(tokenizer, batch):
    for row in batch.targets[:8]:
        text = STATED.sub("", tokenizer.decode(row.tolist()))
        whole = text[: text.rindex(". ")] if " The number of" in text[-90:] else text
        assert whole.lstrip("�") in TEXT


def test_template_and_first_statement_weigh_nothing_and_prose_weighs_one(tokenizer, batch):
    values = set(batch.weight.flatten().tolist())
    assert values == {0.0, 1.0, ANSWER_WEIGHT}
    assert (batch.weight[batch.plain] == 1).all()
    assert batch.plain == slice(8, 12)
    assert not batch.recall[8:].any()


def test_targets_are_inputs_one_later(batch):
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_gaps_never_follow_a_title_and_always_a_sentence(tokenizer, material):
    prose, _ = material
    places = prose.next_gap.unique()
    for place in places[places < len(prose.ids)].tolist():
        before = tokenizer.decode(prose.ids[max(0, place - 6) : place].tolist())
        assert before.rstrip("”")[-1] in ".!?"
        assert not before.endswith("Mr.")


def test_sentences_take_at_most_half_of_a_row():
    for tokens in (128, 512, 2048, 4096):
        assert slots_for(tokens, 19) * 19 <= tokens // 2


def test_scored_tokens_of_an_echo_stood_one_period_earlier(material):
    torch.manual_seed(0)
    ids, weight = echo_rows(material[0], 20, 300)
    for row, scored in zip(ids, weight, strict=True):
        period = int((scored == 0).sum()) - 1
        assert period <= 150
        assert torch.equal(row[period:], row[:-period])
