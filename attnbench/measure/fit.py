"""The largest context that fits, for each arm: tried in child processes, not computed.

A child holds what a decoding process would: as many bytes as the model's weights, the arm's layers
after a prefill, and one decoded token. The exact cache is filled and handed over one layer at a
time, so that an arm which keeps less is not charged for all of it. Running out of memory ends that
child alone, and gives everything back.
"""

from __future__ import annotations

import gc
import re
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from attnbench.errors import DoesNotFit, WorkerFailed
from attnbench.measure.answers import Fit, FitResult, FitTrial
from attnbench.measure.children import Ended, in_child
from attnbench.measure.device import device_facts
from attnbench.measure.events import Tell
from attnbench.measure.failing import arm_failure, is_out_of_memory
from attnbench.measure.footprint import footprint
from attnbench.measure.largest import largest
from attnbench.measure.memory import new_token, rehearse, storage_bytes, storages, surveyed_layers
from attnbench.measure.tasks import ArmFailure, Bench, FitTask, MemoryTask
from attnbench.measure.workbench import cheap_collections
from attnbench.methods.base import MethodLayer
from attnbench.methods.registry import parse
from attnbench.models.adapter import ExactCache, SurveyedLayer
from attnbench.models.step import build_layers
from attnbench.protocol.cell import Arm

SHORT_CONTEXTS = (512, 1024)  # of which the prediction is made
LEAST_CONTEXT = 64
STATUS = Path("/proc/self/status")
# How a child ends that ran out of memory where nobody could catch it.
OUT_OF_MEMORY_SIGNALS = (-signal.SIGKILL, -signal.SIGABRT)


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What an arm held of one context, or why it held nothing."""

    reachable_bytes: int = 0
    peak_bytes: int = 0
    keeps_exact_cache: bool = False
    out_of_memory: str = ""
    failure: ArmFailure | None = None


@dataclass(frozen=True)
class Prediction:
    """Bytes as a straight line over the context, and where that meets the limit."""

    context: int
    bytes_a_token: float
    fixed_bytes: float
    keeps_exact_cache: bool


def run_fit(task: FitTask, tell: Tell) -> FitResult:
    """The largest context of every arm, one after the other."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise WorkerFailed("memory is tried in forked children: CUDA must not be in use yet")
    arms: dict[str, Fit] = {}
    failures: dict[str, ArmFailure] = {}
    before = _free_bytes(task)
    with cheap_collections():
        for arm in task.bench.arms:
            found = Search(task, arm, tell).found()
            if isinstance(found, ArmFailure):
                failures[arm.label] = found
            else:
                arms[arm.label] = found
    return FitResult(
        arms=arms,
        failures=failures,
        free_before_bytes=before,
        free_after_bytes=_free_bytes(task),
    )


class Search:
    """One arm's largest context."""

    def __init__(self, task: FitTask, arm: Arm, tell: Tell) -> None:
        self._task = task
        self._arm = arm
        self._tell = tell
        self._trials: list[FitTrial] = []
        self._failure: ArmFailure | None = None

    def found(self) -> Fit | ArmFailure:
        """The fit, or why there is none: the arm does not run, whatever the memory."""
        short = [self._held(context) for context in SHORT_CONTEXTS]
        broken = next((held for held in short if held.failure), None)
        if broken is not None and broken.failure is not None:
            return broken.failure
        if any(held.out_of_memory for held in short):
            return self._searched(Prediction(SHORT_CONTEXTS[0], 0.0, 0.0, keeps_exact_cache=False))
        return self._searched(predicted(self._task, SHORT_CONTEXTS, short))

    def _searched(self, prediction: Prediction) -> Fit | ArmFailure:
        task = self._task
        edge = largest(
            self._fits,
            prediction.context,
            least=LEAST_CONTEXT,
            most=task.most,
            resolution=task.resolution,
        )
        return self._failure or Fit(
            context=edge.held,
            fails_at=edge.failed,
            predicted=prediction.context,
            bytes_a_token=prediction.bytes_a_token,
            fixed_bytes=prediction.fixed_bytes,
            keeps_exact_cache=prediction.keeps_exact_cache,
            trials=tuple(self._trials),
        )

    def _fits(self, context: int) -> bool:
        held = self._held(context)
        if held.failure is not None:  # it is no question of memory: nothing more is tried
            self._failure = held.failure
        why = held.out_of_memory or (held.failure.message if held.failure else "")
        self._trials.append(FitTrial(context=context, why=why, peak_bytes=held.peak_bytes))
        return not why

    def _held(self, context: int) -> Held:
        self._tell(len(self._trials), 0, f"{self._arm.label}: {context} tokens")
        bench = msgspec.structs.replace(self._task.bench, context=context)
        task = msgspec.structs.replace(self._task, bench=bench)
        found = in_child(lambda: held_of(task, self._arm), Held)
        if not isinstance(found, Ended):
            return found
        said = f"the process that held it ended {found.how}"
        if found.status in OUT_OF_MEMORY_SIGNALS:
            return Held(out_of_memory=said)
        return Held(
            failure=ArmFailure(type=WorkerFailed.__name__, message=said, hint="", during="fit")
        )


