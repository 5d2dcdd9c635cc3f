"""A session: the cells of one bench, walked one after the other in this process."""

from __future__ import annotations

from functools import partial

import torch

from attnbench.errors import Unsupported
from attnbench.measure.bandwidth import read_bandwidth
from attnbench.measure.clock import device_clock
from attnbench.measure.device import DeviceFacts, cpu_facts, cuda_facts, environment
from attnbench.measure.nvml import GpuProbe, NullProbe, Nvml, NvmlProbe
from attnbench.measure.tasks import (
    Bandwidth,
    CellPlan,
    CellSamples,
    SessionResult,
    SessionTask,
    StepCounts,
)
from attnbench.measure.visits import Tell, Walk, Walker
from attnbench.measure.workbench import Workbench, open_bench
from attnbench.protocol.cell import SessionSamples


def run_session(task: SessionTask, tell: Tell) -> SessionResult:
    """The raw samples of every cell of the task."""
    tell(0, 0, f"loading {task.bench.model}")
    with open_bench(task.bench) as bench:
        return walk_cells(bench, task.cells, task.steps, tell)


def walk_cells(
    bench: Workbench, cells: tuple[CellPlan, ...], steps: StepCounts, tell: Tell
) -> SessionResult:
    """Walk the cells on a bench that stands, its bandwidth measured first."""
    tell(0, 0, "read bandwidth")
    facts, probe, remarks = worker_device(bench.device)
    bandwidth = read_bandwidth(facts, device_clock(bench.device))
    bench.reclaim()
    said = {
        **environment(facts),
        "threads": torch.get_num_threads(),
        "fill": bench.bench.fill.value,
        **remarks,
    }
    walked = tuple(_cell(bench, plan, steps, probe, bandwidth, said, tell) for plan in cells)
    return SessionResult(
        cells=walked,
        bandwidth=bandwidth,
        cache_sha256=bench.cache_sha256,
        model_identity=bench.loaded.info.identity,
        weight_bytes=bench.weight_bytes,
    )


def worker_device(device: torch.device) -> tuple[DeviceFacts, GpuProbe, dict[str, str]]:
    """Facts and probe of the device that torch uses here, and what could not be asked."""
    if device.type != "cuda":
        return cpu_facts(), NullProbe(), {}
    try:
        nvml = Nvml.by_uuid(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Unsupported as refusal:
        return facts_without_nvml(device), NullProbe(), {"nvml": refusal.message}
    return cuda_facts(nvml), NvmlProbe(nvml), {}


def facts_without_nvml(device: torch.device) -> DeviceFacts:
    """What torch knows of a GPU, clocks and bus left unknown."""
    properties = torch.cuda.get_device_properties(device)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return DeviceFacts(
        kind="cuda",
        name=properties.name,
        uuid=f"GPU-{properties.uuid}",
        memory_total_bytes=total_bytes,
        memory_free_bytes=free_bytes,
        memory_clock_mhz=0,
        bus_bits=0,
        driver="",
        cuda=torch.version.cuda or "",
        compute_capability=f"{properties.major}.{properties.minor}",
        cores=0,
    )


def _cell(
    bench: Workbench,
    plan: CellPlan,
    steps: StepCounts,
    probe: GpuProbe,
    bandwidth: Bandwidth,
    said: dict[str, str | int | float],
    tell: Tell,
) -> CellSamples:
    cell_name = f"{plan.scope.value}, {plan.mode.value}"
    walker = Walker(
        arms={
            arm.label: partial(bench.set_up, arm, plan.scope, plan.mode) for arm in bench.bench.arms
        },
        clock=device_clock(bench.device),
        probe=probe,
        steps=steps,
        reclaim=bench.reclaim,
        tell=lambda done, total, label: tell(done, total, f"{label} ({cell_name})"),
    )
    walk = walker.walk(plan.schedule)
    return CellSamples(
        scope=plan.scope,
        mode=plan.mode,
        samples=_samples(walk, plan, bandwidth, said),
        timed_steps=walk.timed_steps,
        read_bytes=walk.read_bytes,
        failures=walk.failures,
    )


def _samples(
    walk: Walk, plan: CellPlan, bandwidth: Bandwidth, said: dict[str, str | int | float]
) -> SessionSamples:
    return SessionSamples(
        session=plan.schedule.session,
        seed=plan.schedule.seed,
        warmup_us=walk.warmup_us,
        visits=tuple(walk.visits),
        bandwidth_gb_s=bandwidth.gb_s,
        witness=walk.witness,
        environment=said,
    )
