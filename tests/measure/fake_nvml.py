"""A stand-in for `pynvml`: one GPU of which every answer can be set, refused or unsupported."""

from __future__ import annotations

import os
from types import SimpleNamespace


class NVMLError(Exception):
    """As the binding's own."""


def process(pid: int, used: int | None = 1 << 30) -> SimpleNamespace:
    """A process on the GPU."""
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


class FakeNvml(SimpleNamespace):
    """Answers of an H100; a function set to an exception raises it."""

    def __init__(self, **answers: object) -> None:
        defaults = {
            "Init": None,
            "SystemGetDriverVersion": "580.1",
            "SystemGetCudaDriverVersion": 13000,
            "DeviceGetHandleByUUID": "handle",
            "DeviceGetHandleByIndex": "handle",
            "DeviceGetName": b"NVIDIA H100 80GB HBM3",
            "DeviceGetUUID": "GPU-1",
            "DeviceGetMemoryInfo": SimpleNamespace(total=80 << 30, free=79 << 30),
            "DeviceGetCudaComputeCapability": (9, 0),
            "DeviceGetMaxClockInfo": 2619,
            "DeviceGetMemoryBusWidth": 5120,
            "DeviceGetClockInfo": 1980,
            "DeviceGetPowerUsage": 350_500,
            "DeviceGetTemperature": 41,
            "DeviceGetCurrentClocksThrottleReasons": 0,
            "DeviceGetTotalEccErrors": 0,
            "DeviceGetComputeRunningProcesses": [process(os.getpid())],
        }
        super().__init__(
            NVMLError=NVMLError,
            NVML_CLOCK_SM=1,
            NVML_CLOCK_MEM=2,
            NVML_TEMPERATURE_GPU=0,
            NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
            NVML_VOLATILE_ECC=0,
        )
        self.asked: list[tuple[str, tuple[object, ...]]] = []
        for name, answer in (defaults | answers).items():
            setattr(self, f"nvml{name}", self.function(name, answer))

    def function(self, name: str, answer: object):
        def ask(*arguments: object) -> object:
            self.asked.append((name, arguments))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask
