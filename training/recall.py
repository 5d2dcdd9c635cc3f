"""Training rows with facts spliced into prose, built as tensors on the training device.

Every row gets up to `slots` sentences of the form of `attnbench.quality.recall`: the first with a
key states its number, every later one with the same key can be completed by looking it up. Only
those looked-up digits are scored (with a weight of their own); the template is not, so that the
model's idea of prose stays clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from attnbench.quality.recall import DIGITS, Fact, Key

ANSWER_WEIGHT = 5.0
TITLES = ("Mr", "Mrs", "Dr", "St")


@dataclass(frozen=True)
class Prose:
    """Training text on the device.

    ids: [M] int64. next_gap: [M] int64, the first place at or after each token where a sentence
    may be inserted (M where none follows).
    """

    ids: Tensor
    next_gap: Tensor


@dataclass(frozen=True)
class Sentences:
    """Questions of all keys as tokens.

    heads: [K, L] int64, padded with 0, each ending right before its first digit; lengths: [K].
    """

    heads: Tensor
    lengths: Tensor
    digits: Tensor
    stop: int

    @property
    def longest(self) -> int:
        return self.heads.shape[1] + DIGITS + 1


@dataclass(frozen=True)
class Plan:
    """Which sentence goes where, for B rows and S slots.

    key: [B, S] index into the keys. number: [B, S, DIGITS] decimal digits. known: [B, S] bool,
    stated earlier in the row. gap: [B, S] ascending places in the row's prose; used: [B, S] bool.
    """

    key: Tensor
    number: Tensor
    known: Tensor
    gap: Tensor
    used: Tensor


def tokenise_keys(tokenizer: Tokenizer, keys: Sequence[Key], device: torch.device) -> Sentences:
    """Tokenise every key's sentence once; numbers are put in later, digit by digit."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    heads = [ids(Fact(key, "").question) for key in keys]
    longest = max(map(len, heads))
    padded = torch.tensor([head + [0] * (longest - len(head)) for head in heads], device=device)
    lengths = torch.tensor([len(head) for head in heads], device=device)
    digits = torch.tensor([ids(str(digit))[0] for digit in range(10)], device=device)
    return Sentences(padded, lengths, digits, ids(".")[0])


def sentence_gaps(tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    """`Prose.next_gap` for token ids [M]: gaps follow . ! ? (not a title) before a new sentence."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())]
    ends = torch.tensor([t.rstrip("”")[-1:] in (".", "!", "?") for t in texts])
    starts = torch.tensor([t[:1] == " " and (t[1:2].isupper() or t[1:2] == "“") for t in texts])
    titles = torch.tensor([t.strip() in TITLES for t in texts])
    ids = ids.cpu()
    gap = torch.zeros(len(ids), dtype=torch.bool)
    gap[2:] = ends[ids[1:-1]] & starts[ids[2:]] & ~titles[ids[:-2]]
    places = torch.where(gap, torch.arange(len(ids)), len(ids))
    return places.flip(0).cummin(0).values.flip(0)


def draw_plan(prose: Prose, sentences: Sentences, offsets: Tensor, tokens: int, slots: int) -> Plan:
    """Random facts and questions for rows of `tokens` tokens that begin at `offsets` [B]."""
    rows, device = len(offsets), offsets.device
    slot = torch.arange(slots, device=device).expand(rows, slots)
    used = slot < torch.randint(2, slots + 1, (rows, 1), device=device)
    count = used.sum(1, keepdim=True)
    facts = 1 + (torch.rand(rows, 1, device=device) * 0.6 * count).long()
    # Half of the rows state all facts first and ask near the end, the others mix the two.
    apart = torch.rand(rows, 1, device=device) < 0.5
    asked = (torch.rand(rows, slots, device=device) * facts).long()
    which = torch.where(apart & (slot < facts), slot, asked)
    place = torch.rand(rows, slots, device=device)
    place = torch.where(apart, torch.where(slot < facts, 0.9 * place, 0.9 + 0.1 * place), place)
    place = torch.where(used, place, 1.0).sort(1).values
    span = tokens - slots * sentences.longest
    start = offsets[:, None] + (place * span).long()
    gap = prose.next_gap[start.clamp(max=len(prose.ids) - 1)] - offsets[:, None]
    return Plan(
        key=_distinct(rows, slots, len(sentences.lengths), device).gather(1, which),
        number=_numbers(which, slots),
        known=_seen_before(which),
        gap=gap,
        used=used,
    )


def splice(
    prose: Prose, sentences: Sentences, offsets: Tensor, plan: Plan, tokens: int
) -> tuple[Tensor, Tensor]:
    """Rows of prose with the plan's sentences in them.

    Returns ids [B, tokens] int64 and weight [B, tokens] float32, the weight of predicting each
    token: 1 for prose, 0 for a sentence, `ANSWER_WEIGHT` for the digits that can be looked up.
    """
    words, weight, length = _sentence_tokens(sentences, plan)
    start = plan.gap + length.cumsum(1) - length
    column = torch.arange(words.shape[2], device=words.device)
    at = start[..., None] + column
    at = torch.where((column < length[..., None]) & (at < tokens), at, tokens).flatten(1)
    ids = torch.full((len(offsets), tokens + 1), -1, device=words.device)
    ids = ids.scatter(1, at, words.flatten(1))[:, :tokens]
    weights = torch.ones(len(offsets), tokens + 1, device=words.device)
    weights = weights.scatter(1, at, weight.flatten(1))[:, :tokens]
    is_prose = ids < 0
    source = offsets[:, None] + is_prose.cumsum(1) - 1
    return torch.where(is_prose, prose.ids[source.clamp(min=0)], ids), weights


def _sentence_tokens(sentences: Sentences, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and weights [B, S, L] of the plan's sentences; lengths [B, S], 0 if unused."""
    rows, slots = plan.key.shape
    head = sentences.lengths[plan.key][..., None]
    column = torch.arange(sentences.longest, device=head.device).expand(rows, slots, -1)
    heads = torch.nn.functional.pad(sentences.heads, (0, DIGITS + 1))[plan.key]
    digit_at = (column - head).clamp(0, DIGITS - 1)
    digits = sentences.digits[plan.number].gather(2, digit_at)
    is_digit = (column >= head) & (column < head + DIGITS)
    words = torch.where(column < head, heads, torch.where(is_digit, digits, sentences.stop))
    weight = ANSWER_WEIGHT * (is_digit & plan.known[..., None])
    return words, weight, torch.where(plan.used, head[..., 0] + DIGITS + 1, 0)


def _distinct(rows: int, slots: int, keys: int, device: torch.device) -> Tensor:
    """[rows, slots] key numbers, no key twice in a row."""
    return torch.rand(rows, keys, device=device).topk(slots, dim=1).indices


def _numbers(which: Tensor, slots: int) -> Tensor:
    """[B, S, DIGITS]: random digits, the same wherever the same fact is meant."""
    digits = torch.randint(10, (len(which), slots, DIGITS), device=which.device)
    return digits.gather(1, which[..., None].expand(-1, -1, DIGITS))


def _seen_before(which: Tensor) -> Tensor:
    """[B, S] bool: the same fact stands in an earlier slot of the row."""
    same = which[:, :, None] == which[:, None, :]
    return same.tril(-1).any(2)
