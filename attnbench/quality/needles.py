"""The needle gate: facts planted in text are asked for, with the method inside the model.

After an exact prefill of text that holds several facts, each question is decoded under the arm,
token by token, and then the answer, teacher-forced: how probable it was, and how many tokens the
model would rather have said. SDPA answers the same questions; a model that cannot do so is not
asked (`figures.ABLE`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnbench.models.exact import ExactLayer
from attnbench.models.forced import teacher_forced
from attnbench.models.prefill import prefill
from attnbench.quality.candidates import Progress, Roster
from attnbench.quality.capture import RoutedModel
from attnbench.quality.compounded import decoded
from attnbench.quality.levels import FACTS, facts_in
from attnbench.quality.recall import (
    Planted,
    Question,
    draw_facts,
    held_out_keys,
    plant,
    sentences,
)
from attnbench.quality.samples import GateArrays
from attnbench.quality.text import CHARACTERS_A_TOKEN, Text

_LINE_END = re.compile(r"(?<=[.!?])(?=\n)")  # a sentence's
PIECE = 160  # characters after which a fact may stand in a text without sentences


@dataclass(frozen=True)
class Answer:
    """Minus the log of an answer's probability, in nats, and the worst rank of its tokens."""

    nats: float
    rank: int


def haystacks(
    tokenizer: Any, text: Text, tokens: int, count: int, seed: int
) -> tuple[Planted, ...]:
    """`count` texts of `tokens` tokens with facts in them, drawn from `seed`.

    A beginning-of-text token stands in front where the tokenizer puts one. Raises UsageError where
    the text is too short.
    """
    facts = facts_in(tokens)
    return tuple(_haystack(tokenizer, text, tokens, facts, i, count, seed) for i in range(count))


def _haystack(
    tokenizer: Any, text: Text, tokens: int, facts: int, number: int, count: int, seed: int
) -> Planted:
    rng = random.Random(f"{seed} {number}")

    def encode(words: str) -> list[int]:
        return list(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])

    return plant(
        [encode(piece) for piece in pieces(_stretch(text.text, tokens, rng))],
        encode,
        tokens=tokens,
        facts=draw_facts(held_out_keys(), facts, rng.randrange(2**32)),
        depths=[(fact + (number + 0.5) / count) / facts for fact in range(facts)],
        prefix_ids=_opening(tokenizer),
    )


def _stretch(text: str, tokens: int, rng: random.Random) -> str:
    """As much of the text as surely holds so many tokens, from a place that is drawn."""
    characters = tokens * CHARACTERS_A_TOKEN
    begin = rng.randrange(max(1, len(text) - characters))
    return text[begin : begin + characters]


def pieces(prose: str) -> list[str]:
    """Whole sentences; of a text without them, stretches that begin with a space.

    A fact between sentences reads as one of them. In the middle of one, or asked for there, the
    embedded model finds a third of the facts, and all of them between sentences.
    """
    whole = [part for sentence in sentences(prose) for part in _LINE_END.split(sentence)][1:-1]
    return whole if len(whole) >= FACTS else list(_cut(prose))


def _cut(prose: str) -> Iterator[str]:
    while len(prose) > PIECE:
        at = prose.find(" ", PIECE)
        if at < 0:
            break
        yield prose[:at]
        prose = prose[at:]
    yield prose


def _opening(tokenizer: Any) -> tuple[int, ...]:
    """The beginning-of-text token, where the tokenizer begins with one."""
    first = getattr(tokenizer, "bos_token_id", None)
    if first is None:
        return ()
    begun = list(tokenizer("a", verbose=False)["input_ids"])
    return (first,) if begun[:1] == [first] else ()


def steps_of(planted: Planted) -> int:
    """Steps of the longest question and its answer."""
    return max(len(asked.question_ids) + len(asked.answer_ids) for asked in planted.questions)


