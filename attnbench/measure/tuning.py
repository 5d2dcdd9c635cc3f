"""Finds a method's fastest kernel configuration in a grid of shapes, without a model.

Attention of a few layers alone, over noise, captured in a CUDA graph: their caches together exceed
the last-level cache, so that none of them is there when its turn comes. Every output is compared
with the float64 definition before it is timed. The times name a configuration and say how far the
method is from the fastest arm; verdicts come from sessions.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from math import ceil
from statistics import median

import msgspec
import torch
from torch import Tensor

from attnbench.errors import DoesNotFit, SessionLost
from attnbench.measure.arms import BrokenArm
from attnbench.measure.clock import Clock, device_clock
from attnbench.measure.device import cpu_facts, last_level_cache_bytes
from attnbench.measure.events import Tell
from attnbench.measure.exactness import defined, sampled
from attnbench.measure.failing import arm_failure
from attnbench.measure.pilot import device_properties
from attnbench.measure.plan import DTYPES, SPARE_ROWS
from attnbench.measure.tasks import (
    ArmFailure,
    ArmRounds,
    RefusedLaunch,
    TimedLaunch,
    TunedCell,
    TuneResult,
    TuneTask,
    TuningCell,
)
from attnbench.measure.workbench import cheap_collections
from attnbench.methods.base import Family, KernelConfig, LayerShape, Method
from attnbench.methods.conformance import BOUNDS
from attnbench.methods.registry import parse
from attnbench.models.adapter import ExactCache, SurveyedLayer
from attnbench.models.prefill import synthetic_fill
from attnbench.models.step import AttentionStep, CapturedStep, Step, build_layers
from attnbench.models.tables import qkv_tables
from attnbench.protocol.verdict import Reason

CACHE_MULTIPLE = 4  # all layers' caches over the last-level cache
FEWEST_LAYERS, MOST_LAYERS = 4, 64
MEMORY_SHARE = 0.25  # of what is free, for the caches: an arm may keep as much again
ROWS = 64  # of the table of inputs
WARMUP, LEAST_STEPS, LEAST_US = 3, 10, 5e3  # of one timing
ROUNDS, NEAR, MOST_ARMS = 9, 1.15, 6  # arms within `NEAR` times the fastest take part in rounds
SEARCH_SHARE = 0.6  # of a cell's time, for the configurations; the rest is for the other arms
DURING = "tuning"
OUT_OF_TIME = ArmFailure(
    type="OutOfTime",
    message="the time for all cells was over",
    hint="give more of it with --within, or fewer cells",
    during=DURING,
)


def run_tuning(
    task: TuneTask,
    tell: Tell,
    *,
    clock: Clock | None = None,
    now: Callable[[], float] = time.monotonic,
) -> TuneResult:
    """Every cell in turn; where the device is lost, the cells that are left say so."""
    device = torch.device(task.device)
    method = parse(task.method).resolved(device)
    until = now() + task.within_s if task.within_s else float("inf")
    done: list[TunedCell] = []
    lost: ArmFailure | None = None
    with cheap_collections():
        for number, cell in enumerate(task.cells):
            began = now()
            deadline = began + (until - began) / (len(task.cells) - number)
            if lost is None and began >= until:
                lost = OUT_OF_TIME
            if lost is None:
                at = partial(tell, number, len(task.cells))
                timer = clock or device_clock(device)
                found = Search(task, method, cell, timer, now, deadline, at).found()
                lost = lost_device(device, found)
            else:
                found = TunedCell(cell=cell, failure=lost)
            done.append(msgspec.structs.replace(found, took_s=now() - began))
    return TuneResult(label=method.label, cells=tuple(done), device=device_properties(device))


def in_words(cell: TuningCell) -> str:
    """The cell, for people."""
    heads = f"{cell.kv_heads} KV heads x {cell.group}, D {cell.head_dim}"
    return f"{cell.context} tokens, batch {cell.batch}, {heads}"


def lost_device(device: torch.device, found: TunedCell) -> ArmFailure | None:
    """Why nothing more can be measured in this process, if so: a kernel went out of bounds, say."""
    if device.type != "cuda" or not (found.failures or found.refused or found.failure):
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return arm_failure(SessionLost(f"the device was lost in an earlier cell: {error}"), DURING)
    return None


class Search:
    """The search in one cell, until `deadline` by the clock `now`; `at` hears what runs now."""

    def __init__(
        self,
        task: TuneTask,
        method: Method,
        cell: TuningCell,
        clock: Clock,
        now: Callable[[], float],
        deadline: float,
        at: Callable[[str], None],
    ) -> None:
        self._at = at
        self._task = task
        self._method = method
        self._cell = cell
        self._clock = clock
        self._now = now
        self._deadline = deadline
        self._failures: dict[str, ArmFailure] = {}

    def found(self) -> TunedCell:
        """What there is to know of the cell; a cell without memory for it is a failure."""
        self._at(f"{in_words(self._cell)}: filling the caches")
        try:
            with standing(self._task, self._cell) as stand:
                return self._searched(stand)
        except Exception as error:  # noqa: BLE001 - libraries and methods may raise anything
            return TunedCell(cell=self._cell, failure=arm_failure(error, DURING))

    def _searched(self, stand: Stand) -> TunedCell:
        timed, refused, untried = self._configurations(stand)
        label = self._method.label
        best = min(timed, key=lambda each: each.median_us, default=None)
        first_us = {} if best is None else {label: best.median_us}
        if best is None and refused:
            self._failures[label] = refused[-1].failure
        others = [parse(spec).resolved(stand.device) for spec in self._task.against]
        for other in others:
            tried = self._tried(stand, other, first_kernel(other, stand.shape))
            if isinstance(tried, ArmFailure):
                self._failures[other.label] = tried
            else:
                first_us[other.label] = tried
        chosen = {other.label: (other, first_kernel(other, stand.shape)) for other in others}
        if best is not None:
            chosen[label] = (self._method, KernelConfig(**best.launch))
        near = contenders(first_us, label)
        return TunedCell(
            cell=self._cell,
            layers=len(stand.surveyed),
            read_bytes=(self._cell.context + 1) * stand.shape.row_bytes,
            launches=tuple(timed),
            refused=tuple(refused),
            untried=untried,
            first_us=first_us,
            rounds=self._rounds(stand, {each: chosen[each] for each in near}),
            failures=self._failures,
        )

    def _configurations(self, stand: Stand) -> tuple[list[TimedLaunch], list[RefusedLaunch], int]:
        """Each configuration on offer until the time for it is over; the first one always."""
        offered = self._method.configurations(stand.shape)
        stop = self._now() + SEARCH_SHARE * (self._deadline - self._now())
        timed: list[TimedLaunch] = []
        refused: list[RefusedLaunch] = []
        for number, config in enumerate(offered):
            if number and self._now() > stop:
                return timed, refused, len(offered) - number
            tried = self._tried(stand, self._method, config)
            if isinstance(tried, ArmFailure):
                refused.append(RefusedLaunch(launch=asdict(config), failure=tried))
            else:
                timed.append(TimedLaunch(launch=asdict(config), median_us=tried))
        return timed, refused, 0

    def _tried(
        self, stand: Stand, method: Method, config: KernelConfig | None
    ) -> float | ArmFailure:
        """Median microseconds of a step, or why there are none."""
        self._at(f"{in_words(self._cell)}: {method.label}")
        result: float | ArmFailure
        try:
            result = median(self._timed(stand.ready(method, config)))
        except Exception as error:  # noqa: BLE001 - libraries and methods may raise anything
            result = arm_failure(error, DURING)
        stand.reclaim()  # not above, where the traceback keeps the arm's memory alive
        return result

    def _timed(self, step: Step) -> tuple[float, ...]:
        """Steps enough to be told from a single slow one."""
        warmup_us = self._clock.time(step, WARMUP).steps_us
        count = max(LEAST_STEPS, ceil(LEAST_US / max(median(warmup_us), 1.0)))
        return self._clock.time(step, count).steps_us

    def _rounds(
        self, stand: Stand, chosen: dict[str, tuple[Method, KernelConfig | None]]
    ) -> dict[str, ArmRounds]:
        """Arms that are ready together, in rounds, each round in an order that is drawn."""
        order = random.Random(self._task.seed)
        steps: dict[str, Step] = {}
        for label, (method, config) in chosen.items():
            self._at(f"{in_words(self._cell)}: {label} for rounds")
            try:
                steps[label] = stand.ready(method, config)
            except Exception as error:  # noqa: BLE001 - as above
                self._failures[label] = arm_failure(error, DURING)
        taken: dict[str, list[float]] = {label: [] for label in steps}
        for _ in range(ROUNDS):
            for label in order.sample(sorted(steps), len(steps)):
                steps_us = self._timed(steps[label])
                taken[label].append(sum(steps_us) / len(steps_us))
        return {label: ArmRounds(step_us=tuple(us)) for label, us in taken.items()}


def contenders(first_us: dict[str, float], label: str) -> list[str]:
    """The tuned method and the arms that are near the fastest, of those at most so many."""
    ranked = sorted(first_us, key=first_us.__getitem__)
    near = [each for each in ranked if first_us[each] <= NEAR * first_us[ranked[0]]][:MOST_ARMS]
    return near if label in near or label not in first_us else [*near, label]


def first_kernel(method: Method, shape: LayerShape) -> KernelConfig | None:
    """The default configuration of an arm that is not tuned."""
    return next(iter(method.configurations(shape)), None)


class Stand:
    """The layers of one cell, their caches of noise, and what attention over them must give."""

    def __init__(self, task: TuneTask, cell: TuningCell) -> None:
        self.device = torch.device(task.device)
        self.shape = shape_of(cell, DTYPES[task.dtype], self.device)
        self.surveyed = tuple(
            SurveyedLayer(replace(self.shape, layer=layer), None)
            for layer in range(layers_for(cell, self.shape))
        )
        self.context = cell.context
        self.cache = ExactCache([layer.shape for layer in self.surveyed])
        synthetic_fill(self.cache, cell.context, task.seed)
        self.tables = qkv_tables(self.surveyed, ROWS, task.seed)
        self._right: dict[str, Tensor] = {}

    def ready(self, method: Method, config: KernelConfig | None) -> Step:
        """A step whose outputs were right, captured where that can be; `BrokenArm` where not."""
        layers = build_layers(method, self.cache, self.surveyed, config)
        step = AttentionStep(layers, self.tables)
        outputs = step()
        step.reset()
        for number in sampled(len(outputs)):
            self._require_right(method, number, outputs[number])
        return CapturedStep(step) if self.device.type == "cuda" else step

    def reclaim(self) -> None:
        """Memory back from arms that are gone, and zeros where they wrote."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.cache.reset(self.context)

    def _require_right(self, method: Method, number: int, output: Tensor) -> None:
        right = self._defined(method, number)
        error = float((output.double() - right).norm() / right.norm())
        if not error <= BOUNDS[self.shape.dtype]:  # so that NaN is wrong
            raise BrokenArm(
                f"the output of layer {number} differs from its definition by {error:.2g} "
                f"(relative L2); {BOUNDS[self.shape.dtype]:.2g} is allowed",
                reason=Reason.WRONG_OUTPUT,
            )

    def _defined(self, method: Method, number: int) -> Tensor:
        """What the method is, in float64, for the first inputs; exact arms share it."""
        exact = method.family is Family.EXACT
        key = f"{'exact' if exact else method.label} {number}"
        if key not in self._right:
            inputs = self.tables.split(self.tables.words[0, :-1])[number]
            view = self.cache.views[number]
            if exact:
                self._right[key] = defined(inputs, view, self.shape)
            else:
                layer = method.reference_layer(self.surveyed[number].shape)
                layer.prefill(view)
                self._right[key] = layer.decode(*inputs)
                layer.reset()
        return self._right[key]


