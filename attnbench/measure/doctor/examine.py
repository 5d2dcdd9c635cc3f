"""Asks everything, in order, and says what a script shall learn of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from attnbench.errors import Exit, Unsupported, WorkerFailed
from attnbench.measure.device import (
    DeviceFacts,
    cpu_facts,
    cpu_name,
    cuda_facts,
    has_gpu,
    hidden_on_purpose,
    package_versions,
    visible_gpu,
)
from attnbench.measure.doctor import computing, cpu, gpu, gpu_state, limits, software
from attnbench.measure.doctor.finding import Finding
from attnbench.measure.doctor.ledger import ledger_findings
from attnbench.measure.doctor.system import System
from attnbench.measure.doctor.trial import Trial, tried
from attnbench.measure.nvml import Nvml, throttle_reasons
from attnbench.protocol.exit import gravest

Try = Callable[..., Trial]


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """All findings on measuring on `device` ("cuda" or "cpu"), which is called `name`."""

    device: str
    name: str
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> Exit:
        """13 the ledger is broken, 12 a measurement would not count, 0 it would."""
        return gravest(finding.exit_code for finding in self.findings)


@dataclass(frozen=True)
class Examiner:
    """Where to look, and how to try things out; `probe` measures the read bandwidth as well."""

    ledger: Path
    probe: bool = False
    system: System = field(default_factory=System)
    try_out: Try = tried

    def examine(self, device: str = "") -> Examination:
        """Every check for "cuda" or "cpu"; empty takes the GPU where there is one."""
        kind = device or chosen_device()
        name, findings = self._gpu() if kind == "cuda" else (cpu_name(), self._without_gpu(device))
        return Examination(
            device=kind,
            name=name,
            findings=(
                *findings,
                *_software(kind),
                *_host(self.system, kind),
                *ledger_findings(self.ledger),
            ),
        )

    def _gpu(self) -> tuple[str, tuple[Finding, ...]]:
        """The GPU is asked first what it does before something of this program's runs on it."""
        try:
            nvml = visible_gpu()
        except Unsupported as refusal:
            return "", (gpu.unanswered(refusal),)
        facts = cuda_facts(nvml)
        others = gpu_state.processes_on(nvml)
        idle = throttle_reasons(nvml)
        asked = (*_settings(nvml, facts), gpu_state.in_use(nvml, others))
        try:
            trial = self.try_out("cuda", probe=self.probe)
        except WorkerFailed as failure:
            unseen = gpu_state.processes(others, own_is_shown=False)
            return facts.name, (*asked, unseen, computing.collapsed(failure))
        return facts.name, (
            *asked,
            gpu_state.processes(others, own_is_shown=trial.own_is_shown),
            gpu_state.throttle(idle, trial.busy),
            gpu_state.clocks(nvml, trial.busy),
            gpu_state.exposure(trial.missing),
            computing.torch_on_cuda(trial, facts),
            computing.kernels(trial),
            *computing.probed(trial),
        )

    def _without_gpu(self, device: str) -> tuple[Finding, ...]:
        wanted = bool(device) or hidden_on_purpose()
        absent = gpu.absent(self.system, wanted=wanted)
        try:
            trial = self.try_out("cpu", probe=self.probe)
        except WorkerFailed as failure:
            return absent, computing.collapsed(failure)
        return (
            absent,
            computing.torch_on_cpu(trial, wanted=wanted),
            computing.kernels(trial),
            *computing.probed(trial),
        )


def _software(kind: str) -> Iterator[Finding]:
    versions = package_versions()
    yield from software.packages(versions)
    yield software.interpreter(versions, kind)
    yield software.switches(os.environ, kind)


def _host(system: System, kind: str) -> Iterator[Finding]:
    usable, facts = cpu.usable_cores(), cpu_facts()
    yield cpu.cores(usable)
    yield cpu.load(system, usable, kind)
    yield cpu.governor(system, kind)
    yield cpu.smt(system, kind)
    yield cpu.virtual(system)
    yield cpu.clock(system)
    yield limits.cpu_quota(system, usable)
    yield limits.free_memory(facts.memory_free_bytes, facts.memory_total_bytes)
    yield limits.swap(system)


def _settings(nvml: Nvml, facts: DeviceFacts) -> Iterator[Finding]:
    yield gpu.driver(facts)
    yield gpu.identity(facts)
    for check in (
        gpu.whole,
        gpu.compute_mode,
        gpu.persistence,
        gpu.display,
        gpu.ecc,
        gpu_state.power_limit,
        gpu_state.temperature,
    ):
        yield check(nvml)


def chosen_device() -> str:
    """As `decode` chooses; a GPU that is there and cannot be measured is what is asked about."""
    try:
        return "cuda" if has_gpu() else "cpu"
    except Unsupported:
        return "cuda"
