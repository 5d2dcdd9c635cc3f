"""Exact attention that is slower by a known time: the known truth of a calibration.

A layer's step is that of another method, and then one kernel more, which waits. Arms that differ in
nothing but how long it waits differ in nothing else: 0 µs is the sham.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import CacheView, Family, KernelConfig, LayerShape, Method, MethodLayer
from attnbench.methods.registry import parse

EVERY_LAYER = -1
MOST_US = 1e6  # a wait is a fraction of a step; a second is a mistake


@dataclass(frozen=True)
class Waiting(Method):
    """The exact method `inner`, and `wait_us` microseconds in layer `at_layer` (-1: in each).

    `inner` is written as on the command line with + for its commas: `sdpa+backend=cudnn`. The
    witness `waited_us` is the mean wait of a step of the layer, by the device's own timer, over all
    steps since prefill; it is no decode state, so a reset leaves it.
    """

    wait_us: float = 0.0
    inner: str = "sdpa"
    at_layer: int = EVERY_LAYER
    impl: str = ""

    name: ClassVar[str] = "waiting"
    family: ClassVar[Family] = Family.CONTROL
    source: ClassVar[str] = "this project: a delay of known length, to calibrate the instrument"
    implementations: ClassVar[tuple[str, ...]] = ("triton", "torch")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.wait_us) and 0 <= self.wait_us <= MOST_US):
            raise UsageError(
                f"waiting: wait_us={self.wait_us} is no time to wait", hint=f"0 to {MOST_US:g} µs"
            )
        if self.exact.family is not Family.EXACT:
            raise UsageError(
                f"waiting: {self.inner} is not exact", hint="a calibration waits on exact attention"
            )

    @property
    def exact(self) -> Method:
        """The method whose steps these are."""
        return parse(self.inner.replace("+", ","))

    @property
    def dynamic_length(self) -> bool:
        """As the inner method's."""
        return self.exact.dynamic_length

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention: waiting changes no output."""
        return self.exact.reference(q, k, v, shape)

    def check(self, shape: LayerShape) -> None:
        """The inner method's conditions; and a wait that this device's steps can feel."""
        self.exact.check(shape)
        device = shape.device.type
        if (self.impl == "triton") != (device == "cuda"):
            raise Unsupported(
                f"waiting,impl={self.impl} cannot wait on {device}: impl=triton reads a GPU's own "
                "timers, impl=torch holds up the host",
                hint="leave impl out",
            )

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Those of the inner method."""
        return self.exact.configurations(shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """The inner method's layer, and the wait after it where this is the layer that waits."""
        return WaitingLayer(self, shape)


class Wait(Protocol):
    """Something that takes a given time and remembers how long it took."""

    def __call__(self) -> None:
        """Wait once."""

    def mean_us(self) -> float:
        """Mean of all waits in microseconds; 0 before the first."""

    def tensors(self) -> Iterator[Tensor]:
        """What it keeps on the device."""


class WaitingLayer(MethodLayer):
    """An exact layer, and perhaps a wait."""

    def __init__(self, method: Waiting, shape: LayerShape) -> None:
        self.inner = method.exact.layer(shape)
        self.wait: Wait | None = None
        self._method = method
        self._shape = shape

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Take over the cache and make the wait ready."""
        self.inner.prefill(cache, q)
        method, shape = self._method, self._shape
        if method.at_layer in (EVERY_LAYER, shape.layer):
            on_host = method.impl == "torch"
            self.wait = HostWait(method.wait_us) if on_host else DeviceWait(method.wait_us, shape)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend, then wait."""
        out = self.inner.decode(q, k, v)
        if self.wait is not None:
            self.wait()
        return out

    def reset(self) -> None:
        """The inner layer's."""
        self.inner.reset()

    def tensors(self) -> Iterator[Tensor]:
        """The inner layer's, and the record of the wait."""
        yield from self.inner.tensors()
        if self.wait is not None:
            yield from self.wait.tensors()

    def bytes_read(self) -> int:
        """Those of the inner layer."""
        return self.inner.bytes_read()

    def witness(self) -> Mapping[str, float]:
        """The inner layer's, and the mean wait of a step in this layer."""
        waited_us = 0.0 if self.wait is None else self.wait.mean_us()
        return {**self.inner.witness(), "waited_us": waited_us}


class DeviceWait:
    """A kernel that waits, by the GPU's own clocks."""

    def __init__(self, wait_us: float, shape: LayerShape) -> None:
        from attnbench.kernels import spin

        self._wait_ns = round(wait_us * 1e3)
        self._spin = spin.spin
        self._record = torch.zeros(spin.RECORD_SIZE, dtype=torch.int64, device=shape.device)
        spin.calibrate(self._record)

    def __call__(self) -> None:
        self._spin(self._record, self._wait_ns)

    def mean_us(self) -> float:
        from attnbench.kernels.spin import STEPS, WAITED_NS

        kept = self._record.tolist()
        return kept[WAITED_NS] / kept[STEPS] / 1e3 if kept[STEPS] else 0.0

    def tensors(self) -> Iterator[Tensor]:
        yield self._record


class HostWait:
    """A loop on the host's clock, for steps that run on the host."""

    def __init__(self, wait_us: float) -> None:
        self._wait_ns = round(wait_us * 1e3)
        self._steps = self._waited_ns = 0

    def __call__(self) -> None:
        began_ns = now_ns = time.perf_counter_ns()
        while now_ns - began_ns < self._wait_ns:
            now_ns = time.perf_counter_ns()
        self._waited_ns += now_ns - began_ns
        self._steps += 1

    def mean_us(self) -> float:
        return self._waited_ns / self._steps / 1e3 if self._steps else 0.0

    def tensors(self) -> Iterator[Tensor]:
        yield from ()
