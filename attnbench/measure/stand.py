"""Layers of one shape and their caches of noise, without a model, on which arms are tried."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from attnbench.errors import DoesNotFit
from attnbench.measure.arms import BrokenArm
from attnbench.measure.device import cpu_facts, last_level_cache_bytes
from attnbench.measure.exactness import defined, sampled
from attnbench.measure.plan import DTYPES, SPARE_ROWS
from attnbench.measure.tasks import TuneTask, TuningCell
from attnbench.methods.base import Family, KernelConfig, LayerShape, Method
from attnbench.methods.conformance import BOUNDS
from attnbench.models.adapter import ExactCache, SurveyedLayer
from attnbench.models.prefill import synthetic_fill
from attnbench.models.step import AttentionStep, CapturedStep, Step, build_layers
from attnbench.models.tables import qkv_tables
from attnbench.protocol.verdict import Reason

CACHE_MULTIPLE = 4  # all layers' caches over the last-level cache
FEWEST_LAYERS, MOST_LAYERS = 4, 64
MEMORY_SHARE = 0.25  # of what is free, for the caches: an arm may keep as much again
ROWS = 64  # of the table of inputs


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
        """A step whose outputs were right, also captured where that can be: a kernel may do
        otherwise there. `BrokenArm` where they are not."""
        layers = build_layers(method, self.cache, self.surveyed, config)
        step: Step = AttentionStep(layers, self.tables)
        self._require_right(method, step)
        if self.device.type == "cuda":
            step = CapturedStep(step)
            self._require_right(method, step)
        return step

    def reclaim(self) -> None:
        """Memory back from arms that are gone, and zeros where they wrote."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.cache.reset(self.context)

    def _require_right(self, method: Method, step: Step) -> None:
        """The first step's outputs are compared with the definition, in a few layers."""
        outputs = step()
        step.reset()
        for number in sampled(len(outputs)):
            right = self._defined(method, number)
            error = float((outputs[number].double() - right).norm() / right.norm())
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


def in_words(cell: TuningCell) -> str:
    """The cell, for people."""
    heads = f"{cell.kv_heads} KV heads x {cell.group}, D {cell.head_dim}"
    return f"{cell.context} tokens, batch {cell.batch}, {heads}"
