"""An arm that slows or changes the others.

A ratio has a denominator. What an arm leaves behind in the process (a flag, a thread, a mode, a
smaller share of the machine) slows A and A' alike, so that they agree and both are wrong. Mostly it
is a flag that someone set for himself and never set back.

Cheats: `Leaves,what=` a name in changes.py, in prefill, or with `when=reset` between its own visits
only: its first call takes it back. Honest: `Restores,what=` the same for the length of a call,
`SetsHighest`,
`NicesAThread`.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from tests.evil import undo
from tests.evil.changes import WHATS, TakeBack
from tests.evil.common import AttendingLayer, Exact

When = Literal["prefill", "reset"]


class LeavesLayer(AttendingLayer):
    """The first layer does it for all; what is left stays when the layers are gone."""

    def __init__(self, shape: LayerShape, what: str, when: When) -> None:
        super().__init__(shape)
        self.what, self.when = WHATS[what], when
        self.left: TakeBack | None = None

    def leave(self) -> None:
        if self.shape.layer == 0 and self.left is None:
            self.left = self.what()
            undo.later(self.take_back)

    def take_back(self) -> None:
        left, self.left = self.left, None
        if left is not None:
            left()

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        if self.when == "prefill":
            self.leave()

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.when == "reset":
            self.take_back()
        return super().decode(q, k, v)

    def reset(self) -> None:
        super().reset()
        if self.when == "reset":
            self.leave()


class RestoresLayer(LeavesLayer):
    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        AttendingLayer.prefill(self, cache, q)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        take_back = self.what()
        try:
            return AttendingLayer.decode(self, q, k, v)
        finally:
            take_back()


class SetsHighestLayer(AttendingLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return super().decode(q, k, v)
        finally:
            torch.set_float32_matmul_precision(before)


class NicesAThreadLayer(AttendingLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output, rows = torch.empty_like(q), self.append(k, v)

        def work() -> None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
            output.copy_(self.attend(q, *rows))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return output


@dataclass(frozen=True)
class Leaves(Exact):
    """Exact attention, and a process that is not what it was."""

    what: str = "threads"
    when: When = "prefill"

    name: ClassVar[str] = "leaves"
    layer_class: ClassVar[type[MethodLayer]] = LeavesLayer

    def layer(self, shape: LayerShape) -> MethodLayer:
        return self.layer_class(shape, self.what, self.when)


@dataclass(frozen=True)
class Restores(Leaves):
    """Honest: the same change for the length of a call, taken back whatever happens."""

    name: ClassVar[str] = "restores"
    layer_class: ClassVar[type[MethodLayer]] = RestoresLayer


@dataclass(frozen=True)
class SetsHighest(Exact):
    """Honest: full float32 products for the length of a call."""

    name: ClassVar[str] = "sets_highest"
    layer_class: ClassVar[type[MethodLayer]] = SetsHighestLayer


@dataclass(frozen=True)
class NicesAThread(Exact):
    """Honest: lowers the priority of a thread that ends with the call."""

    name: ClassVar[str] = "nices_a_thread"
    layer_class: ClassVar[type[MethodLayer]] = NicesAThreadLayer
