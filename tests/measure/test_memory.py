from __future__ import annotations

import os
import signal

import msgspec
import pytest
import torch

from attnbench.errors import AttnbenchError
from attnbench.measure import memory
from attnbench.measure.footprint import CpuFootprint, living_storage_bytes
from attnbench.measure.memory import run_memory, storage_bytes
from attnbench.measure.tasks import LayerFacts, MemoryTask
from tests.measure.standing import CPU, arm

LAYERS = tuple(
    LayerFacts(layer=i, heads=8, kv_heads=4, head_dim=64, scale=0.125, window=None)
    for i in range(3)
)
CONTEXT = 1023
EXACT_BYTES = 3 * 2 * 2 * 4 * 1024 * 64 * 4  # layers, k and v, batch, KV heads, rows, dim, float32
ROUNDING = 64 << 10


def figures(*methods: str, layers=LAYERS):
    arms = tuple(arm(method) for method in methods)
    bench = msgspec.structs.replace(CPU, arms=arms, context=CONTEXT)
    return run_memory(MemoryTask(bench=bench, layers=layers), lambda *_: None)


def test_an_arm_that_keeps_the_exact_cache_holds_exactly_its_bytes():
    found = figures("sdpa").arms["sdpa"]
    assert found.reachable_bytes == EXACT_BYTES
    assert found.allocated_bytes == pytest.approx(EXACT_BYTES, abs=ROUNDING)
    assert found.keeps_exact_cache


def test_eight_bits_instead_of_thirty_two_are_a_quarter_by_both_figures():
    found = figures("Quarter").arms["Quarter"]
    assert found.reachable_bytes == EXACT_BYTES // 4
    assert found.allocated_bytes == pytest.approx(EXACT_BYTES // 4, abs=ROUNDING)
    assert not found.keeps_exact_cache


def test_what_an_arm_hides_is_allocated_though_not_reachable():
    found = figures("Hides").arms["Hides"]
    assert found.reachable_bytes == EXACT_BYTES // 4
    assert found.allocated_bytes == pytest.approx(EXACT_BYTES * 5 // 4, abs=ROUNDING)


def test_the_peak_of_prefill_holds_the_exact_cache_beside_the_new_one():
    found = figures("Quarter").arms["Quarter"]
    assert found.prefill_peak_bytes >= EXACT_BYTES * 5 // 4
    assert found.prefill_peak_bytes < 3 * EXACT_BYTES
    assert found.decode_peak_bytes < found.prefill_peak_bytes


def test_arms_do_not_see_each_others_memory():
    alone = figures("sdpa").arms["sdpa"]
    after = figures("Hides", "Quarter", "sdpa").arms["sdpa"]
    assert after.allocated_bytes == pytest.approx(alone.allocated_bytes, abs=ROUNDING)


def test_sliding_layers_keep_their_exact_cache_in_every_arm():
    sliding = tuple(msgspec.structs.replace(layer, window=16) for layer in LAYERS[:2])
    found = figures("Quarter", layers=(*sliding, LAYERS[2])).arms["Quarter"]
    assert found.reachable_bytes == EXACT_BYTES * 2 // 3 + EXACT_BYTES // 3 // 4


def test_a_cpu_says_where_its_figures_come_from_and_has_no_reserve():
    found = figures("sdpa").arms["sdpa"]
    assert found.allocated_source == "living tensors"
    assert found.peak_source.startswith("peak of the resident set")
    assert found.reserved_bytes is None
    assert found.process_bytes > EXACT_BYTES


def test_an_arm_that_fails_does_not_take_the_others_down():
    result = figures("OutOfMemory", "sdpa")
    assert result.failures["OutOfMemory"].type == "DoesNotFit"
    assert set(result.arms) == {"sdpa"}


def test_a_child_that_the_system_kills_is_an_arm_without_figures(monkeypatch):
    monkeypatch.setattr(memory, "measure", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    failure = figures("sdpa").failures["sdpa"]
    assert failure.type == "WorkerFailed"
    assert "SIGKILL" in failure.message
    assert "memory" in failure.hint


def test_progress_names_each_arm():
    told = []
    bench = msgspec.structs.replace(CPU, arms=(arm("sdpa"), arm("Quarter")))
    run_memory(MemoryTask(bench=bench, layers=LAYERS), lambda *event: told.append(event))
    assert told == [(0, 2, "sdpa"), (1, 2, "Quarter")]


def test_without_surveyed_layers_there_is_nothing_to_measure():
    failure = figures("sdpa", layers=()).failures["sdpa"]
    assert failure.type == AttnbenchError.__name__


def test_storages_are_counted_once_and_views_in_full():
    whole = torch.zeros(100)
    assert storage_bytes([whole, whole[3:5], whole.view(10, 10)]) == 400
    assert storage_bytes([whole[:1], torch.zeros(2)]) == 408


def test_a_living_tensor_is_seen_wherever_it_hides():
    before = living_storage_bytes()
    hidden = {"deep": [torch.zeros(1 << 18)]}
    assert living_storage_bytes() - before == 1 << 20
    del hidden
    assert living_storage_bytes() == before


def test_the_resident_peak_outlives_what_made_it():
    counter = CpuFootprint()
    counter.restart_peak()
    torch.ones(8 << 20)
    assert counter.peak_bytes() >= 31 << 20  # the kernel counts in batches of pages


def test_threads_that_the_parent_has_used_do_not_hang_its_forked_children():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.zeros(1 << 24).add_(1)  # large enough to start a pool of threads
        assert figures("sdpa").arms["sdpa"].reachable_bytes == EXACT_BYTES
    finally:
        torch.set_num_threads(threads)


def test_a_compilers_stand_in_takes_no_memory():
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = living_storage_bytes()
    with FakeTensorMode():
        stand_in = torch.empty(1 << 20)
    assert living_storage_bytes() == before
    assert stand_in.numel() == 1 << 20


def test_what_a_map_of_torch_func_left_behind_is_counted_by_the_tensor_that_it_wraps():
    """Compiling FlexAttention leaves such tensors; they have no storage that could be asked for."""
    left: list[torch.Tensor] = []
    before = living_storage_bytes()

    def leaves(row: torch.Tensor) -> torch.Tensor:
        left.append(row)
        return row.sum()

    torch.func.vmap(leaves)(torch.zeros(4, 1 << 16))
    assert torch._C._functorch.is_batchedtensor(left[0])
    assert living_storage_bytes() - before == 1 << 20
    left.clear()
    assert living_storage_bytes() == before
