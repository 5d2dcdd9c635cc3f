"""Sessions, bandwidth and memory on a real GPU."""

from __future__ import annotations

import msgspec
import pytest
import torch

from attnbench.measure.bandwidth import LEAST_SHARE, read_bandwidth
from attnbench.measure.clock import CudaEventClock
from attnbench.measure.device import has_gpu
from attnbench.measure.nvml import AllocatorProbe
from attnbench.measure.overseer import Overseer
from attnbench.measure.session import compile_for, walk_cells, worker_device
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import LayerFacts, MemoryTask, PilotTask, SessionTask
from attnbench.measure.world import World
from attnbench.protocol.cell import Mode, Scope
from tests.measure.broken import Broken, GoodLayer
from tests.measure.simulated import Muted
from tests.measure.standing import CPU, STEPS, arm, cell, standing, with_arms
from tests.models.tiny import COMMON, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CUDA = msgspec.structs.replace(CPU, device="cuda", dtype="bfloat16")
METHODS = ("sdpa", "sdpa_repeat_kv", "eager_repeat_kv", "flash_decode", "int8_kv", "zero_cost")
GRAPH_CELL = {"mode": Mode.GRAPH}


WAYS = [(s, m) for s in Scope for m in Mode if (s, m) != (Scope.ATTENTION, Mode.COMPILED)]


@pytest.mark.parametrize(("scope", "mode"), WAYS)
def test_a_session_runs_every_arm_and_leaves_the_cache_as_it_was(scope, mode):
    bench = with_arms(*METHODS, bench=CUDA)
    with standing(bench, "qwen3") as stands:
        before = stands.cache.sha256()
        plan = cell(bench, scope, mode)
        compile_for(stands, (plan,), Muted())
        result = walk_cells(stands, (plan,), STEPS, Muted(), World(stands.device).settle())
        assert stands.cache.sha256() == before == result.cache_sha256
    (walked,) = result.cells
    assert walked.failures == {}
    assert len(walked.samples.visits) == 4 * len(METHODS)
    assert all(us > 0 for visit in walked.samples.visits for us in visit.steps_us)
    # The host's clock starts before the first event and stops after the last.
    assert all(visit.wall_us >= sum(visit.steps_us) for visit in walked.samples.visits)


def test_every_arm_of_a_captured_cell_names_its_kernels():
    bench = with_arms(*METHODS, bench=CUDA)
    with standing(bench, "qwen3") as stands:
        result = walk_cells(
            stands, (cell(bench, **GRAPH_CELL),), STEPS, Muted(), World(stands.device).settle()
        )
    samples = result.cells[0].samples
    assert set(samples.kernels) == set(METHODS)
    assert all(names == tuple(sorted(names)) for names in samples.kernels.values())
    assert any("decode_kernel" in name for name in samples.kernels["flash_decode"])
    assert "kernels_not_exposed" not in samples.environment


class CodesPages(Broken):
    """Counts, on the device, how often it did what recurs."""

    class spoilt(GoodLayer):  # noqa: N801
        def prefill(self, cache, q=None) -> None:
            super().prefill(cache, q)
            self.coded = torch.zeros(1, device=cache.k.device)

        def maintain(self) -> None:
            self.coded.add_(1)

    @property
    def period(self) -> int:
        return 3


