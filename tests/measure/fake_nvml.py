"""A stand-in for `pynvml`: one GPU of which every answer can be set, refused or unsupported."""

from __future__ import annotations

import os
from types import SimpleNamespace

GIB = 1 << 30
SM, MEMORY = 1, 2  # NVML's numbers of clocks


class NVMLError(Exception):
    """As the binding's own; `value` is NVML's number of it."""

    def __init__(self, text: str, value: int = 999) -> None:
        super().__init__(text)
        self.value = value


def process(pid: int, used: int | None = 1 << 30) -> SimpleNamespace:
    """A process on the GPU."""
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


FIELDS = {186: 353_250, 74: 208_080_032, 75: 0}


def field_values(refused: int | None = None) -> list[SimpleNamespace]:
    """Power now in mW and nanoseconds of throttling; the field `refused` has no answer."""
    return [
        SimpleNamespace(
            fieldId=field,
            nvmlReturn=3 if field == refused else 0,
            valueType=1 if field == 186 else 3,
            value=SimpleNamespace(uiVal=value & 0xFFFFFFFF, ullVal=value),
        )
        for field, value in FIELDS.items()
    ]


class FakeNvml(SimpleNamespace):
    """Answers of an H100; one set to an exception is raised, one that can be called is called."""

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
            "DeviceGetMaxClockInfo": lambda _, clock: {SM: 1980, MEMORY: 2619}[clock],
            "DeviceGetMemoryBusWidth": 5120,
            "DeviceGetClockInfo": 1980,
            "DeviceGetPowerUsage": 350_500,
            "DeviceGetTemperature": 41,
            "DeviceGetCurrentClocksEventReasons": 0,
            "DeviceGetCurrentClocksThrottleReasons": 0,
            "DeviceGetEnforcedPowerLimit": 700_000,
            "DeviceGetPowerManagementDefaultLimit": 700_000,
            "DeviceGetTotalEnergyConsumption": 41_974_015,
            "DeviceGetFieldValues": field_values(),
            "DeviceGetApplicationsClock": 1980,
            "DeviceGetDefaultApplicationsClock": 1980,
            "DeviceGetTemperatureThreshold": 89,
            "DeviceGetUtilizationRates": SimpleNamespace(gpu=0),
            "DeviceGetMigMode": [0, 0],
            "DeviceIsMigDeviceHandle": 0,
            "DeviceGetVirtualizationMode": 1,  # passed through to a virtual machine
            "DeviceGetEccMode": [1, 1],
            "DeviceGetRemappedRows": (0, 0, 0, 0),
            "DeviceGetPersistenceMode": 1,
            "DeviceGetDisplayActive": 0,
            "DeviceGetComputeMode": 0,
            "DeviceGetGraphicsRunningProcesses": [],
            "DeviceGetMPSComputeRunningProcesses": [],
            "SystemGetProcessName": b"python3",
            "DeviceGetTotalEccErrors": 0,
            "DeviceGetComputeRunningProcesses": [process(os.getpid())],
        }
        super().__init__(
            NVMLError=NVMLError,
            NVML_CLOCK_GRAPHICS=0,
            NVML_CLOCK_SM=SM,
            NVML_CLOCK_MEM=MEMORY,
            NVML_TEMPERATURE_GPU=0,
            NVML_TEMPERATURE_THRESHOLD_SLOWDOWN=1,
            NVML_MEMORY_ERROR_TYPE_CORRECTED=0,
            NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
            NVML_VOLATILE_ECC=0,
            NVML_FI_DEV_POWER_INSTANT=186,
            NVML_FI_DEV_PERF_POLICY_POWER=74,
            NVML_FI_DEV_PERF_POLICY_THERMAL=75,
        )
        self.asked: list[tuple[str, tuple[object, ...]]] = []
        for name, answer in (defaults | answers).items():
            setattr(self, f"nvml{name}", self.function(name, answer))

    def function(self, name: str, answer: object):
        def ask(*arguments: object) -> object:
            self.asked.append((name, arguments))
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return ask
