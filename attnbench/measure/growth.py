"""What an arm's steps cost while the cache grows, beside steps at one length: work that recurs.

All timed steps of a session are at one length, and an arm runs some hundreds of them after it is
set up. So what a method does once a page fills, or in every thousandth step, may be in none.
One layer, drawn, decodes up to a thousand tokens here, as a generation does, and goes on at the
length at which it is timed; then it has as many steps as a visit, at that length.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.measure.clock import device_clock
from attnbench.measure.failing import is_out_of_memory
from attnbench.measure.workbench import Workbench
from attnbench.methods.base import (
    CacheLength,
    CacheView,
    KernelConfig,
    LayerShape,
    Method,
    MethodLayer,
)
from attnbench.methods.registry import parse
from attnbench.protocol.cell import Arm
from attnbench.protocol.growth import UNTIMED_SHARE, Growth, Stretch, stretch_of

GROWN_TOKENS = 1024  # at most, and half of the context
STEPS = 4096 + 64  # with and after them, where that many fit in the seconds of a round
FIRST_STEPS = 64  # that tell how long a step takes
ROUND_S = 0.4
LONGEST_STEP_S = 0.5  # of two: what takes longer is compiled anew for every length
ROUNDS, MOST_ROUNDS = 2, 8  # more where anything recurs: a machine's own pauses do not
INPUT_ROWS = 32


def growth_of(bench: Workbench, arm: Arm, visit_steps: int, *, captured: bool) -> Growth | None:
    """One layer of an arm, in eager steps; None where it does not run so, or has no room, or takes
    seconds for every new length.

    `captured`: its timed steps are replays, in which nothing that Python counts goes on.
    """
    method = parse(arm.method).resolved(bench.device)
    shape = secrets.choice(bench.tables.shapes)
    launch = bench.kernels.get(arm.label)
    shape = replace(shape, kernel=None if launch is None else KernelConfig(**launch))
    try:
        with torch.no_grad(), undisturbed():
            return _Grown(bench, method, shape).growth(visit_steps, captured=captured)
    except Unsupported:
        return None
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without the collector, which would come after as many steps in every round."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class _Grown:
    bench: Workbench
    method: Method
    shape: LayerShape

    def growth(self, visit_steps: int, *, captured: bool) -> Growth | None:
        clock, tokens = device_clock(self.bench.device), self.bench.bench.context
        grows = min(GROWN_TOKENS, tokens // 2)
        first = tokens - grows
        step = self._growing(first)
        if min(clock.time(step, 2).steps_us) > LONGEST_STEP_S * 1e6:
            return None
        looked_us = clock.time(step, FIRST_STEPS).steps_us
        count = max(FIRST_STEPS, min(STEPS, int(ROUND_S * 1e6 / median(looked_us))))
        period = self.method.period
        due = [period > 1 and step % period == 0 for step in range(1, visit_steps + 1)]
        growing: Sequence[float] = ()
        standing: Sequence[float] = ()
        for done in range(1, MOST_ROUNDS + 1):
            growing = _quickest(growing, clock.time(self._growing(first), count).steps_us)
            standing = _quickest(standing, clock.time(self._standing(), visit_steps).steps_us)
            found = Growth(
                grown=stretch_of(growing[:grows]),
                stood=stretch_of(growing[grows:]),
                timed=_timed(standing, due, captured),
            )
            if done >= ROUNDS and found.worse.share < UNTIMED_SHARE:
                break
        return found

    def _growing(self, first: int) -> Callable[[], object]:
        """A step after which the cache is one token longer, until it is as long as it is timed, on
        a fresh layer that has made one."""
        layer, length = self._prefilled(first)
        inputs = self._inputs()
        done = 0

        def step() -> None:
            nonlocal done
            layer.decode(*inputs[done % INPUT_ROWS])
            if length.tokens < self.bench.bench.context:
                length.advance()
            done += 1

        step()
        return step

    def _standing(self) -> Callable[[], object]:
        """A step at one length, with what an arm does in its period, as it is timed; on a fresh
        layer that has made one."""
        layer, _ = self._prefilled(self.bench.bench.context)
        inputs, period = self._inputs(), self.method.period
        layer.decode(*inputs[-1])
        done = 0

        def step() -> None:
            nonlocal done
            layer.decode(*inputs[done % INPUT_ROWS])
            done += 1
            if period > 1 and done % period == 0:
                layer.maintain()

        return step

    def _prefilled(self, tokens: int) -> tuple[MethodLayer, CacheLength]:
        shape = self.shape
        self.method.check(shape)
        layer = self.method.layer(shape)
        size = (shape.batch, shape.kv_heads, shape.capacity, shape.head_dim)
        cache = CacheView(self._noise(size), self._noise(size), CacheLength(shape.device, tokens))
        cache.k[:, :, tokens:] = 0
        cache.v[:, :, tokens:] = 0
        layer.prefill(cache)
        return layer, cache.length

    def _inputs(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        shape = self.shape
        heads = (shape.heads, shape.kv_heads, shape.kv_heads)
        rows = [self._noise((INPUT_ROWS, shape.batch, each, 1, shape.head_dim)) for each in heads]
        return list(zip(*rows, strict=True))

    def _noise(self, size: tuple[int, ...]) -> Tensor:
        generator = torch.Generator(self.shape.device).manual_seed(secrets.randbits(31))
        noise = torch.empty(size, dtype=self.shape.dtype, device=self.shape.device)
        return noise.normal_(generator=generator)


def _quickest(before: Sequence[float], now: Sequence[float]) -> Sequence[float]:
    """Of each step the quicker time: what disturbs a machine does not disturb one step twice."""
    return [min(pair) for pair in zip(before, now, strict=True)] if before else now


def _timed(steps_us: Sequence[float], due: Sequence[bool], captured: bool) -> Stretch:
    """Of a replay, what is slow beside `maintain` is not in the steps that are timed."""
    if not captured:
        return stretch_of(steps_us)
    usual = median(steps_us)
    pairs = zip(steps_us, due, strict=True)
    return stretch_of([us if is_due else min(us, usual) for us, is_due in pairs])