class NeedleGate:
    """Gathers the answers of SDPA and of every candidate that goes, haystack by haystack."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._depths: list[float] = []
        self._sdpa: list[Answer] = []
        self._answers: dict[str, list[Answer]] = {}

    @torch.no_grad()
    def add_haystack(self, model: RoutedModel, planted: Planted, progress: Progress) -> None:
        """Ask for every fact of one haystack, as many at once as the model has rows."""
        device = model.cache.length.tensor.device
        prompt = torch.tensor([planted.prompt_ids], device=device)
        context = prompt.shape[1]
        progress(f"{len(planted.questions)} facts in {context} tokens")
        prefill(model.loaded, model.router, model.cache, prompt)
        intact = model.checksum(context)
        turns = [
            planted.questions[begin : begin + model.rows]
            for begin in range(0, len(planted.questions), model.rows)
        ]
        self._depths.extend(asked.fact_at / context for asked in planted.questions)
        for turn in turns:
            said = _exact_logits(model, _ids(prompt, turn, model.rows), context)
            self._sdpa.extend(_answers(said, turn))
        for candidate in self._roster.going():
            progress(f"{len(planted.questions)} facts, {candidate.label}")
            with self._roster.attempt(candidate, inside=True):
                answers = []
                for turn in turns:
                    ids = _ids(prompt, turn, model.rows)
                    said = decoded(model, self._roster, candidate, ids, context, intact)
                    answers.extend(_answers(said, turn))
                self._answers.setdefault(candidate.label, []).extend(answers)

    def completed(self, arrays: Mapping[str, GateArrays]) -> dict[str, GateArrays]:
        """The samples by label, with those of this gate where it was run."""
        return {
            label: self._completed(label, found) if label in self._answers else found
            for label, found in arrays.items()
        }

    def _completed(self, label: str, found: GateArrays) -> GateArrays:
        own = self._answers[label]
        return replace(
            found,
            needle_depth=np.array(self._depths, np.float32),
            needle_nats=np.array([answer.nats for answer in own], np.float32),
            needle_nats_sdpa=np.array([answer.nats for answer in self._sdpa], np.float32),
            needle_rank=np.array([answer.rank for answer in own], np.float32),
            needle_rank_sdpa=np.array([answer.rank for answer in self._sdpa], np.float32),
        )


def _fed(asked: Question) -> tuple[int, ...]:
    """The question, and all of its answer but the last token."""
    return (*asked.question_ids, *asked.answer_ids[:-1])


def _ids(prompt: Tensor, turn: Sequence[Question], rows: int) -> Tensor:
    """The text [1, N], and what is fed after it for each question: [rows, T]. Shorter ones repeat
    their last token, after which nobody looks; so does the last question where rows are left."""
    fed = [_fed(asked) for asked in turn]
    fed += [fed[-1]] * (rows - len(fed))
    longest = max(map(len, fed))
    padded = [ids + ids[-1:] * (longest - len(ids)) for ids in fed]
    return torch.cat([prompt.expand(rows, -1), prompt.new_tensor(padded)], dim=1)


def _answers(logits: Tensor, turn: Sequence[Question]) -> list[Answer]:
    """From the logits [T,B,V] of what was fed."""
    return [_scored(logits[: len(_fed(asked)), row], asked) for row, asked in enumerate(turn)]


def _exact_logits(model: RoutedModel, ids: Tensor, context: int) -> Tensor:
    """Logits [T,B,V] of the T tokens after `context` of `ids` [B,N+T] under exact attention."""
    model.cache.reset(context)
    layers = [ExactLayer(layer.shape, layer.window) for layer in model.surveyed]
    for layer, view in zip(layers, model.cache.views, strict=True):
        layer.prefill(view)
    steps = teacher_forced(model.loaded, model.router, model.cache, layers, ids[:, context:])
    return torch.stack(list(steps))


def _scored(logits: Tensor, asked: Question) -> Answer:
    """Probability and rank of the answer's tokens, from logits [T,V] that end at its last one."""
    answer = torch.tensor(asked.answer_ids, device=logits.device)[:, None]
    said = logits[-len(answer) :].double()
    if not said.isfinite().all():
        return Answer(float("nan"), logits.shape[-1] + 1)
    nats = -said.log_softmax(-1).gather(-1, answer).sum()
    rank = 1 + (said > said.gather(-1, answer)).sum(-1).max()
    return Answer(float(nats), int(rank))
