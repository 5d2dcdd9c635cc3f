"""Several steps, or all layers, amortised into one.

Decoding is bound by reading K and V, and four queries read them as fast as one. A bench whose next
inputs lie in memory offers what no generation can: the queries of the future, and those of layers
whose input does not exist yet.

Cheats: `AnswersLater` (four steps at a time, into buffers returned before), `LooksAhead` (four rows
of the table of inputs at once), `AllLayersAtOnce` (the first layer starts all of them in parallel).
Honest: `HeadsTogether`, and `PoolJoined` of left_running.
"""

from __future__ import annotations

import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from tests.evil.common import AttendingLayer, Exact
from tests.evil.reach import Ahead

TOGETHER = 4


class TogetherLayer(AttendingLayer):
    def attend_together(self, steps: list[tuple[Tensor, Tensor, Tensor]], tokens: int) -> Tensor:
        """Each step's q over the `tokens` cached rows and its own: [B,H,S,D], read once."""
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*steps, strict=True))
        keys, values = (
            torch.cat((rows[:, :, :tokens], new), dim=2)
            for rows, new in ((self.cache.k, k), (self.cache.v, v))
        )
        own = torch.eye(len(steps), dtype=torch.bool, device=q.device)
        mask = torch.cat((own.new_ones(len(steps), tokens), own), dim=1)
        return torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, mask, scale=self.shape.scale, enable_gqa=self.shape.group > 1
        )


class AnswersLaterLayer(TogetherLayer):
    """Fills what it handed out in the last of four calls, or when someone calls `reset`."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.last: Tensor | None = None
        self.owed: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = []
        self.tokens = self.prefilled

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.cache.length.tokens != self.tokens:
            self.settle()
            self.tokens = self.cache.length.tokens
        rows = self.append(k, v)
        if self.last is None:
            self.last = self.attend(q, *rows)
            return self.last.clone()
        output = self.last.clone()
        self.owed.append((output, (q.clone(), k.clone(), v.clone())))
        if len(self.owed) == TOGETHER:
            self.settle()
        return output

    def settle(self) -> None:
        if self.owed:
            outputs, steps = zip(*self.owed, strict=True)
            answers = self.attend_together(list(steps), self.tokens)
            for output, answer in zip(outputs, answers.split(1, dim=2), strict=True):
                output.copy_(answer)
        self.owed.clear()

    def reset(self) -> None:
        self.settle()
        super().reset()

    def tensors(self):
        yield from super().tensors()
        yield from (tensor for output, inputs in self.owed for tensor in (output, *inputs))
        if self.last is not None:
            yield self.last


class LooksAheadLayer(TogetherLayer):
    """Counts the steps since reset, as the harness does; without a table it attends."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.ahead, self.step = Ahead(), 0
        self.answers: list[Tensor] = []

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        columns = self.ahead.of(q, k, v)
        if not columns:
            return super().decode(q, k, v)
        self.append(k, v)
        if not self.answers:
            numbers = [(self.step + more) % len(columns[0]) for more in range(TOGETHER)]
            steps = [tuple(column[number] for column in columns) for number in numbers]
            together = self.attend_together(steps, self.cache.length.tokens)
            self.answers = [answer.clone() for answer in together.split(1, dim=2)]
        self.step += 1
        return self.answers.pop(0)

    def reset(self) -> None:
        self.step, self.answers = 0, []
        super().reset()

    def tensors(self):
        """The table is the harness's."""
        yield from super().tensors()
        yield from self.answers


class AllLayersAtOnceLayer(AttendingLayer):
    """Reads its siblings' inputs from beside its own; every layer waits for its own result."""

    siblings: ClassVar[list[weakref.ref[AllLayersAtOnceLayer]]] = []
    started: Future[Tensor] | None = None

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape)
        if shape.layer == 0:
            self.siblings.clear()
            self.pool = ThreadPoolExecutor(4)
        self.siblings.append(weakref.ref(self))

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        started, self.started = self.started, None
        if started is not None:
            return started.result()
        own = next((n for n, layer in enumerate(self.siblings) if layer() is self), -1)
        width = q.numel() + k.numel() + v.numel()
        whole = q.untyped_storage().nbytes() // q.itemsize >= len(self.siblings) * width
        if own == 0 and whole and q.storage_offset() == 0:
            self.start_the_others(q, k, v, width)
        return self.attend(q, *self.append(k, v))

    def start_the_others(self, q: Tensor, k: Tensor, v: Tensor, width: int) -> None:
        for number, sibling in enumerate(self.siblings):
            layer = sibling()
            if number > 0 and layer is not None:
                inputs = (
                    x.as_strided(x.shape, x.stride(), x.storage_offset() + number * width)
                    for x in (q, k, v)
                )
                layer.started = self.pool.submit(AttendingLayer.decode, layer, *inputs)


class HeadsTogetherLayer(AttendingLayer):
    """All sequences and heads of one step in one batched product."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (keys, values), shape = self.append(k, v), self.shape
        grouped = q.reshape(-1, shape.group, shape.head_dim)
        weights = (grouped @ keys.flatten(0, 1).mT * shape.scale).softmax(-1)
        return (weights @ values.flatten(0, 1)).reshape(q.shape)


@dataclass(frozen=True)
class AnswersLater(Exact):
    """Reads the cache once in four steps; three of four outputs come after they were given."""

    name: ClassVar[str] = "answers_later"
    layer_class: ClassVar[type[MethodLayer]] = AnswersLaterLayer


@dataclass(frozen=True)
class LooksAhead(Exact):
    """Right outputs in time: it answers the bench's next three inputs with this one."""

    name: ClassVar[str] = "looks_ahead"
    layer_class: ClassVar[type[MethodLayer]] = LooksAheadLayer


@dataclass(frozen=True)
class AllLayersAtOnce(Exact):
    """Right outputs in time: layers that wait for each other in a model run side by side."""

    name: ClassVar[str] = "all_layers_at_once"
    layer_class: ClassVar[type[MethodLayer]] = AllLayersAtOnceLayer


@dataclass(frozen=True)
class HeadsTogether(Exact):
    """Honest: batches what one step brings."""

    name: ClassVar[str] = "heads_together"
    layer_class: ClassVar[type[MethodLayer]] = HeadsTogetherLayer