def predicted(task: FitTask, contexts: tuple[int, int], held: list[Held]) -> Prediction:
    """From what two contexts hold to the context that fills the limit."""
    (short, long), (less, more) = contexts, held
    a_token = (more.reachable_bytes - less.reachable_bytes) / (long - short)
    fixed = less.reachable_bytes - a_token * short
    keeps = more.keeps_exact_cache
    passing = 0.0 if keeps else exact_bytes_a_token(task) / len(task.layers)
    room = task.limit_bytes - task.weight_bytes - fixed
    rate = a_token + passing
    context = task.most if rate <= 0 else int(room / rate)
    return Prediction(max(0, min(context, task.most)), a_token, fixed, keeps)


def exact_bytes_a_token(task: FitTask) -> float:
    """Of keys and values of all layers and sequences."""
    itemsize = getattr(torch, task.bench.dtype).itemsize
    rows = sum(layer.kv_heads * layer.head_dim for layer in task.layers)
    return float(2 * task.bench.batch * rows * itemsize)


def held_of(task: FitTask, arm: Arm) -> Held:
    """Runs in a child: hold all of it once."""
    try:
        return _held(task, arm)
    except Exception as error:  # noqa: BLE001 - a method under test may raise anything
        if is_out_of_memory(error) or isinstance(error, DoesNotFit):
            return Held(out_of_memory=str(error).split("\n")[0][:200])
        return Held(failure=arm_failure(error, "fit"))


def _held(task: FitTask, arm: Arm) -> Held:
    memory = MemoryTask(bench=task.bench, layers=task.layers)
    rehearse(memory, arm)
    gc.collect()
    surveyed = surveyed_layers(memory)
    device = surveyed[0].shape.device
    counter = footprint(device)
    weights = limited(task, device)
    counter.restart_peak()
    layers, exact = _taken_over(task.bench, arm, surveyed)
    with torch.no_grad():
        for layer, each in zip(layers, surveyed, strict=True):
            layer.decode(*new_token(each.shape, task.bench.seed))
    peak_bytes = counter.peak_bytes() - (0 if weights is None else weights.nbytes)
    kept = [tensor for layer in layers for tensor in layer.tensors()]
    return Held(
        reachable_bytes=storage_bytes(kept),
        peak_bytes=peak_bytes,
        keeps_exact_cache=exact <= set(storages(kept)),
    )


def _taken_over(
    bench: Bench, arm: Arm, surveyed: tuple[SurveyedLayer, ...]
) -> tuple[list[MethodLayer], set[int]]:
    """The arm's layers, each built from an exact cache of its own that is then let go, and the
    addresses of all of these."""
    method = parse(arm.method).resolved(surveyed[0].shape.device)
    layers: list[MethodLayer] = []
    exact: set[int] = set()
    for each in surveyed:
        cache = ExactCache([each.shape])
        _fill(cache, bench)
        exact |= set(storages(rows for view in cache.views for rows in (view.k, view.v)))
        layers += build_layers(method, cache, (each,))
        del cache
        gc.collect()
    return layers, exact


def _fill(cache: ExactCache, bench: Bench) -> None:
    """The same noise in every token: bytes do not depend on it, and gigabytes take long to draw."""
    cache.reset(bench.context)
    for view in cache.views:
        generator = torch.Generator(view.k.device).manual_seed(bench.seed)
        for rows in (view.k, view.v):
            token = torch.empty_like(rows[:, :, :1]).normal_(generator=generator)
            rows[:, :, : bench.context] = token


def limited(task: FitTask, device: torch.device) -> torch.Tensor | None:
    """Leave this process what the limit leaves beside the weights, from now on; on a GPU the
    weights' bytes are really held, on a CPU they are taken off the limit."""
    if device.type == "cuda":
        share = min(1.0, task.limit_bytes / torch.cuda.get_device_properties(device).total_memory)
        torch.cuda.set_per_process_memory_fraction(share)
        return torch.empty(task.weight_bytes, dtype=torch.uint8, device=device)
    room = task.limit_bytes - task.weight_bytes
    if room <= 0:
        raise DoesNotFit("the weights alone are more than the limit")
    # Counts private memory, touched or not: the machine never has to find out.
    most = data_bytes() + room
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    return None


def data_bytes() -> int:
    """What counts against RLIMIT_DATA now."""
    found = re.search(r"^VmData:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise WorkerFailed("the system does not tell how much memory a process may write")
    return int(found[1]) * 1024


def _free_bytes(task: FitTask) -> int:
    return device_facts(task.bench.device).memory_free_bytes