def test_what_follows_the_last_step_of_a_period_is_replayed_apart():
    with standing(with_arms("sdpa", bench=CUDA), "qwen3") as bench:
        spec = "tests.measure.test_gpu_session:CodesPages"
        ready = bench.set_up(arm(spec, "x"), Scope.ATTENTION, Mode.GRAPH)
        (coded,) = {float(layer._layer.coded) for layer in ready._layers}
        for step in range(1, 8):
            ready.step()
            assert {float(layer._layer.coded) for layer in ready._layers} == {coded + step // 3}


@pytest.mark.parametrize("broken", ["Nan", "Transposed", "Damages", "OutOfMemory"])
def test_a_broken_arm_fails_alone_in_a_graph(broken):
    bench = with_arms("sdpa", broken, "zero_cost", bench=CUDA)
    with standing(bench, "qwen3") as stands:
        result = walk_cells(
            stands, (cell(bench, **GRAPH_CELL),), STEPS, Muted(), World(stands.device).settle()
        )
    (walked,) = result.cells
    assert set(walked.failures) == {broken}
    assert len(walked.samples.visits) == 4 * 2


def test_visits_carry_the_state_of_the_gpu_before_and_after():
    bench = with_arms("sdpa", "zero_cost", bench=CUDA)
    with standing(bench, "qwen3") as stands:
        result = walk_cells(
            stands, (cell(bench, **GRAPH_CELL),), STEPS, Muted(), World(stands.device).settle()
        )
    for visit in result.cells[0].samples.visits:
        assert visit.gpu["sm_clock_mhz"] > 0
        assert visit.gpu["before_temperature_c"] > 0


def test_read_bandwidth_reaches_most_of_what_memory_clock_and_bus_give():
    assert has_gpu()
    facts, probe, remarks = worker_device(torch.device("cuda"))
    assert set(remarks) == {"not_exposed"}
    assert isinstance(probe, AllocatorProbe)
    found = read_bandwidth(facts, CudaEventClock())
    assert found.note == ""
    assert LEAST_SHARE <= found.gb_s / found.theoretical_gb_s <= 1


def test_pilot_session_and_memory_run_in_processes_of_their_own(tmp_path):
    build("qwen3", {**COMMON, "head_dim": 64}).to(torch.bfloat16).save_pretrained(tmp_path)
    bench = msgspec.structs.replace(with_arms(*METHODS, bench=CUDA), model=str(tmp_path))
    cells = tuple(cell(bench, scope, Mode.GRAPH) for scope in Scope)
    pilot = run_task(
        PilotTask(bench=bench, cells=cells, steps=STEPS), Overseer(lambda *_: None), 300
    )
    assert {label for label, found in pilot.arms.items() if found.failure} == set()
    assert len(pilot.arms["flash_decode"].launches) > 1
    assert pilot.device["processors"] > 0

    kernels = {label: found.fastest for label, found in pilot.arms.items() if found.fastest}
    bench = msgspec.structs.replace(bench, kernels=kernels)
    task = SessionTask(bench=bench, session=0, cells=cells, steps=STEPS)
    session = run_task(task, Overseer(lambda *_: None), 300)
    assert [walked.failures for walked in session.cells] == [{}, {}]

    memory = run_task(MemoryTask(bench=bench, layers=pilot.layers), Overseer(lambda *_: None), 300)
    assert memory.failures == {}
    assert memory.arms["sdpa"].keeps_exact_cache
    assert not memory.arms["int8_kv"].keeps_exact_cache
    assert memory.arms["sdpa"].reserved_bytes > 0


def test_what_a_method_hides_on_the_gpu_is_allocated_though_not_reachable():
    layers = (LayerFacts(layer=0, heads=8, kv_heads=8, head_dim=64, scale=0.125, window=None),)
    exact_bytes = 2 * 2 * 8 * 4096 * 64 * 2  # k and v, batch, KV heads, rows, dimension, bfloat16
    bench = msgspec.structs.replace(CUDA, arms=(arm("Quarter"), arm("Hides")), context=4095)
    memory = run_task(MemoryTask(bench=bench, layers=layers), Overseer(lambda *_: None), 300)
    honest, hiding = memory.arms["Quarter"], memory.arms["Hides"]
    assert honest.reachable_bytes == hiding.reachable_bytes == exact_bytes // 2
    assert honest.allocated_bytes == pytest.approx(exact_bytes // 2, rel=0.01)
    assert hiding.allocated_bytes == pytest.approx(exact_bytes * 3 // 2, rel=0.01)
