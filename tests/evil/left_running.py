"""Work left on another thread or process when the clock stops.

Asynchronous code is how one hides latency, and a benchmark that waits only for what it knows of
takes the submission for the work. Here each output is a buffer that fills up later: by the time
anyone looks twice it is right.

Cheats: `ThreadLeft`, `RawThreadLeft` (a thread that `threading` does not list), `OneBehind` (a
pool, and the result of the step before), `ChildLeft` (a forked process: this one's CPU time shows
nothing). Honest: `ThreadJoined`, `PoolJoined`, `ChildAwaited`.
"""

from __future__ import annotations

import _thread
import gc
import math
import mmap
import os
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock, Thread
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, MethodLayer
from tests.evil.common import AttendingLayer, Exact


class LaterLayer(AttendingLayer):
    """Starts attention and returns the buffer; at most one call of a layer is under way."""

    last: Tensor | None = None

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.last = None

    def start(self, q: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> None:
        raise NotImplementedError

    def wait(self) -> None:
        raise NotImplementedError

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.wait()
        rows = self.append(k, v)
        if self.last is None:  # whoever looks at the first call alone sees nothing
            self.last = self.attend(q, *rows)
            return self.last.clone()
        output = self.last.clone()
        self.start(q.clone(), *rows, output)
        return output

    def fill(self, q: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> None:
        output.copy_(self.attend(q, keys, values))

    def reset(self) -> None:
        self.wait()
        super().reset()

    def tensors(self):
        yield from super().tensors()
        if self.last is not None:
            yield self.last


class ThreadLeftLayer(LaterLayer):
    thread: Thread | None = None

    def start(self, *work: Tensor) -> None:
        self.thread = Thread(target=self.fill, args=work, daemon=True)
        self.thread.start()

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()


class ThreadJoinedLayer(ThreadLeftLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = super().decode(q, k, v)
        self.wait()
        return output


class RawThreadLeftLayer(LaterLayer):
    def __init__(self, shape) -> None:
        super().__init__(shape)
        self.busy = Lock()

    def start(self, *work: Tensor) -> None:
        self.busy.acquire()
        _thread.start_new_thread(self.run, work)

    def run(self, *work: Tensor) -> None:
        try:
            self.fill(*work)
        finally:
            self.busy.release()

    def wait(self) -> None:
        with self.busy:
            return


class OneBehindLayer(AttendingLayer):
    """Returns what the step before ordered; the pool works while the clock times something else."""

    ordered: Future[Tensor] | None = None

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.ordered = None
        self.pool = ThreadPoolExecutor(1)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before, rows = self.ordered, self.append(k, v)
        self.ordered = self.pool.submit(self.attend, q.clone(), *rows)
        return (before or self.ordered).result().clone()

    def reset(self) -> None:
        if self.ordered is not None:
            self.ordered.result()
        self.ordered = None
        super().reset()

    def tensors(self):
        yield from super().tensors()
        if self.ordered is not None:
            yield self.ordered.result()


class PoolJoinedLayer(OneBehindLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.pool.submit(self.attend, q, *self.append(k, v)).result()


class ChildLeftLayer(LaterLayer):
    """A child is forked at prefill, with the cache as it was; it gets each new row and answers."""

    SLOTS = 64  # outputs that the harness may hold before one is used again
    orders: ClassVar[set[int]] = set()  # the parent's ends: inherited, one would keep a child alive
    calls = 0
    waits = False

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        shape = self.shape
        heads = (shape.heads, shape.kv_heads, shape.kv_heads)
        self.inputs, self.outputs = (
            [in_shared_memory((shape.batch, n, 1, shape.head_dim), shape.dtype) for n in of]
            for of in (heads, (shape.heads,) * self.SLOTS)
        )
        takes, self.order = os.pipe()
        self.done, tells = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for order in (*self.orders, self.order):
                    os.close(order)
                gc.disable()  # what is the parent's is not this process's to finalise
                torch.set_num_threads(1)  # the pool's threads did not survive the fork
                self.serve(takes, tells)
            finally:
                os._exit(0)
        os.close(takes)
        os.close(tells)
        self.orders.add(self.order)
        weakref.finalize(self, dismiss, self.orders, self.order, self.done, child)

    def serve(self, takes: int, tells: int) -> None:
        """Attend for every order, a row and a slot, until the parent closes its end."""
        q, k, v = self.inputs
        while order := os.read(takes, 9):
            self.cache.length.tokens = int.from_bytes(order[:8], "big")
            self.outputs[order[8]].copy_(self.attend(q, *self.append(k, v)))
            os.write(tells, b".")

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.wait()
        for place, new in zip(self.inputs, (q, k, v), strict=True):
            place.copy_(new)
        slot = self.calls % self.SLOTS
        os.write(self.order, self.cache.length.tokens.to_bytes(8, "big") + bytes((slot,)))
        self.waits = True
        if self.calls == 0:  # whoever looks at the first call alone sees nothing
            self.wait()
        self.calls += 1
        return self.outputs[slot]

    def wait(self) -> None:
        if self.waits:
            os.read(self.done, 1)
        self.waits = False

    def tensors(self):
        yield from super().tensors()
        yield from (*self.inputs, *self.outputs)


def in_shared_memory(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that a forked child sees and may change."""
    elements = math.prod(size)
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize), dtype=dtype).view(size)


def dismiss(orders: set[int], order: int, done: int, child: int) -> None:
    """Close the pipes, upon which the child ends."""
    orders.discard(order)
    os.close(order)
    os.close(done)
    os.waitpid(child, 0)


class ChildAwaitedLayer(ChildLeftLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = super().decode(q, k, v)
        self.wait()
        return output.clone()


@dataclass(frozen=True)
class ThreadLeft(Exact):
    """A new thread a call fills the output; the next call of the layer waits for it."""

    name: ClassVar[str] = "thread_left"
    layer_class: ClassVar[type[MethodLayer]] = ThreadLeftLayer


@dataclass(frozen=True)
class RawThreadLeft(Exact):
    """The same by `_thread`, so that `threading.enumerate()` shows no one."""

    name: ClassVar[str] = "raw_thread_left"
    layer_class: ClassVar[type[MethodLayer]] = RawThreadLeftLayer


@dataclass(frozen=True)
class OneBehind(Exact):
    """Finished outputs, each of the step before; the pool idles between steps like any pool."""

    name: ClassVar[str] = "one_behind"
    layer_class: ClassVar[type[MethodLayer]] = OneBehindLayer


@dataclass(frozen=True)
class ChildLeft(Exact):
    """A child, forked at prefill, fills the output through shared memory."""

    name: ClassVar[str] = "child_left"
    layer_class: ClassVar[type[MethodLayer]] = ChildLeftLayer


@dataclass(frozen=True)
class ThreadJoined(Exact):
    """Honest: joins its thread before it returns."""

    name: ClassVar[str] = "thread_joined"
    layer_class: ClassVar[type[MethodLayer]] = ThreadJoinedLayer


@dataclass(frozen=True)
class PoolJoined(Exact):
    """Honest: keeps a pool and waits for its result."""

    name: ClassVar[str] = "pool_joined"
    layer_class: ClassVar[type[MethodLayer]] = PoolJoinedLayer


@dataclass(frozen=True)
class ChildAwaited(Exact):
    """Honest, if odd: a child process attends, and the call waits for its answer."""

    name: ClassVar[str] = "child_awaited"
    layer_class: ClassVar[type[MethodLayer]] = ChildAwaitedLayer
