"""Facts to be retrieved: short sentences with a random key and a random number, hidden in prose.

"The number of the quiet window is 4071." can be known later in the text only by looking it up, so
that whether "The number of the quiet window is " is continued with 4071 tells if attention still
reaches the fact. Other facts of the same form, with other keys, stand beside it: finding *a*
number is not enough. Key-value recall as in Arora et al. 2023 (arXiv 2312.04927), needle in a
haystack as in Kamradt 2023. Pure and deterministic: what is built depends on the seed alone.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnbench.errors import UsageError

# fmt: off
ADJECTIVES = (
    "old", "little", "great", "young", "dear", "poor", "black", "white", "dark", "cold",
    "bright", "deep", "quiet", "strange", "happy", "large", "small", "short", "strong", "good",
    "gentle", "pretty", "simple", "quick", "kind", "fine", "hard", "soft", "perfect", "grey",
    "red", "silent",
)
NOUNS = (
    "lady", "gentleman", "house", "horse", "door", "window", "room", "book", "letter", "glass",
    "table", "chair", "road", "carriage", "wall", "child", "master", "friend", "brother",
    "sister", "father", "mother", "husband", "wife", "daughter", "family", "dress", "dinner",
    "prison", "corner", "paper", "office", "general", "person", "servant", "girl", "woman",
    "garden", "lantern", "river",
)
# fmt: on
DIGITS = 4
HELD_OUT_EVERY = 8

Encode = Callable[[str], Sequence[int]]

# A sentence ends at . ! or ? (not after a title) where a new one follows after one space.
_SENTENCE_GAP = re.compile(r"(?<!Mr)(?<!Mrs)(?<!Dr)(?<!St)[.!?]”?(?= [“A-Z])")


@dataclass(frozen=True, order=True)
class Key:
    """What a fact is about: "the quiet window"."""

    adjective: str
    noun: str


@dataclass(frozen=True)
class Fact:
    """A key and its number, a string of `DIGITS` digits, which is the answer.

    The space before the number belongs to the question. Where every digit is a token, that space
    is a token of its own, the same for all numbers: a model that has to say it is asked for its
    idea of the sentence, not for the fact, and one wrong space would hide that it knows the number.
    """

    key: Key
    number: str

    @property
    def question(self) -> str:
        return f" The number of the {self.key.adjective} {self.key.noun} is "

    @property
    def statement(self) -> str:
        return f"{self.question}{self.number}."


@dataclass(frozen=True)
class Needle:
    """A prompt that ends in a question, and what has to come next.

    `fact_at` is the position of the asked fact's first token; prompt and answer together have
    the length that was asked for.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    fact: Fact
    fact_at: int


@dataclass(frozen=True)
class Question:
    """What is asked of a planted fact, and what has to come next; the fact begins at `fact_at`."""

    fact: Fact
    fact_at: int
    question_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Planted:
    """Text with facts in it, and a question for each that may follow it."""

    prompt_ids: tuple[int, ...]
    questions: tuple[Question, ...]


def all_keys() -> tuple[Key, ...]:
    return tuple(Key(adjective, noun) for adjective in ADJECTIVES for noun in NOUNS)


def is_held_out(key: Key) -> bool:
    """True for the eighth of the keys that the embedded model never saw as a pair in training."""
    place = ADJECTIVES.index(key.adjective) + NOUNS.index(key.noun)
    return place % HELD_OUT_EVERY == 0


def training_keys() -> tuple[Key, ...]:
    return tuple(key for key in all_keys() if not is_held_out(key))


def held_out_keys() -> tuple[Key, ...]:
    return tuple(key for key in all_keys() if is_held_out(key))


def draw_facts(keys: Sequence[Key], count: int, seed: int) -> tuple[Fact, ...]:
    """`count` facts with different keys and different numbers."""
    if count > len(keys):
        raise UsageError(
            f"{count} facts asked for, but there are only {len(keys)} keys",
            hint="Ask for fewer distractors.",
        )
    rng = random.Random(seed)
    chosen = rng.sample(list(keys), count)
    numbers = rng.sample(range(10**DIGITS), count)
    return tuple(
        Fact(key, f"{number:0{DIGITS}d}") for key, number in zip(chosen, numbers, strict=True)
    )


def sentences(prose: str) -> list[str]:
    """Prose cut after its sentences; joined again it is the same text."""
    cuts = [0, *(gap.end() for gap in _SENTENCE_GAP.finditer(prose)), len(prose)]
    return [prose[a:b] for a, b in itertools.pairwise(cuts) if b > a]


