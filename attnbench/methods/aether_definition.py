"""What AETHER is, head by head and block by block, in float64 and in Python's own sets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attnbench.methods.aether import BACKEND_LEAST_TOKENS, Aether
from attnbench.methods.aether_bounds import Summary
from attnbench.methods.aether_governors import STATE, Seen, moved, start
from attnbench.methods.base import CacheView, LayerShape
from attnbench.methods.block_store import merged
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention
from attnbench.methods.selection import share_of

Logs = npt.NDArray[np.float64]


@dataclass
class Keys:
    """Keys [N,D] of one KV head, in blocks."""

    method: Aether
    rows: Tensor

    @cached_property
    def tokens(self) -> list[int]:
        """How many each block holds; the last may be short."""
        return list(map(len, torch.split(self.rows, self.method.block)))

    @cached_property
    def blocks(self) -> Summary:
        """What is kept of each block: of the whole ones at once, and of the short one."""
        block, formula = self.method.block, self.method.formula
        whole, dim = len(self.rows) // block, self.rows.shape[1]
        found = [formula.summarise(self.rows[: whole * block].reshape(whole, block, dim))]
        if whole * block < len(self.rows):
            found.append(stacked([formula.summarise(self.rows[whole * block :])]))
        return Summary(*map(torch.cat, zip(*found, strict=True)))

    @cached_property
    def sizes(self) -> list[tuple[Summary, list[int]]]:
        """Blocks, and blocks of blocks, with how many tokens each holds."""
        found = [(self.blocks, self.tokens)]
        for _ in range(1, self.method.levels):
            found.append(joined(*found[-1], self.method.fan))
        return found


@dataclass
class Head:
    """One query [D], and the blocks of keys that it keeps."""

    keys: Keys
    query: Tensor
    scale: float
    value: float
    computed: int = 0  # bounds that the choice needed

    @property
    def method(self) -> Aether:
        """Whose head this is."""
        return self.keys.method

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return len(self.keys.tokens)

    @cached_property
    def scores(self) -> list[float]:
        """The variant's score of each block."""
        return self.scored(self.keys.blocks)

    def scored(self, blocks: Summary) -> list[float]:
        """Scores of these blocks."""
        found: list[float] = self.method.formula.score(self.asked, blocks, self.scale)[0].tolist()
        return found

    @property
    def asked(self) -> Tensor:
        """The query as a row of float64."""
        return self.query.double()[None]

    @cached_property
    def pinned(self) -> set[int]:
        """Blocks that are always kept."""
        last = range(max(0, self.count - self.method.local), self.count)
        return {*range(min(self.method.sinks, self.count)), *last}

    @cached_property
    def order(self) -> list[int]:
        """Blocks by falling score after those that are always kept; of equals the first."""
        every = range(self.count)
        return sorted(every, key=lambda at: (at not in self.pinned, falling(self.scores[at]), at))

    @cached_property
    def ceilings(self) -> Logs:
        """The logarithm of what a block weighs if every logit is its score; by falling score."""
        factor = 1.0 if self.method.formula.in_logits else self.scale
        return (np.array(self.scores) * factor + np.log(self.keys.tokens))[self.order]

    @cached_property
    def weights(self) -> Logs:
        """The logarithm of what it does weigh, likewise."""
        logits = (self.keys.rows.double() @ self.asked[0] * self.scale).cpu().numpy()
        begins = range(0, len(logits), self.method.block)
        found = [np.logaddexp.reduce(logits[at : at + self.method.block]) for at in begins]
        return np.array(found)[self.order]

    def kept(self) -> set[int]:
        """Blocks to attend to."""
        if self.method.variant == "trt_backend" and len(self.keys.rows) < BACKEND_LEAST_TOKENS:
            return set(range(self.count))
        self.computed = self.count
        chosen = {
            "absolute": self._reached,
            "relative": self._near_the_greatest,
            "share": self._leading,
            "mass": self._promised,
            "guarantee": self._certified,
        }[self.method.kind]()
        return chosen | self.pinned or {self.count - 1}

    def _near_the_greatest(self) -> set[int]:
        if any(map(math.isnan, self.scores)):
            return set(range(self.count))
        least = self.value * max(self.scores)
        return {at for at, score in enumerate(self.scores) if score >= least}

    def _leading(self) -> set[int]:
        governed = self.method.governor != "none"
        share = self.value * self.count if governed else share_of(self.value, self.count)
        return set(self.order[: max(1, round(share))])

    def _promised(self) -> set[int]:
        with np.errstate(invalid="ignore"):  # a score that is no number keeps all
            held = np.logaddexp.accumulate(self.ceilings)
        return self._until(held >= held[-1] + math.log(self.value))

    def _certified(self) -> set[int]:
        held = np.logaddexp.accumulate(self.weights)
        outside = np.logaddexp.accumulate(self.ceilings[::-1])[::-1][1:]
        most = math.log(self.method.guarantee / (1 - self.method.guarantee))
        return self._until(outside <= most + held[:-1])

    def _until(self, enough: npt.NDArray[np.bool_]) -> set[int]:
        """The first blocks that are enough; all where none are."""
        count = int(enough.argmax()) + 1 if enough.any() else self.count
        return set(self.order[:count])

    def _reached(self) -> set[int]:
        """Members of blocks that reach the threshold at every level above."""
        sizes = self.keys.sizes
        candidates = list(range(len(sizes[-1][1])))
        self.computed = 0
        for level in range(len(sizes) - 1, -1, -1):
            self.computed += len(candidates)
            scores = self.scored(sizes[level][0])
            reached = [at for at in candidates if not scores[at] < self.value]
            if level:
                below, fan = len(sizes[level - 1][1]), self.method.fan
                members = (range(at * fan, min((at + 1) * fan, below)) for at in reached)
                candidates = [at for each in members for at in each]
        return set(reached)


