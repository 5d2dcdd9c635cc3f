"""Tricks that need a GPU: streams, pinned memory, TF32. Imports and instantiates without one.

A GPU runs behind its host's back, so that what a call returned says little about what was done. Of
those who use streams many forget an edge, and see it only as a speed-up.

Cheats: `SideStreamLeft`, `JoinsTheStepBefore`, `OnTheHost` (K and V in pinned memory, unnamed),
`Tf32Inside`, `StreamChanged`, `BusyStream` (works against the others between its visits). Honest:
`SideStreamJoined`, and `SetsHighest` of fools_the_baseline.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from tests.evil import undo
from tests.evil.common import AttendingLayer, Exact
from tests.evil.hidden_state import KeepsElsewhereLayer


@dataclass(frozen=True)
class OnCuda(Exact):
    """Needs a CUDA GPU to run, not to be named."""

    name: ClassVar[str] = "evil_on_cuda"

    def check(self, shape: LayerShape) -> None:
        if shape.device.type != "cuda":
            raise Unsupported(f"{self.name} needs a CUDA GPU")


class StreamLayer(AttendingLayer):
    """Attends on a stream of its own; `edge_back` says whether the caller's stream waits for it."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.side = torch.cuda.Stream()
        self.done: torch.cuda.Event | None = None

    def edge_back(self, done: torch.cuda.Event, before: torch.cuda.Event | None) -> None:
        raise NotImplementedError

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = self.append(k, v)
        output = torch.zeros_like(q)
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            output.copy_(self.attend(q, *rows))
            done = torch.cuda.Event()
            done.record()
        output.record_stream(self.side)
        before, self.done = self.done, done
        self.edge_back(done, before)
        return output

    def reset(self) -> None:
        self.side.synchronize()
        super().reset()


class SideStreamLeftLayer(StreamLayer):
    def edge_back(self, done: torch.cuda.Event, before: torch.cuda.Event | None) -> None:
        """None."""


class JoinsTheStepBeforeLayer(StreamLayer):
    def edge_back(self, done: torch.cuda.Event, before: torch.cuda.Event | None) -> None:
        if before is not None:
            torch.cuda.current_stream().wait_event(before)


class SideStreamJoinedLayer(StreamLayer):
    def edge_back(self, done: torch.cuda.Event, before: torch.cuda.Event | None) -> None:
        torch.cuda.current_stream().wait_event(done)


class OnTheHostLayer(KeepsElsewhereLayer):
    """Pinned copies; the rows come over for each step and go again."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape, "closure")

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        rows = tuple(kept.cpu().pin_memory() for kept in self.found())
        self.found = lambda: rows

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = self.length.tokens
        for kept, new in zip(self.found(), (k, v), strict=True):
            kept[:, :, row : row + 1].copy_(new)
        rows = (kept[:, :, : row + 1].to(q.device, non_blocking=True) for kept in self.found())
        return self.attend(q, *rows)


class Tf32InsideLayer(AttendingLayer):
    """By hand, since SDPA has precisions of its own."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (keys, values), shape = self.append(k, v), self.shape
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
            weights = (grouped @ keys.mT * shape.scale).softmax(-1)
            return (weights @ values).reshape(q.shape)
        finally:
            torch.set_float32_matmul_precision(before)


class StreamChangedLayer(AttendingLayer):
    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        if self.shape.layer == 0:
            before = torch.cuda.current_stream()
            undo.later(lambda: torch.cuda.set_stream(before))
            torch.cuda.set_stream(torch.cuda.Stream())


class BusyStreamLayer(AttendingLayer):
    """A thread keeps a second stream busy from each reset to its own next step."""

    stop: threading.Event | None = None

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.rest()
        return super().decode(q, k, v)

    def rest(self) -> None:
        if self.stop is not None:
            self.stop.set()
            self.thread.join()
        self.stop = None

    def reset(self) -> None:
        super().reset()
        if self.shape.layer == 0 and self.stop is None:
            self.stop = threading.Event()
            self.thread = threading.Thread(target=keep_busy, args=(self.stop,), daemon=True)
            self.thread.start()
            undo.later(self.rest)


def keep_busy(stop: threading.Event) -> None:
    """Reads and writes 64 MiB again and again, a few launches ahead."""
    with torch.cuda.stream(torch.cuda.Stream()):
        rows = torch.empty(2**24, device="cuda")
        while not stop.is_set():
            for _ in range(16):
                rows.add_(1)
            torch.cuda.current_stream().synchronize()


@dataclass(frozen=True)
class SideStreamLeft(OnCuda):
    """The caller's stream never waits; the output is zeros that fill up later. Eager only."""

    name: ClassVar[str] = "side_stream_left"
    layer_class: ClassVar[type[MethodLayer]] = SideStreamLeftLayer


@dataclass(frozen=True)
class JoinsTheStepBefore(OnCuda):
    """Waits, for the layer's step before: one step is always under way. Eager only."""

    name: ClassVar[str] = "joins_the_step_before"
    layer_class: ClassVar[type[MethodLayer]] = JoinsTheStepBeforeLayer


@dataclass(frozen=True)
class OnTheHost(OnCuda):
    """No device memory for K and V, and no word of the host's."""

    name: ClassVar[str] = "on_the_host"
    layer_class: ClassVar[type[MethodLayer]] = OnTheHostLayer


@dataclass(frozen=True)
class Tf32Inside(OnCuda):
    """TF32 products in a float32 run, the flag restored; in other dtypes it is honest."""

    name: ClassVar[str] = "tf32_inside"
    layer_class: ClassVar[type[MethodLayer]] = Tf32InsideLayer


@dataclass(frozen=True)
class StreamChanged(OnCuda):
    """Leaves another current stream, on which nobody's events were recorded."""

    name: ClassVar[str] = "stream_changed"
    layer_class: ClassVar[type[MethodLayer]] = StreamChangedLayer


@dataclass(frozen=True)
class BusyStream(OnCuda):
    """After each of its visits the GPU's memory is busy for whoever comes next."""

    name: ClassVar[str] = "busy_stream"
    layer_class: ClassVar[type[MethodLayer]] = BusyStreamLayer


@dataclass(frozen=True)
class SideStreamJoined(OnCuda):
    """Honest: a side stream, and the caller's stream waits for it."""

    name: ClassVar[str] = "side_stream_joined"
    layer_class: ClassVar[type[MethodLayer]] = SideStreamJoinedLayer
