"""Kernels and energy are told where the machine tells them, and say so where it does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from msgspec import UNSET

from attnbench.errors import WorkerFailed
from attnbench.ledger import Ledger
from attnbench.measure.answers import CellProfile, EnergySample, ProfileResult, TaskResult
from attnbench.measure.conductor import Conductor
from attnbench.measure.energy import LEAST_S, PATIENCE_S, spent
from attnbench.measure.figures import FEWEST_UPDATES
from attnbench.measure.nvml import Nvml, energy_mj
from attnbench.measure.profiling import (
    KernelRun,
    busy_us,
    kernel_sums,
    run_profile,
    traced,
)
from attnbench.measure.tasks import ProfileTask
from attnbench.measure.verdicts import arm_results
from attnbench.protocol.breakdown import KernelSum, StepProfile
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.result import How
from tests.measure.fake_nvml import FakeNvml
from tests.measure.fake_workers import FakeWorkers, NoteTaker
from tests.measure.planned import EAGER, INT8, SDPA, ZERO, plan, request
from tests.measure.simulated import Muted
from tests.measure.standing import cell, standing, with_arms


@dataclass
class Gpu:
    """Spends `watts` while steps of `step_s` run; its counter shows every `period_s` what was spent
    by then. Time passes in steps and in reads."""

    watts: float = 400.0
    step_s: float = 0.005
    period_s: float = 0.1
    read_s: float = 0.004
    now_s: float = 0.0
    steps: int = 0
    waited: list[str] = field(default_factory=list)

    def launch(self, count: int) -> Gpu:
        self.now_s += count * self.step_s
        self.steps += count
        return self

    def synchronize(self) -> None:
        self.waited.append("step")

    def read_mj(self) -> int:
        moves = int(self.now_s / self.period_s)
        return int(1e3 * self.watts * moves * self.period_s)

    def now(self) -> float:
        return self.now_s


def sample(gpu: Gpu) -> EnergySample | None:
    return spent(gpu.launch, 5, gpu.read_mj, gpu.now)


def test_energy_over_many_moves_of_the_counter_is_power_times_time():
    gpu = Gpu()
    found = sample(gpu)
    assert found.seconds == pytest.approx(LEAST_S, abs=0.2)
    assert found.joules / found.seconds == pytest.approx(400, rel=0.06)
    assert found.joules / found.steps == pytest.approx(400 * gpu.step_s, rel=0.06)
    assert found.updates >= 15


def test_what_was_spent_before_the_first_move_is_not_counted():
    gpu = Gpu()
    gpu.now_s = 0.099  # nearly all of an interval is somebody else's
    assert sample(gpu).joules / 400 == pytest.approx(LEAST_S, abs=0.2)


def test_a_counter_that_does_not_move_or_cannot_be_read_tells_nothing():
    frozen = Gpu(period_s=1e9)
    assert sample(frozen) is None
    assert frozen.now_s < PATIENCE_S + 1
    assert spent(frozen.launch, 5, lambda: None, frozen.now) is None


def test_every_step_that_was_asked_for_is_waited_for():
    gpu = Gpu()
    sample(gpu)
    assert len(gpu.waited) == gpu.steps / 5


def test_the_counter_is_nvmls_and_absent_where_the_gpu_has_none():
    told = FakeNvml()
    assert energy_mj(Nvml(told, object())) == told.nvmlDeviceGetTotalEnergyConsumption(None)
    assert energy_mj(Nvml(object(), object())) is None


def test_kernels_are_added_up_by_name_and_overlap_counts_once():
    runs = [
        KernelRun("a", 0.0, 10.0),
        KernelRun("b", 5.0, 12.0),
        KernelRun("a", 20.0, 25.0),
        KernelRun("c", 21.0, 22.0),
    ]
    assert busy_us(runs) == 17.0
    assert busy_us([]) == 0.0
    assert kernel_sums(runs) == (
        KernelSum(name="a", launches=2, us=15.0),
        KernelSum(name="b", launches=1, us=7.0),
        KernelSum(name="c", launches=1, us=1.0),
    )


def test_a_machine_without_kernels_and_counter_says_why_and_keeps_its_bench(monkeypatch):
    bench = with_arms("sdpa", "zero_cost")
    plans = tuple(msgspec.structs.replace(cell(bench, scope), baseline="sdpa") for scope in Scope)
    with standing(bench) as stands:
        monkeypatch.setattr("attnbench.measure.profiling.open_bench", lambda *_: _already(stands))
        found = run_profile(ProfileTask(bench=bench, cells=plans), Muted(), _Household())
    step, attention = found.cells
    assert (step.steps, step.energy, step.failures) == (None, {}, {})
    assert "tells no kernel" in step.why
    assert (attention.steps, attention.why) == (None, "")


def test_a_cpu_traces_no_kernel():
    assert traced(lambda: None, 2) == []


class _Household:
    def model(self):
        raise AssertionError("the bench stands already")


class _already:  # noqa: N801 - a context manager
    def __init__(self, stands):
        self._stands = stands

    def __enter__(self):
        return self._stands

    def __exit__(self, *_):
        return None


class Profiled(FakeWorkers):
    """A GPU's workers: attention is 600 of A's 1000 µs, and INT8 saves energy."""

    updates = 20

    def _result(self, task) -> TaskResult:
        return self._profiled(task) if isinstance(task, ProfileTask) else super()._result(task)

    def _profiled(self, task: ProfileTask) -> ProfileResult:
        kernels = tuple(
            KernelSum(name=name, launches=10, us=us) for name, us in (("flash", 6e3), ("mm", 3e3))
        )
        return ProfileResult(
            cells=tuple(
                CellProfile(
                    scope=each.scope,
                    mode=each.mode,
                    steps=StepProfile(
                        steps=10, busy_us=9e3, kernels=kernels, attention=kernels[:1]
                    ),
                    why="",
                    energy={
                        "sdpa": self._spent(800.0),
                        INT8.label: self._spent(600.0),
                    },
                    failures={},
                )
                for each in task.cells
            )
        )

    def _spent(self, joules: float) -> EnergySample:
        return EnergySample(joules=joules, seconds=2.0, steps=2000, updates=self.updates)


def on_a_gpu(tmp_path, workers, **changes):
    described = plan(
        arms=(SDPA, EAGER, INT8, ZERO),
        device="cuda",
        request=request(batch=4, quality=None),
        **changes,
    )
    ledger = Ledger(tmp_path / "ledger.jsonl")
    told = NoteTaker()
    evidence = Conductor(described, ledger, told, run=workers).conduct()
    return {result.arm: result for result in arm_results(evidence)}, told


def test_on_a_gpu_the_profile_comes_after_all_sessions_and_fills_parts_and_energy(tmp_path):
    workers = Profiled()
    found, told = on_a_gpu(tmp_path, workers)
    assert list(workers.tasks) == ["pilot", 0, 1, 2, "memory", "profile"]
    assert told.stages[-1].startswith("profile")
    parts = found["sdpa"].breakdown
    assert parts.how is How.KERNELS
    assert (parts.attention_ms, parts.other_ms) == pytest.approx((0.6, 0.3))
    assert parts.gaps_ms == pytest.approx(parts.step_ms - 0.9)
    assert found["sdpa"].energy.joules_per_token == pytest.approx(0.1)
    assert found["sdpa#2"].energy == found["sdpa"].energy
    assert found[INT8.label].energy.joules_per_token == pytest.approx(0.075)
    assert found["zero_cost"].energy is UNSET


def test_energy_of_a_counter_that_moved_too_seldom_is_not_told(tmp_path):
    workers = Profiled()
    workers.updates = FEWEST_UPDATES - 1
    found, _ = on_a_gpu(tmp_path, workers)
    assert found["sdpa"].energy is UNSET
    assert found["sdpa"].breakdown.how is How.KERNELS


def test_a_profile_that_fails_costs_no_verdict(tmp_path):
    workers = Profiled({INT8.label: 800.0})
    workers.faults["profile"] = WorkerFailed("the worker was killed by SIGSEGV")
    found, _ = on_a_gpu(tmp_path, workers)
    assert found[INT8.label].verdict.latency == "FASTER"
    assert found["sdpa"].breakdown is UNSET


def test_a_cpu_asks_for_no_profile(tmp_path):
    workers = FakeWorkers()
    Conductor(plan(), Ledger(tmp_path / "l.jsonl"), NoteTaker(), run=workers).conduct()
    assert "profile" not in workers.tasks


def test_a_profile_survives_its_way_through_json():
    bench = with_arms("sdpa", "zero_cost")
    plans = (cell(bench, Scope.STEP, Mode.EAGER),)
    result = Profiled()._profiled(ProfileTask(bench=bench, cells=plans))
    assert msgspec.json.decode(msgspec.json.encode(result), type=TaskResult) == result