def falling(score: float) -> float:
    """What sorts scores from the highest on; what is no number comes before all."""
    return -math.inf if math.isnan(score) else -score


def joined(blocks: Summary, tokens: list[int], fan: int) -> tuple[Summary, list[int]]:
    """Blocks of `fan` blocks, and how many tokens each holds."""
    held = torch.split(torch.tensor(tokens, device=blocks.centre.device), fan)
    parts = (torch.split(part, fan) for part in blocks)
    members = (Summary(*each) for each in zip(*parts, strict=True))
    balls = [merged(each, counts) for each, counts in zip(members, held, strict=True)]
    return stacked(balls), [int(counts.sum()) for counts in held]


def stacked(blocks: list[Summary]) -> Summary:
    """Blocks side by side."""
    return Summary(*(torch.stack(part) for part in zip(*blocks, strict=True)))


def first_state(method: Aether, batch: int) -> list[list[float]]:
    """The governor's before the first step, of each sequence; zeros without one."""
    if method.governor == "none":
        return [[0.0] * STATE] * batch
    return [start(method.governor, method.preset, method.start)] * batch


def heads_of(
    method: Aether, q: Tensor, k: Tensor, shape: LayerShape, state: list[list[float]]
) -> list[list[Head]]:
    """By sequence and query head, of q [B,H,1,D] and k [B,Hkv,N,D]."""
    found = []
    for b, own in enumerate(state):
        value = method.value if method.governor == "none" else own[0]
        keys = [Keys(method, rows) for rows in k[b]]
        asked = enumerate(q[b, :, 0])
        found.append([Head(keys[h // shape.group], one, shape.scale, value) for h, one in asked])
    return found


def kept_by(method: Aether, heads: list[Head], group: int) -> list[set[int]]:
    """Blocks that each query head of one sequence attends to."""
    own = [head.kept() for head in heads]
    if method.heads == "own":
        return own
    groups = [own[h : h + group] for h in range(0, len(own), group)]
    return [set[int]().union(*each) for each in groups for _ in each]


def rows_of(kept: list[list[set[int]]], block: int, tokens: int) -> list[list[list[int]]]:
    """The tokens of these blocks of every query head of every sequence, ascending."""

    def of_head(own: set[int]) -> list[int]:
        spans = (range(at * block, min((at + 1) * block, tokens)) for at in sorted(own))
        return [row for span in spans for row in span]

    return [[of_head(own) for own in heads] for heads in kept]


def attended(
    q: Tensor, k: Tensor, v: Tensor, shape: LayerShape, kept: list[list[list[int]]]
) -> Tensor:
    """Exact attention of every query head over the rows that it keeps: [B,H,1,D]."""
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for b, heads in enumerate(kept):
        for h, rows in enumerate(heads):
            keys, values = (kv[b, h // shape.group][rows][None, None] for kv in (k, v))
            out[b, h] = exact_attention(q[b, h][None, None], keys, values, shape.scale)[0, 0]
    return out


def attended_alone(method: Aether, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
    """What one token after a prompt of all others attends to: [B,H,1,D]."""
    heads = heads_of(method, q, k, shape, first_state(method, shape.batch))
    kept = [kept_by(method, each, shape.group) for each in heads]
    return attended(q, k, v, shape, rows_of(kept, method.block, k.shape[2]))


class AetherReferenceLayer(ExactCacheLayer):
    """The definition; the governor's state is kept by length, so that a step may be repeated."""

    state: dict[int, list[list[float]]]
    kept: list[list[set[int]]]  # by the last step
    computed: list[list[int]]  # bounds that each head needed in it

    def __init__(self, method: Aether, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view; the governor begins."""
        super().prefill(cache, q)
        self.state = {self.prefilled: first_state(self.method, self.shape.batch)}

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend; the output is float64."""
        keys, values = self.append(k, v)
        at = self.cache.length.tokens
        before = self.state[at if self.method.governor != "none" else self.prefilled]
        heads = heads_of(self.method, q, keys, self.shape, before)
        self.kept = [kept_by(self.method, each, self.shape.group) for each in heads]
        self.computed = [[head.computed for head in each] for each in heads]
        rows = rows_of(self.kept, self.method.block, keys.shape[2])
        if self.method.governor != "none":
            seen = self._seen(rows, heads[0][0].count)
            state = torch.tensor(before, dtype=torch.float64)
            step = at - self.prefilled
            after = moved(self.method.governor, self.method.preset, state, seen, step)
            self.state[at + 1] = after.tolist()
        return attended(q, keys, values, self.shape, rows)

    def _seen(self, rows: list[list[list[int]]], count: int) -> Seen:
        tokens = [fmean(map(len, heads)) for heads in rows]
        shares = [fmean(map(len, heads)) / count for heads in self.kept]
        return Seen(*(torch.tensor(each, dtype=torch.float64) for each in (tokens, shares)))

    def reset(self) -> None:
        """The governor begins anew."""
        super().reset()
        self.state = {self.prefilled: self.state[self.prefilled]}
