"""A session: the cells of one bench, walked one after the other in this process."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import msgspec
import torch

from attnbench.errors import Unsupported
from attnbench.measure.alone import attention_alone
from attnbench.measure.answers import Bandwidth, CellSamples, SessionResult
from attnbench.measure.bandwidth import read_bandwidth, readers
from attnbench.measure.clock import device_clock
from attnbench.measure.device import DeviceFacts, cpu_facts, cuda_facts, environment
from attnbench.measure.events import Kept, Talk, Wanted
from attnbench.measure.household import Household
from attnbench.measure.influence import probe_arms
from attnbench.measure.nvml import (
    AllocatorProbe,
    GpuProbe,
    NullProbe,
    Nvml,
    NvmlProbe,
    unasked,
)
from attnbench.measure.phases import Phases
from attnbench.measure.recheck import rechecked
from attnbench.measure.tasks import CellPlan, SessionTask, StepCounts
from attnbench.measure.visits import Walk, Walker
from attnbench.measure.workbench import Workbench, open_bench
from attnbench.measure.world import World
from attnbench.protocol.cell import Mode, SessionSamples


def run_session(task: SessionTask, talk: Talk, household: Household | None = None) -> SessionResult:
    """The raw samples of every cell of the task; a worker that does more tasks keeps `household`
    for the next."""
    talk.progress(0, 0, f"loading {task.bench.model}")
    phases = Phases()
    household = household or Household(task.bench)
    with ExitStack() as stack:
        with phases("load"):
            world = household.world
            bench = stack.enter_context(open_bench(task.bench, household.model))
        with phases("compile"):
            compile_for(bench, task.cells, talk)
        world.settle(bench.loaded.module)
        result = walk_cells(bench, task.cells, task.steps, talk, world, phases)
        if result.probed:
            with phases("probes"):
                mode, first = task.cells[0].mode, task.session == 0
                result = with_probes(bench, result, mode, talk, world, growing=first)
    return msgspec.structs.replace(result, phases_s=phases.seconds())


def compile_for(bench: Workbench, cells: tuple[CellPlan, ...], talk: Talk) -> None:
    """Compile the model where a cell runs it compiled, before an arm can be there."""
    if any(plan.mode is Mode.COMPILED for plan in cells):
        talk.progress(0, 0, "compiling the model's layers")
        bench.compile()


def said_of(bench: Workbench) -> dict[str, str | int]:
    """Of a compiled model: its graphs, and how many products of a step run by own kernels."""
    if bench.compiled is None:
        return {}
    own = bench.compiled.products.total()
    said: dict[str, str | int] = {"compiled_graphs": bench.compiled.graphs}
    if own:
        said |= {"own_products": own, "products_from": bench.bench.products_source}
    return said


def with_probes(
    bench: Workbench,
    result: SessionResult,
    mode: Mode,
    talk: Talk,
    world: World,
    *,
    growing: bool = False,
) -> SessionResult:
    """With what is asked of every arm when all cells are walked: the cache is replaced for it.
    `growing`: what its steps cost while a cache grows, too, which one session of a run can tell."""
    probed = probe_arms(bench, mode, result, talk, world, growing=growing)
    return msgspec.structs.replace(
        result,
        influence=probed.influence,
        replays=probed.replays,
        surprises=probed.surprises,
        growth=probed.growth,
        failures=probed.failures,
    )


def walk_cells(
    bench: Workbench,
    cells: tuple[CellPlan, ...],
    steps: StepCounts,
    talk: Talk,
    world: World,
    phases: Phases | None = None,
) -> SessionResult:
    """Walk the cells on a bench that stands, its bandwidth measured first."""
    talk.progress(0, 0, "read bandwidth")
    phases = phases or Phases()
    facts, probe, remarks = worker_device(bench.device)
    with phases("load"):
        ready = readers(facts)
    with phases("bandwidth"):
        bandwidth = read_bandwidth(facts, device_clock(bench.device), ready)
        del ready  # gigabytes
        bench.reclaim()
    said = {
        **environment(facts),
        "threads": torch.get_num_threads(),
        "fill": bench.bench.fill.value,
        **said_of(bench),
        **remarks,
    }
    walked, probed = [], True
    for number, plan in enumerate(cells):
        cell = _Cell(bench, plan, number, steps, probe, bandwidth, said)
        samples, wanted = cell.walked(talk, world, phases)
        walked.append(samples)
        probed &= wanted.probe
    return SessionResult(
        cells=tuple(walked),
        probed=probed,
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
        probe = AllocatorProbe(NullProbe())
        return facts_without_nvml(device), probe, {"nvml": refusal.message}
    remarks = {"not_exposed": ", ".join(unasked(nvml))}
    return cuda_facts(nvml), AllocatorProbe(NvmlProbe(nvml)), remarks


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


@dataclass(frozen=True)
class _Cell:
    """One cell of a session, to be walked."""

    bench: Workbench
    plan: CellPlan
    number: int
    steps: StepCounts
    probe: GpuProbe
    bandwidth: Bandwidth
    said: dict[str, str | int | float]

    def walked(self, talk: Talk, world: World, phases: Phases) -> tuple[CellSamples, Wanted]:
        """What its steps took, and whether those that the parent wanted checked were right."""
        walk = self._walker(talk, world, phases).walk(self.plan.schedule)
        with phases("checks"):
            wanted = self._wanted(walk, talk)
            checks = rechecked(self.bench, self.plan.mode, walk, wanted, talk, world)
        with phases("breakdown"):
            attention_us, why = attention_alone(
                self.bench, self.plan, walk, self.steps, talk, world
            )
        samples = CellSamples(
            scope=self.plan.scope,
            mode=self.plan.mode,
            samples=self._samples(walk, {"breakdown_missing": why} if why else {}),
            timed_steps=walk.timed_steps,
            read_bytes=walk.read_bytes,
            failures=walk.failures,
            checks=checks,
            set_up_us=walk.set_up_us,
            attention_us=attention_us,
        )
        return samples, wanted

    def _walker(self, talk: Talk, world: World, phases: Phases) -> Walker:
        bench, plan = self.bench, self.plan
        return Walker(
            arms={
                arm.label: partial(bench.set_up, arm, plan.scope, plan.mode)
                for arm in bench.bench.arms
            },
            inputs=bench,
            clock=device_clock(bench.device),
            probe=self.probe,
            guard=world,
            steps=self.steps,
            reclaim=bench.reclaim,
            talk=talk,
            draw=secrets.randbelow,
            phases=phases,
            cell=self.number,
            title=f"{plan.scope.value}, {plan.mode.value}",
        )

    def _wanted(self, walk: Walk, talk: Talk) -> Wanted:
        """Which timed steps the parent picks, now that all of them are over."""
        if not walk.kept:
            return Wanted(picks=())
        visits = {label: len(kept) for label, kept in walk.kept.items()}
        rehearsed = {label: tuple(which) for label, which in walk.rehearsed.items()}
        layers = len(self.bench.tables.shapes)
        return talk.ask(Kept(visits=visits, layers=layers, rehearsed=rehearsed, cell=self.number))

    def _samples(self, walk: Walk, remarks: dict[str, str]) -> SessionSamples:
        schedule = self.plan.schedule
        return SessionSamples(
            session=schedule.session,
            seed=schedule.seed,
            warmup_us=walk.warmup_us,
            visits=tuple(walk.visits),
            bandwidth_gb_s=self.bandwidth.gb_s,
            witness=walk.witness,
            kernels={label: names for label, names in walk.kernels.items() if names},
            environment={**self.said, **without_kernels(walk), **remarks},
        )


def without_kernels(walk: Walk) -> dict[str, str]:
    """A remark on the arms whose kernels the driver does not tell, and why."""
    said = "; ".join(f"{label}: {why}" for label, why in walk.unnamed.items() if why)
    return {"kernels_not_exposed": said} if said else {}
