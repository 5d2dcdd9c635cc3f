"""What NVML says of one GPU: its state beside a visit, its facts, its processes.

A field that the GPU does not support is absent, never 0. NVML is asked by UUID, because its order
of GPUs need not be CUDA's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from attnbench.errors import Unsupported

State = dict[str, float | int | str]


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
        raise Unsupported(
            f"NVML refused: {error}", hint="nvidia-smi tells whether the driver answers"
        ) from error


class NvmlProbe:
    """The state of one GPU by NVML."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml

    def read(self) -> State:
        api, ask = self._nvml.api, self._nvml.ask
        milliwatts = ask("DeviceGetPowerUsage")
        answers: Mapping[str, float | int | None] = {
            "sm_clock_mhz": ask("DeviceGetClockInfo", api.NVML_CLOCK_SM),
            "mem_clock_mhz": ask("DeviceGetClockInfo", api.NVML_CLOCK_MEM),
            "power_w": None if milliwatts is None else milliwatts / 1e3,
            "temperature_c": ask("DeviceGetTemperature", api.NVML_TEMPERATURE_GPU),
            "throttle_reasons": ask("DeviceGetCurrentClocksThrottleReasons"),
            "ecc_uncorrected": ask(
                "DeviceGetTotalEccErrors",
                api.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                api.NVML_VOLATILE_ECC,
            ),
            "other_processes": self._others(),
        }
        return {name: value for name, value in answers.items() if value is not None}

    def _others(self) -> int | None:
        processes = self._nvml.ask("DeviceGetComputeRunningProcesses")
        if not processes:
            return None  # this process holds a context, so an empty list means that none are shown
        # In a container NVML may know this process by another number, but it is one of them.
        return len(processes) - 1


def process_bytes(nvml: Nvml) -> int | None:
    """GPU memory of this process, in bytes; None where NVML does not tell.

    In a container NVML may know this process by another number; alone on the GPU it is the one.
    """
    processes = nvml.ask("DeviceGetComputeRunningProcesses") or []
    mine = [p for p in processes if p.pid == os.getpid()] or processes
    return mine[0].usedGpuMemory if len(mine) == 1 else None
