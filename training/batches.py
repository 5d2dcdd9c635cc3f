"""What one step trains on: half prose with facts in it, half plain prose.

Early on some of the plain rows are echoes: random tokens that repeat with a random period. They
reward copying at every token and so bring about the heads (Olsson et al. 2022, arXiv 2209.11895)
that retrieval is made of long before the sparse questions alone would.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.recall import ANSWER_WEIGHT, Prose, Sentences, draw_plan, splice

BOS_SHARE = 0.8
ECHO_SHARE = 0.25
SHORTEST_PERIOD = 8


@dataclass(frozen=True)
class Batch:
    """One step's rows.

    inputs, targets: [B, N] int64. weight: [B, N] float32, of predicting each target.
    recall: [B, N] bool, the targets that are digits to be looked up. plain: the rows of prose.
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor
    recall: Tensor
    plain: slice


def slots_for(tokens: int, sentence_tokens: int) -> int:
    """How many sentences a row takes at most: half of it, and never more than 48."""
    return max(2, min(48, tokens // (2 * sentence_tokens)))


def draw_batch(
    prose: Prose, sentences: Sentences, bos: int, rows: int, tokens: int, *, echoes: bool
) -> Batch:
    """`rows` random rows of `tokens` tokens: first those with facts, then prose, then echoes."""
    spliced, echoed = rows // 2, int(rows * ECHO_SHARE) if echoes else 0
    last = len(prose.ids) - tokens - 1
    offsets = torch.randint(0, last, (rows - echoed,), device=prose.ids.device)
    slots = slots_for(tokens, sentences.longest)
    plan = draw_plan(prose, sentences, offsets[:spliced], tokens, slots)
    ids, weight = splice(prose, sentences, offsets[:spliced], plan, tokens + 1)
    columns = torch.arange(tokens + 1, device=ids.device)
    plain = prose.ids[offsets[spliced:, None] + columns]
    echo, echo_weight = echo_rows(prose, echoed, tokens + 1)
    ids = torch.cat([ids, plain, echo])
    weight = torch.cat([weight, torch.ones_like(plain, dtype=weight.dtype), echo_weight])
    opened = torch.rand(rows, device=ids.device) < BOS_SHARE
    ids[:, 0] = torch.where(opened, bos, ids[:, 0])
    return Batch(
        inputs=ids[:, :-1],
        targets=ids[:, 1:],
        weight=weight[:, 1:],
        recall=weight[:, 1:] == ANSWER_WEIGHT,
        plain=slice(spliced, rows - echoed),
    )


def echo_rows(prose: Prose, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Ids [rows, tokens] that repeat with a period of their own, and weights: 1 from then on.

    Each row draws its tokens from a small random piece of the prose, so that one token of context
    is often not enough to know what comes next.
    """
    device = prose.ids.device
    period = torch.randint(SHORTEST_PERIOD, tokens // 2 + 1, (rows, 1), device=device)
    kinds = 2 + (torch.rand(rows, 1, device=device) ** 2 * tokens).long() + SHORTEST_PERIOD
    start = torch.randint(0, len(prose.ids) - 2 * tokens, (rows, 1), device=device)
    once = prose.ids[start + (torch.rand(rows, tokens, device=device) * kinds).long()]
    column = torch.arange(tokens, device=device).expand(rows, tokens)
    return once.gather(1, column % period), (column > period).float()
