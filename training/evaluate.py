"""What the model has learned: held-out perplexity, retrieval, and the shape of its attention."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from attnbench.quality.recall import (
    Needle,
    build_needle,
    draw_facts,
    held_out_keys,
    sentences,
)
from training.baselines import Bigram, Unigram

DISTRACTORS = 7
EVALUATED_TOKENS = 32768


@dataclass(frozen=True)
class Scored:
    """Windows of a text, each opened with BOS: inputs and targets, [R, N] int64."""

    inputs: np.ndarray
    targets: np.ndarray
    text_bytes: int


def score_windows(ids: np.ndarray, bos: int, window: int, text_bytes: int) -> Scored:
    """Cut ids into windows that do not overlap; every token of a whole window is a target."""
    rows = len(ids) // window
    targets = ids[: rows * window].reshape(rows, window)
    inputs = np.concatenate([np.full((rows, 1), bos), targets[:, :-1]], axis=1)
    return Scored(inputs, targets, round(text_bytes * targets.size / len(ids)))


def _slices(rows: int, tokens: int) -> Iterator[slice]:
    step = max(1, EVALUATED_TOKENS // tokens)
    return (slice(start, start + step) for start in range(0, rows, step))


@torch.no_grad()
def model_nll(model: PreTrainedModel, scored: Scored) -> float:
    """Mean negative log likelihood in nats a token."""
    total = 0.0
    for part in _slices(*scored.inputs.shape):
        inputs = torch.from_numpy(scored.inputs[part]).to(model.device)
        targets = torch.from_numpy(scored.targets[part]).to(model.device)
        logits = _logits(model, inputs)
        total += cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return total / scored.targets.size


def perplexities(
    model: PreTrainedModel, scored: Scored, unigram: Unigram, bigram: Bigram
) -> dict[str, float]:
    """Perplexity a token of model and baselines over the same targets, and bits a byte."""
    nll = model_nll(model, scored)
    return {
        "tokens": scored.targets.size,
        "model": float(np.exp(nll)),
        "bits_per_byte": nll * scored.targets.size / scored.text_bytes / float(np.log(2)),
        "unigram": float(np.exp(unigram.nll(scored.targets))),
        "bigram": float(np.exp(bigram.nll(scored.inputs, scored.targets))),
    }


def needles(
    tokenizer: Tokenizer, prose: str, *, tokens: int, count: int, bos: int, seed: int
) -> list[Needle]:
    """`count` needles of `tokens` tokens, at depths spread evenly, with keys unseen in training."""
    rng = random.Random(seed)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    haystack = [encode(sentence) for sentence in sentences(prose)]
    shortest = _sentences_needed(haystack, tokens)
    built = []
    for number in range(count):
        end = rng.randint(shortest, len(haystack))
        facts = draw_facts(held_out_keys(), 1 + DISTRACTORS, rng.randrange(2**32))
        needle = build_needle(
            haystack[:end],
            encode,
            tokens=tokens,
            facts=facts,
            depth=(number + 0.5) / count,
            seed=rng.randrange(2**32),
            prefix_ids=(bos,),
        )
        built.append(needle)
    return built


def _sentences_needed(haystack: Sequence[Sequence[int]], tokens: int) -> int:
    total = np.cumsum([len(sentence) for sentence in haystack])
    return int(np.searchsorted(total, tokens)) + 1


@torch.no_grad()
def retrieved(model: PreTrainedModel, asked: Sequence[Needle]) -> list[bool]:
    """For each needle: would greedy decoding give the whole answer?

    One forward pass over prompt and answer decides it: greedy decoding gives the answer exactly
    when each of its tokens is the most likely one after the prompt and the tokens before it.
    """
    rows = torch.tensor([needle.prompt_ids + needle.answer_ids for needle in asked])
    answer = len(asked[0].answer_ids)
    right: list[bool] = []
    for part in _slices(*rows.shape):
        ids = rows[part].to(model.device)
        guess = _logits(model, ids[:, :-1], last=answer).argmax(-1)
        right += (guess == ids[:, -answer:]).all(1).tolist()
    return right


def recall_table(
    model: PreTrainedModel, asked: Mapping[int, Sequence[Needle]]
) -> dict[str, dict[str, object]]:
    """Share retrieved, as a whole and by depth, for every context length in `asked`."""
    table: dict[str, dict[str, object]] = {}
    for tokens, needles_asked in asked.items():
        right = retrieved(model, needles_asked)
        table[str(tokens)] = {
            "needles": len(right),
            "retrieved": float(np.mean(right)),
            "by_depth": recall_by_depth(right),
        }
    return table


def recall_by_depth(right: Sequence[bool], bins: int = 5) -> list[float]:
    """Share retrieved in each fifth of the depth; `right` is ordered by depth."""
    return [float(np.mean(part)) for part in np.array_split(np.asarray(right, float), bins)]


@torch.no_grad()
def attention_table(eager: PreTrainedModel, inputs: np.ndarray) -> list[dict[str, float]]:
    """Per layer and head, over queries in the second half of each row of inputs [R, N].

    sink_share: mass on the first token. entropy_nats, beside uniform_nats: the entropy if all
    tokens before the query weighed the same. previous_share: mass on query and the token before.
    The model must run eager attention, so that it returns its probabilities.
    """
    queries = torch.arange(inputs.shape[1] // 2, inputs.shape[1])
    sums: dict[tuple[int, int], Tensor] = {}
    for row in inputs:
        result = eager(torch.from_numpy(row)[None].to(eager.device), output_attentions=True)
        for layer, p in enumerate(result.attentions):
            for head, figures in enumerate(_head_figures(p[0].float(), queries)):
                at = (layer, head)
                sums[at] = sums.get(at, torch.zeros(3)) + figures.cpu()
    uniform = float(torch.log(queries + 1.0).mean())
    names = ("sink_share", "entropy_nats", "previous_share")
    return [
        {"layer": layer, "head": head, "uniform_nats": uniform}
        | dict(zip(names, (total / len(inputs)).tolist(), strict=True))
        for (layer, head), total in sums.items()
    ]


def _head_figures(p: Tensor, queries: Tensor) -> Tensor:
    """[H, 3] from probabilities [H, N, N]: sink share, entropy in nats, share of the last two."""
    queries = queries.to(p.device)
    rows = p[:, queries]
    near = rows[:, torch.arange(len(queries)), queries]
    near = near + rows[:, torch.arange(len(queries)), queries - 1]
    entropy = torch.special.entr(rows).sum(-1)
    return torch.stack([rows[..., 0].mean(-1), entropy.mean(-1), near.mean(-1)], dim=-1)


def _logits(model: PreTrainedModel, ids: Tensor, last: int = 0) -> Tensor:
    """Float32 logits [B, N, V], or of the last `last` positions."""
    device_type = ids.device.type
    with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
        return model(ids, use_cache=False, logits_to_keep=last).logits.float()
