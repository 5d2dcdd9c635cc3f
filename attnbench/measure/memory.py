"""KV memory of each arm, in a process that holds this arm and its own cache and nothing else.

One worker imports torch and forks a child an arm, before any CUDA context exists; no weights are
loaded, since the bytes of a cache depend neither on them nor on the values cached. The exact cache
is let go after prefill: what a method keeps of it is what stays reachable.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from attnbench.errors import AttnbenchError, WorkerFailed
from attnbench.measure.answers import MemoryFigures, MemoryResult
from attnbench.measure.children import Ended, in_child
from attnbench.measure.events import Tell
from attnbench.measure.failing import arm_failure
from attnbench.measure.footprint import Footprint, footprint, resident_bytes
from attnbench.measure.tasks import ArmFailure, Bench, LayerFacts, MemoryTask
from attnbench.measure.workbench import cheap_collections
from attnbench.methods.base import KernelConfig, LayerShape, MethodLayer
from attnbench.methods.registry import parse
from attnbench.models.adapter import ExactCache, SurveyedLayer
from attnbench.models.prefill import synthetic_fill
from attnbench.models.step import build_layers
from attnbench.protocol.cell import Arm

REHEARSAL_TOKENS = 512


def run_memory(task: MemoryTask, tell: Tell) -> MemoryResult:
    """The figures of every arm, one child process after the other."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise WorkerFailed("memory is measured in forked children: CUDA must not be in use yet")
    arms: dict[str, MemoryFigures] = {}
    failures: dict[str, ArmFailure] = {}
    with cheap_collections():  # children count living tensors: those of this process are none
        for number, arm in enumerate(task.bench.arms):
            tell(number, len(task.bench.arms), arm.label)
            result = _in_child(task, arm)
            arms |= result.arms
            failures |= result.failures
    return MemoryResult(arms=arms, failures=failures)


def _in_child(task: MemoryTask, arm: Arm) -> MemoryResult:
    """The result of one arm, from a forked child."""
    found = in_child(lambda: _measured(task, arm), MemoryResult)
    if isinstance(found, Ended):
        return MemoryResult(arms={}, failures={arm.label: _died(found)})
    return found


def _measured(task: MemoryTask, arm: Arm) -> MemoryResult:
    try:
        return MemoryResult(arms={arm.label: measure(task, arm)}, failures={})
    except Exception as error:  # noqa: BLE001 - a method under test may raise anything
        return MemoryResult(arms={}, failures={arm.label: arm_failure(error, "memory")})


def _died(end: Ended) -> ArmFailure:
    return ArmFailure(
        type=WorkerFailed.__name__,
        message=f"the process that held this arm ended {end.how}",
        hint="most likely memory ran out" if end.status == -signal.SIGKILL else "",
        during="memory",
    )


def measure(task: MemoryTask, arm: Arm) -> MemoryFigures:
    """Hand a filled exact cache to the arm, let it go, decode one token; count at each point."""
    rehearse(task, arm)
    surveyed = surveyed_layers(task)
    resident_before = resident_bytes()
    inputs = [new_token(layer.shape, task.bench.seed) for layer in surveyed]
    counter = footprint(surveyed[0].shape.device)
    held = Holding.build(task.bench, arm, surveyed, counter)
    held.decode(inputs)
    decode_peak_bytes = counter.peak_bytes()
    allocated_bytes = counter.allocated_bytes()
    on_host = allocated_bytes if surveyed[0].shape.device.type == "cpu" else 0
    return MemoryFigures(
        reachable_bytes=storage_bytes(held.tensors()),
        allocated_bytes=allocated_bytes,
        allocated_source=counter.allocated_source,
        prefill_peak_bytes=held.prefill_peak_bytes,
        decode_peak_bytes=decode_peak_bytes,
        peak_source=counter.peak_source,
        reserved_bytes=counter.reserved_bytes(),
        process_bytes=counter.process_bytes(),
        process_source=counter.process_source,
        host_bytes=max(0, resident_bytes() - resident_before - on_host),
        keeps_exact_cache=held.exact_storages <= set(storages(held.tensors())),
    )


def rehearse(task: MemoryTask, arm: Arm) -> None:
    """The same with one layer and few tokens, so that what libraries set up once is not counted."""
    short = msgspec.structs.replace(
        task.bench, context=min(task.bench.context, REHEARSAL_TOKENS), seed=task.bench.seed + 1
    )
    surveyed = surveyed_layers(MemoryTask(bench=short, layers=task.layers[:1]))
    held = Holding.build(short, arm, surveyed, footprint(surveyed[0].shape.device))
    held.decode([new_token(surveyed[0].shape, short.seed)])


@dataclass(frozen=True)
class Holding:
    """An arm after prefill, when the run's exact cache has been let go."""

    layers: list[MethodLayer]
    exact_storages: set[int]
    prefill_peak_bytes: int

    @classmethod
    def build(
        cls, bench: Bench, arm: Arm, surveyed: tuple[SurveyedLayer, ...], counter: Footprint
    ) -> Holding:
        """Fill an exact cache and let the arm take it over."""
        launch = bench.kernels.get(arm.label)
        kernel = None if launch is None else KernelConfig(**launch)
        method = parse(arm.method).resolved(surveyed[0].shape.device)
        cache = ExactCache([layer.shape for layer in surveyed])
        synthetic_fill(cache, bench.context, bench.seed)
        exact = set(storages(rows for view in cache.views for rows in (view.k, view.v)))
        counter.restart_peak()
        layers = build_layers(method, cache, surveyed, kernel)
        prefill_peak_bytes = counter.peak_bytes()
        del cache
        gc.collect()
        counter.restart_peak()
        return cls(layers, exact, prefill_peak_bytes)

    def decode(self, inputs: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """One step of every layer, one after the other."""
        with torch.no_grad():
            for layer, (q, k, v) in zip(self.layers, inputs, strict=True):
                layer.decode(q, k, v)

    def tensors(self) -> Iterator[Tensor]:
        """Everything that the arm says it keeps."""
        for layer in self.layers:
            yield from layer.tensors()


def surveyed_layers(task: MemoryTask) -> tuple[SurveyedLayer, ...]:
    """The survey again, from the task: no model is loaded here."""
    if not task.layers:
        raise AttnbenchError("a memory task needs the layers that the pilot surveyed")
    return tuple(SurveyedLayer(_shape(task.bench, facts), facts.window) for facts in task.layers)


def _shape(bench: Bench, facts: LayerFacts) -> LayerShape:
    return LayerShape(
        batch=bench.batch,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        capacity=bench.context + 1,
        dtype=getattr(torch, bench.dtype),
        device=torch.device(bench.device),
        layer=facts.layer,
        scale=facts.scale,
    )


def new_token(shape: LayerShape, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [B,H,1,D], k and v [B,Hkv,1,D] of one decoded token, drawn from the seed."""
    generator = torch.Generator(shape.device).manual_seed(seed + shape.layer)

    def noise(heads: int) -> Tensor:
        size = (shape.batch, heads, 1, shape.head_dim)
        drawn = torch.randn(size, generator=generator, device=shape.device)
        return drawn.to(shape.dtype)

    return noise(shape.heads), noise(shape.kv_heads), noise(shape.kv_heads)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of every distinct storage behind these tensors, by address."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors, shared storages counted once and views in full."""
    return sum(storages(tensors).values())