@contextmanager
def standing(task: TuneTask, cell: TuningCell) -> Iterator[Stand]:
    """A stand, and its memory given back at the end; `DoesNotFit` where there is too little."""
    try:
        with torch.no_grad():
            yield Stand(task, cell)
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(f"{in_words(cell)} do not fit: {error}") from error
    finally:
        gc.collect()
        if torch.device(task.device).type == "cuda":
            torch.cuda.empty_cache()


def shape_of(cell: TuningCell, dtype: torch.dtype, device: torch.device) -> LayerShape:
    """One layer of the cell, with the usual scale."""
    return LayerShape(
        batch=cell.batch,
        heads=cell.kv_heads * cell.group,
        kv_heads=cell.kv_heads,
        head_dim=cell.head_dim,
        capacity=cell.context + SPARE_ROWS,
        dtype=dtype,
        device=device,
        layer=0,
        scale=cell.head_dim**-0.5,
    )


def layers_for(cell: TuningCell, shape: LayerShape) -> int:
    """Layers whose caches exceed the last-level cache some times over, and fit in their share of
    memory; `DoesNotFit` where not even one does."""
    layer_bytes = shape.capacity * shape.row_bytes
    cache_bytes, free_bytes = memory_of(shape.device)
    wanted = max(FEWEST_LAYERS, ceil(CACHE_MULTIPLE * cache_bytes / layer_bytes))
    fitting = int(MEMORY_SHARE * free_bytes / layer_bytes)
    if fitting < 1:
        raise DoesNotFit(
            f"{in_words(cell)}: one layer's cache of {layer_bytes / (1 << 30):.1f} GiB is more "
            f"than {MEMORY_SHARE:.0%} of the {free_bytes / (1 << 30):.1f} GiB that are free",
            hint="use a smaller context or batch",
        )
    return min(wanted, fitting, MOST_LAYERS)


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes of the last-level cache, and of memory that is free."""
    if device.type != "cuda":
        return last_level_cache_bytes(), cpu_facts().memory_free_bytes
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return torch.cuda.get_device_properties(device).L2_cache_size, free_bytes