def build_needle(
    haystack: Sequence[Sequence[int]],
    encode: Encode,
    *,
    tokens: int,
    facts: Sequence[Fact],
    depth: float,
    seed: int,
    prefix_ids: Sequence[int] = (),
) -> Needle:
    """Hide `facts` in the haystack and ask for the first one.

    `haystack` is prose as token ids, one list a sentence; as much of it is used as makes prompt
    and answer `tokens` long (the first sentence loses its beginning). The first fact stands at
    the sentence gap nearest to `depth` (0 is the start, 1 the end), the others at random gaps.
    `encode` must add no special tokens; `prefix_ids` (a BOS token) open the prompt. Question and
    answer are the tokens of the fact's own statement, cut before and after its number.

    Raises UsageError when the facts alone are too long, or the haystack too short.
    """
    asked = facts[0]
    statements = [list(encode(fact.statement)) for fact in facts]
    question, answer = _cut_at_number(asked, encode)
    fixed = len(prefix_ids) + len(question) + len(answer) + sum(map(len, statements))
    pieces = _fill(haystack, tokens - fixed)
    rng = random.Random(seed)
    gaps = [_gap_nearest(pieces, depth)] + [rng.randint(1, len(pieces)) for _ in facts[1:]]
    order = sorted(range(len(facts)), key=lambda which: (gaps[which], rng.random()))
    prompt, places = _join(pieces, statements, gaps, order)
    return Needle(
        (*prefix_ids, *prompt, *question), tuple(answer), asked, places[0] + len(prefix_ids)
    )


def plant(
    haystack: Sequence[Sequence[int]],
    encode: Encode,
    *,
    tokens: int,
    facts: Sequence[Fact],
    depths: Sequence[float],
    prefix_ids: Sequence[int] = (),
) -> Planted:
    """Hide `facts` in the haystack, each at the gap nearest to its depth; all can be asked for.

    As `build_needle`, but the `tokens` are those of the text alone: questions come after it.
    """
    statements = [list(encode(fact.statement)) for fact in facts]
    pieces = _fill(haystack, tokens - len(prefix_ids) - sum(map(len, statements)))
    gaps = [_gap_nearest(pieces, depth) for depth in depths]
    order = sorted(range(len(facts)), key=lambda which: (gaps[which], which))
    prompt, places = _join(pieces, statements, gaps, order)
    return Planted(
        (*prefix_ids, *prompt),
        tuple(
            Question(fact, place + len(prefix_ids), *map(tuple, _cut_at_number(fact, encode)))
            for fact, place in zip(facts, places, strict=True)
        ),
    )


def _cut_at_number(fact: Fact, encode: Encode) -> tuple[list[int], list[int]]:
    """The statement's tokens before the number's, and the number's.

    The number's are those that change with its digits. A tokenizer that joins the space to the
    first digit thus has it in the answer, and the question still equals what was stated.
    """
    other = "".join(str((int(digit) + 5) % 10) for digit in fact.number)
    stated, changed = list(encode(fact.statement)), list(encode(Fact(fact.key, other).statement))
    start = _common_prefix(stated, changed)
    stop = len(stated) - _common_prefix(stated[::-1], changed[::-1])
    return stated[:start], stated[start:stop]


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = zip(a, b, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _fill(haystack: Sequence[Sequence[int]], budget: int) -> list[Sequence[int]]:
    """The last sentences of the haystack that hold `budget` tokens, the first one shortened."""
    if budget < 1:
        raise UsageError(
            f"the facts leave {budget} tokens for the text around them",
            hint="Use a longer context or fewer distractors.",
        )
    pieces: list[Sequence[int]] = []
    for sentence in reversed(haystack):
        pieces.append(sentence[-budget:])
        budget -= len(pieces[-1])
        if budget == 0:
            return pieces[::-1]
    raise UsageError(
        f"the text is {budget} tokens too short for this context", hint="Give a longer text."
    )


def _gap_nearest(pieces: Sequence[Sequence[int]], depth: float) -> int:
    """How many sentences stand before the gap nearest to `depth` of the text."""
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    return 1 + min(range(len(ends)), key=lambda at: abs(ends[at] - depth * total))


def _join(
    pieces: Sequence[Sequence[int]],
    statements: Sequence[Sequence[int]],
    gaps: Sequence[int],
    order: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Text with every statement in its gap, and where each statement starts."""
    joined: list[int] = []
    places = [-1] * len(statements)
    for count, piece in enumerate(pieces, start=1):
        joined.extend(piece)
        for which in (which for which in order if gaps[which] == count):
            places[which] = len(joined)
            joined.extend(statements[which])
    return joined, places
