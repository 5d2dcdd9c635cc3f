"""The largest context that fits is tried, and what runs out of memory takes nothing down."""

from __future__ import annotations

import ctypes
import os
import signal
import weakref

import msgspec
import pytest

from attnbench.measure import fit
from attnbench.measure.answers import Fit, FitResult
from attnbench.measure.fit import Held, exact_bytes_a_token, predicted, run_fit
from attnbench.measure.memory import storages, surveyed_layers
from attnbench.measure.tasks import FitTask, LayerFacts, MemoryTask
from attnbench.models.adapter import ExactCache
from tests.measure.standing import CPU, arm

LAYERS = tuple(
    LayerFacts(layer=i, heads=8, kv_heads=4, head_dim=64, scale=0.125, window=None)
    for i in range(3)
)
TOKEN_BYTES = 3 * 2 * 2 * 4 * 64 * 4  # layers, k and v, batch, KV heads, dim, float32
MIB = 1 << 20
FAKE = {"weight_bytes": 10 * MIB, "limit_bytes": 110 * MIB, "resolution": 0.02, "most": 1 << 20}


def task(*methods: str, **changes) -> FitTask:
    bench = msgspec.structs.replace(CPU, arms=tuple(arm(method) for method in methods))
    return FitTask(bench=bench, layers=LAYERS, **{**FAKE, **changes})


def run(task: FitTask) -> FitResult:
    return run_fit(task, lambda *_: None)


class HeapFigures(ctypes.Structure):
    """What glibc's `mallinfo2` answers."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def free_heap_bytes() -> int:
    """What this process has taken from the system and uses no more: a trial, which is a copy of it,
    may fill that before any limit is felt."""
    asked = ctypes.CDLL(None).mallinfo2
    asked.restype = HeapFigures
    return asked().fordblks


def test_an_exact_cache_fits_up_to_the_bytes_that_weights_leave_and_as_predicted():
    spare = free_heap_bytes() / TOKEN_BYTES
    found = run(task("sdpa")).arms["sdpa"]
    assert found.bytes_a_token == TOKEN_BYTES
    assert found.keeps_exact_cache
    assert found.predicted == pytest.approx(100 * MIB / TOKEN_BYTES, rel=0.01)
    assert 0.94 * found.predicted < found.context < 1.06 * found.predicted + spare
    assert found.context < found.fails_at <= found.context * 1.021 + 1
    failed = [trial for trial in found.trials if trial.why]
    assert failed
    assert all("memory" in trial.why for trial in failed)


def test_a_limit_twice_as_high_is_a_context_twice_as_long(monkeypatch):
    line = by_line(monkeypatch, lambda context: context * TOKEN_BYTES)
    low, high = (line(task("sdpa", limit_bytes=limit * MIB)) for limit in (110, 210))
    assert high.context == pytest.approx(2 * low.context, rel=0.03)


def test_an_arm_that_keeps_a_quarter_is_predicted_with_one_exact_layer_passing_through():
    held = [
        Held(reachable_bytes=context * TOKEN_BYTES // 4 + MIB) for context in fit.SHORT_CONTEXTS
    ]
    found = predicted(task("Quarter"), fit.SHORT_CONTEXTS, held)
    assert found.fixed_bytes == MIB
    assert found.context == int(99 * MIB / (TOKEN_BYTES / 4 + TOKEN_BYTES / 3))
    assert exact_bytes_a_token(task("Quarter")) == TOKEN_BYTES


def test_an_arm_that_does_not_run_has_its_reason_and_the_others_their_fit(monkeypatch):
    monkeypatch.setattr(fit, "SHORT_CONTEXTS", (64, 128))
    absent = "sdpa,backend=cudnn"
    result = run(task(absent, "OutOfMemory", "sdpa", limit_bytes=12 * MIB, resolution=0.5))
    assert result.failures[absent].type == "Unsupported"
    assert result.arms["OutOfMemory"].context == 0
    assert result.arms["sdpa"].context > 0
    assert result.free_before_bytes > 0
    assert result.free_after_bytes > 0


def by_line(monkeypatch, size):
    """Trials without a process: contexts of which `size` exceeds the limit do not fit."""

    def held(work_task, arm):
        needed = size(work_task.bench.context)
        if needed > work_task.limit_bytes - work_task.weight_bytes:
            return Held(out_of_memory="no memory left")
        return Held(reachable_bytes=needed, peak_bytes=needed, keeps_exact_cache=True)

    monkeypatch.setattr(fit, "held_of", held)
    monkeypatch.setattr(fit, "in_child", lambda work, kind: work())
    return lambda work_task: run(work_task).arms["sdpa"]


def test_memory_that_grows_faster_than_predicted_is_found_out_by_trying(monkeypatch):
    found = by_line(monkeypatch, lambda n: n * TOKEN_BYTES + (n // 2000) * 8 * MIB)(task("sdpa"))
    assert found.context < found.predicted
    assert found.fails_at - found.context <= max(1, 0.02 * found.context)


def test_what_always_fits_is_tried_up_to_the_most_and_has_no_failure(monkeypatch):
    found = by_line(monkeypatch, lambda context: MIB)(task("sdpa", most=4096))
    assert (found.context, found.fails_at) == (4096, 0)


def test_weights_beyond_the_limit_leave_room_for_nothing(monkeypatch):
    found = run(task("sdpa", weight_bytes=200 * MIB, resolution=0.9)).arms["sdpa"]
    assert found.context == 0
    assert "weights alone" in found.trials[-1].why


@pytest.mark.parametrize(
    ("number", "is_memory"),
    [(signal.SIGKILL, True), (signal.SIGTERM, False)],
)
def test_a_child_that_the_system_ends_for_memory_is_a_context_that_does_not_fit(
    monkeypatch, number, is_memory
):
    monkeypatch.setattr(fit, "_held", lambda *_: os.kill(os.getpid(), number))
    result = run(task("sdpa", resolution=1.0))
    if is_memory:
        assert result.arms["sdpa"].context == 0
    else:
        assert "SIGTERM" in result.failures["sdpa"].message


def test_a_fit_survives_its_way_through_json():
    found = Fit(
        context=1, fails_at=2, predicted=3, bytes_a_token=4.0, fixed_bytes=5.0,
        keeps_exact_cache=True, trials=(),
    )  # fmt: skip
    result = FitResult(arms={"a": found}, failures={}, free_before_bytes=1, free_after_bytes=2)
    assert msgspec.json.decode(msgspec.json.encode(result), type=FitResult) == result


def test_layers_are_handed_over_one_by_one_so_that_a_small_cache_never_holds_a_whole_exact_one(
    monkeypatch,
):
    made, alive = [], []

    class Noted(ExactCache):
        def __init__(self, shapes):
            alive.append(sum(cache() is not None for cache in made))
            super().__init__(shapes)
            made.append(weakref.ref(self))

    monkeypatch.setattr(fit, "ExactCache", Noted)
    surveyed = surveyed_layers(MemoryTask(bench=CPU, layers=LAYERS))
    layers, exact = fit._taken_over(CPU, arm("Quarter"), surveyed)
    assert alive == [0, 0, 0]
    assert len(layers) == 3
    assert not exact & set(storages(tensor for layer in layers for tensor in layer.tensors()))
