"""What NVML says of one GPU: its state beside a visit, its facts, its processes.

A field that the GPU does not support is absent, never 0, and `unasked` names it. NVML is asked by
UUID, because its order of GPUs need not be CUDA's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from attnbench.errors import Unsupported

State = dict[str, float | int | str]
NVML_SUCCESS = 0
INTEGERS = {1: "uiVal", 2: "ulVal", 3: "ullVal"}  # by NVML's number of a field's type


class GpuProbe(Protocol):
    """Reads the state of the device that is measured."""

    def read(self) -> State:
        """Clocks, power, temperature, throttle bits, other processes: what can be asked."""


class NullProbe:
    """For devices without such a state."""

    def read(self) -> State:
        return {}


@dataclass(frozen=True)
class Nvml:
    """An initialised NVML and the handle of one GPU."""

    api: Any
    handle: Any

    @classmethod
    def by_uuid(cls, uuid: str) -> Nvml:
        """The GPU with this UUID ("GPU-..."); raises `Unsupported` where NVML cannot be asked."""
        api = load_nvml()
        return cls(api, _asked(api, lambda: api.nvmlDeviceGetHandleByUUID(uuid)))

    @classmethod
    def by_index(cls, index: int) -> Nvml:
        """The GPU with this number in PCI order; raises `Unsupported` likewise."""
        api = load_nvml()
        return cls(api, _asked(api, lambda: api.nvmlDeviceGetHandleByIndex(index)))

    def ask(self, question: str, *arguments: object) -> Any | None:
        """The answer of `nvml<question>(handle, ...)`; None where this GPU or driver has none."""
        function = getattr(self.api, f"nvml{question}", None)
        if function is None:
            return None
        try:
            return function(self.handle, *arguments)
        except self.api.NVMLError:
            return None

    def text(self, question: str) -> str:
        """Likewise as text, empty where there is none; old bindings answer in bytes."""
        answer = self.ask(question)
        return answer.decode() if isinstance(answer, bytes) else str(answer or "")


def load_nvml() -> Any:
    """An initialised `pynvml`; raises `Unsupported` saying what is missing."""
    try:
        import pynvml
    except ImportError as error:
        raise Unsupported(
            "the GPU's state cannot be read: pynvml is not installed",
            hint="pip install nvidia-ml-py",
        ) from error
    _asked(pynvml, pynvml.nvmlInit)
    return pynvml


def _asked(api: Any, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except api.NVMLError as error:
        meaning = _MEANINGS.get(getattr(error, "value", 0), "its driver does not answer")
        raise Unsupported(
            f"there is no GPU here that can be measured: {meaning} (NVML: "
            f"{str(error).removeprefix('NVML ')})",
            hint="nvidia-smi tells whether there is an NVIDIA GPU here and its driver answers; "
            "without one, leave --device out",
        ) from error


_MEANINGS = {  # by the number of NVML's error
    2: "no GPU has this number",
    6: "no GPU has this number or UUID",
    9: "the NVIDIA driver is not loaded",
    12: "no NVIDIA driver is installed",
    18: "the NVIDIA driver and its library are of different versions; a restart mends that",
}


def refuse_mig(nvml: Nvml) -> None:
    """Raise `Unsupported` where the GPU is split by MIG, or is itself a slice of one."""
    current, _ = nvml.ask("DeviceGetMigMode") or (0, 0)
    if current or nvml.ask("DeviceIsMigDeviceHandle"):
        raise Unsupported(
            "MIG is on: a slice has a part of the GPU's memory bandwidth and shares its clocks and "
            "power with the other slices, so that what is measured depends on them",
            hint="measure on a whole GPU; "
            f"`{mig_off(nvml.text('DeviceGetUUID'))}` ends the slices of this one",
        )


def mig_off(uuid: str) -> str:
    """The command that makes a split GPU whole again."""
    return f"sudo nvidia-smi -i {uuid} -mig 0"


def throttle_reasons(nvml: Nvml) -> int | None:
    """By its new name, and by the one that drivers before 535 know."""
    reasons: int | None = nvml.ask("DeviceGetCurrentClocksEventReasons")
    if reasons is None:
        reasons = nvml.ask("DeviceGetCurrentClocksThrottleReasons")
    return reasons


def _watts(milliwatts: float | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3


def ecc_errors(nvml: Nvml, kind: int) -> int | None:
    """Since the driver was loaded."""
    errors: int | None = nvml.ask("DeviceGetTotalEccErrors", kind, nvml.api.NVML_VOLATILE_ECC)
    return errors


def energy_mj(nvml: Nvml) -> int | None:
    """Millijoules since the driver was loaded. A read takes 4 ms on an H100, and the counter moves
    about every 100 ms: see `energy`."""
    spent: int | None = nvml.ask("DeviceGetTotalEnergyConsumption")
    return spent


def _other_processes(nvml: Nvml) -> int | None:
    processes = nvml.ask("DeviceGetComputeRunningProcesses")
    if not processes:
        return None  # this process holds a context, so an empty list means that none are shown
    # In a container NVML may know this process by another number, but it is one of them.
    return len(processes) - 1


# Counters run since the driver was loaded: it is their difference across a visit that tells.
# On an H200 all take microseconds but the thermal counter, 0.4 ms. The energy is not asked for: it
# takes 4 ms on an H100, and moves every 100 ms only, so that of one visit it tells nothing.
READINGS: Mapping[str, Callable[[Nvml], float | int | None]] = {
    "sm_clock_mhz": lambda nvml: nvml.ask("DeviceGetClockInfo", nvml.api.NVML_CLOCK_SM),
    "mem_clock_mhz": lambda nvml: nvml.ask("DeviceGetClockInfo", nvml.api.NVML_CLOCK_MEM),
    "power_w": lambda nvml: _watts(nvml.ask("DeviceGetPowerUsage")),  # mean of the last second
    "power_limit_w": lambda nvml: _watts(nvml.ask("DeviceGetEnforcedPowerLimit")),
    "temperature_c": lambda nvml: nvml.ask("DeviceGetTemperature", nvml.api.NVML_TEMPERATURE_GPU),
    "throttle_reasons": throttle_reasons,
    "ecc_corrected": lambda nvml: ecc_errors(nvml, nvml.api.NVML_MEMORY_ERROR_TYPE_CORRECTED),
    "ecc_uncorrected": lambda nvml: ecc_errors(nvml, nvml.api.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
    "other_processes": _other_processes,
}


def _fields(nvml: Nvml) -> dict[str, float | int | None]:
    """Power now, and how long power and heat have held the clock down: one call for all three."""
    api = nvml.api
    fields = {
        "power_now_w": api.NVML_FI_DEV_POWER_INSTANT,
        "power_throttled_ns": api.NVML_FI_DEV_PERF_POLICY_POWER,
        "heat_throttled_ns": api.NVML_FI_DEV_PERF_POLICY_THERMAL,
    }
    answers = nvml.ask("DeviceGetFieldValues", list(fields.values())) or ()
    values = {answer.fieldId: _field_value(answer) for answer in answers}
    found = {name: values.get(field) for name, field in fields.items()}
    return found | {"power_now_w": _watts(found["power_now_w"])}


def _field_value(answer: Any) -> int | None:
    """An integer as wide as NVML says it is; None where the field is not supported."""
    if answer.nvmlReturn != NVML_SUCCESS:
        return None
    value: int = getattr(answer.value, INTEGERS[answer.valueType])
    return value


def _answers(nvml: Nvml) -> dict[str, float | int | None]:
    return {name: reading(nvml) for name, reading in READINGS.items()} | _fields(nvml)


class NvmlProbe:
    """The state of one GPU by NVML, for a process that holds a CUDA context on it.

    `graphics_clock_mhz` is there only where it is not the SM clock.
    """

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml

    def read(self) -> State:
        answers = _answers(self._nvml)
        graphics = self._nvml.ask("DeviceGetClockInfo", self._nvml.api.NVML_CLOCK_GRAPHICS)
        if graphics != answers["sm_clock_mhz"]:
            answers["graphics_clock_mhz"] = graphics
        return {name: value for name, value in answers.items() if value is not None}


def unasked(nvml: Nvml) -> tuple[str, ...]:
    """The readings that this driver or virtual machine does not give, by their names in a state.

    For the record: what they would have voided cannot be voided here. Other processes are seen
    only by one that holds a CUDA context itself, so ask from there.
    """
    return tuple(name for name, value in _answers(nvml).items() if value is None)


class AllocatorProbe:
    """Adds to another probe's state what torch's CUDA allocator had to do: `alloc_retries`.

    A retry frees the allocator's cache and synchronises the device, inside a step as elsewhere.
    Put it around the probe of a CUDA session, `AllocatorProbe(NvmlProbe(nvml))`, or around a
    `NullProbe` where NVML refuses.
    """

    def __init__(self, probe: GpuProbe) -> None:
        self._probe = probe

    def read(self) -> State:
        retries = _alloc_retries()
        return self._probe.read() | ({} if retries is None else {"alloc_retries": retries})


def _alloc_retries() -> int | None:
    """Since the process began; None where torch has no CUDA in use."""
    torch = sys.modules.get("torch")  # to import it here would cost a CPU parent seconds
    if torch is None or not torch.cuda.is_initialized():
        return None
    # A seventh of the time that `memory_stats` takes, which sorts all its figures first.
    retries: int | None = torch.cuda.memory_stats_as_nested_dict().get("num_alloc_retries")
    return retries


def process_bytes(nvml: Nvml) -> int | None:
    """GPU memory of this process, in bytes; None where NVML does not tell.

    In a container NVML may know this process by another number; alone on the GPU it is the one.
    """
    processes = nvml.ask("DeviceGetComputeRunningProcesses") or []
    mine = [p for p in processes if p.pid == os.getpid()] or processes
    return mine[0].usedGpuMemory if len(mine) == 1 else None
