"""Tricks that need CUDA graphs. Imports and instantiates without a GPU.

A captured step is a list of kernels with fixed addresses: what Python decided while it was recorded
holds for every replay, and nobody is asked again. Forgetting to copy an input into its place looks
like a speed-up.

Cheats: `OldPointers` (its own graph, replayed on the first step's inputs), `SkipsInCapture` (exact
until it is captured), `TableInTheGraph` (answers for every row of the table of inputs, looked up on
the device by the harness's own counter: one gather in the graph), `SeveralStepsACapture` (the
captured step renews a quarter of its output). Honest: `OwnGraph`, `BranchesInCapture`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, MethodLayer
from tests.evil.common import AttendingLayer
from tests.evil.cuda_only import OnCuda
from tests.evil.reach import every_row, holders, table_of


class OldPointersLayer(AttendingLayer):
    """Captures its own step at the second call of a length; a capture around it gets attention."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.seen: set[int] = set()
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]] = {}

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = self.cache.length.tokens
        if torch.cuda.is_current_stream_capturing() or tokens not in self.seen:
            self.seen.add(tokens)
            return super().decode(q, k, v)
        if tokens not in self.graphs:
            self.graphs[tokens] = self.captured(q.clone(), k.clone(), v.clone())
        graph, static, output = self.graphs[tokens]
        self.bring(static, (q, k, v))
        graph.replay()
        return output.clone()

    def captured(self, *static: Tensor) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = AttendingLayer.decode(self, *static)
        return graph, static, output

    def bring(self, static: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
        """Forgotten: the graph reads what it read when it was made."""

    def tensors(self):
        yield from super().tensors()
        for _, static, output in self.graphs.values():
            yield from (*static, output)


class OwnGraphLayer(OldPointersLayer):
    def bring(self, static: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
        for there, new in zip(static, inputs, strict=True):
            there.copy_(new)


class SkipsInCaptureLayer(AttendingLayer):
    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.last: Tensor | None = None

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = self.append(k, v)
        if self.last is None or not torch.cuda.is_current_stream_capturing():
            self.last = self.attend(q, *rows)
        return self.last.clone()

    def tensors(self):
        yield from super().tensors()
        if self.last is not None:
            yield self.last


class BranchesInCaptureLayer(AttendingLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        if torch.cuda.is_current_stream_capturing():
            return self.attend(q, keys, values)
        return self.attend(q, keys.contiguous(), values.contiguous())


class TableInTheGraphLayer(AttendingLayer):
    """Needs the table and the counter of the harness; without them it attends."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.answers: Tensor | None = None
        self.place: Tensor | None = None
        self.source = 0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.source != q.data_ptr() and not torch.cuda.is_current_stream_capturing():
            self.source = q.data_ptr()  # another reader of the table has another counter
            self.prepare(q, k, v)
        rows = self.append(k, v)
        if self.place is None:
            return self.attend(q, *rows)
        # The counter already stands on the row after this one.
        now = (self.place - 1) % len(self.answers)
        return self.answers.index_select(0, now)[0]

    def prepare(self, *inputs: Tensor) -> None:
        table = table_of(inputs[0])
        counters = [
            value
            for attributes in holders(inputs[0])
            for value in attributes.values()
            if type(value) is Tensor and value.dtype is torch.int64 and value.numel() == 1
        ]
        if table is not None and counters:
            columns = zip(*(every_row(table, given) for given in inputs), strict=True)
            answers = [self.attend(q, *self.append(k, v)) for q, k, v in columns]
            self.answers, self.place = torch.stack(answers), counters[0]
        else:
            self.place = None

    def tensors(self):
        yield from super().tensors()
        if self.answers is not None:
            yield self.answers


class SeveralStepsACaptureLayer(AttendingLayer):
    """A quarter of the sequences and heads is computed in a capture; the rest is what lay there."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.buffer: Tensor | None = None

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        if self.buffer is None or not torch.cuda.is_current_stream_capturing():
            self.buffer = self.attend(q, keys, values)
            return self.buffer.clone()
        few = max(1, self.shape.kv_heads // 4)
        start = self.shape.layer * few % self.shape.kv_heads
        heads = slice(start * self.shape.group, (start + few) * self.shape.group)
        some = self.attend(
            q[:, heads], keys[:, start : start + few], values[:, start : start + few]
        )
        self.buffer[:, heads] = some
        return self.buffer.clone()

    def tensors(self):
        yield from super().tensors()
        if self.buffer is not None:
            yield self.buffer


@dataclass(frozen=True)
class OldPointers(OnCuda):
    """Replays its own graph without bringing the new inputs. Eager only."""

    name: ClassVar[str] = "old_pointers"
    layer_class: ClassVar[type[MethodLayer]] = OldPointersLayer


@dataclass(frozen=True)
class SkipsInCapture(OnCuda):
    """Attention in every eager call, a copy of the last output in the graph."""

    name: ClassVar[str] = "skips_in_capture"
    layer_class: ClassVar[type[MethodLayer]] = SkipsInCaptureLayer


@dataclass(frozen=True)
class TableInTheGraph(OnCuda):
    """Right outputs at every replay, by one gather from answers made before the capture."""

    name: ClassVar[str] = "table_in_the_graph"
    layer_class: ClassVar[type[MethodLayer]] = TableInTheGraphLayer


@dataclass(frozen=True)
class SeveralStepsACapture(OnCuda):
    """The captured step renews a quarter of the heads, as if four steps made one output."""

    name: ClassVar[str] = "several_steps_a_capture"
    layer_class: ClassVar[type[MethodLayer]] = SeveralStepsACaptureLayer


@dataclass(frozen=True)
class OwnGraph(OnCuda):
    """Honest: its own graph on static copies that every call fills anew."""

    name: ClassVar[str] = "own_graph"
    layer_class: ClassVar[type[MethodLayer]] = OwnGraphLayer


@dataclass(frozen=True)
class BranchesInCapture(OnCuda):
    """Honest: another way in a capture, to the same result."""

    name: ClassVar[str] = "branches_in_capture"
    layer_class: ClassVar[type[MethodLayer]] = BranchesInCaptureLayer
