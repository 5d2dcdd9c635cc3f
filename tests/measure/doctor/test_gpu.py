"""Checks of a GPU's settings and state, against a stand-in for NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from attnbench.errors import Exit, Unsupported
from attnbench.measure.device import cuda_facts
from attnbench.measure.doctor import gpu, gpu_state
from attnbench.measure.doctor.finding import Finding, Severity
from attnbench.measure.doctor.gpu_state import GpuProcess, processes_on
from attnbench.measure.nvml import Nvml
from tests.measure.fake_nvml import GIB, FakeNvml, NVMLError, process

BAD, WARN, UNKNOWN, OK = Severity
REFUSED = NVMLError("Not Supported")


ALONE = {"DeviceGetComputeRunningProcesses": []}  # the doctor itself computes nothing


def nvml_with(**answers) -> Nvml:
    return Nvml(FakeNvml(**(ALONE | answers)), "handle")


def in_use(nvml: Nvml) -> Finding:
    return gpu_state.in_use(nvml, processes_on(nvml))


ALL_IS_WELL = [
    gpu.whole, gpu.compute_mode, gpu.persistence, gpu.display, gpu.ecc,
    gpu_state.power_limit, gpu_state.temperature, in_use,
]  # fmt: skip


@pytest.mark.parametrize("check", ALL_IS_WELL, ids=lambda check: check.__name__)
def test_a_gpu_in_good_order_passes(check):
    found = check(nvml_with())
    assert (found.severity, found.why, found.fix) == (OK, "", "")


SPOILT = [
    (gpu.whole, {"DeviceGetMigMode": [1, 1]}, BAD, "on", "-mig 0"),
    (gpu.whole, {"DeviceGetMigMode": [0, 1]}, WARN, "after a reset", "-mig 0"),
    (gpu.whole, {"DeviceGetVirtualizationMode": 2}, WARN, "virtual GPU", ""),
    (gpu.compute_mode, {"DeviceGetComputeMode": 2}, BAD, "prohibited", "-c DEFAULT"),
    (gpu.persistence, {"DeviceGetPersistenceMode": 0}, WARN, "off", "-pm 1"),
    (gpu.display, {"DeviceGetDisplayActive": 1}, WARN, "active", "systemctl isolate"),
    (gpu.ecc, {"DeviceGetEccMode": [0, 0]}, WARN, "off", "-e 1"),
    (gpu.ecc, {"DeviceGetTotalEccErrors": 3}, WARN, "3 uncorrected", "--gpu-reset"),
    (gpu.ecc, {"DeviceGetRemappedRows": (0, 1, 1, 0)}, WARN, "0 uncorrected", "--gpu-reset"),
    (gpu.ecc, {"DeviceGetRemappedRows": (0, 1, 0, 1)}, BAD, "remapping failed", "-q -d ECC"),
    (
        gpu_state.power_limit,
        {"DeviceGetEnforcedPowerLimit": 350_000},
        WARN,
        "350 W of 700 W",
        "-pl 700",
    ),
    (gpu_state.temperature, {"DeviceGetTemperature": 84}, WARN, "84 °C; it slows at 89", "-q"),
    (
        in_use,
        {"DeviceGetUtilizationRates": SimpleNamespace(gpu=97)},
        BAD,
        "97 % busy",
        "nvidia-smi -i GPU-1",
    ),
    (
        in_use,
        {"DeviceGetMemoryInfo": SimpleNamespace(total=80 * GIB, free=60 * GIB)},
        WARN,
        "60.0 of 80.0 GiB free",
        "nvidia-smi -i GPU-1",
    ),
]


@pytest.mark.parametrize(("check", "answers", "severity", "seen", "fix"), SPOILT)
def test_what_spoils_a_measurement_is_said_with_why_and_the_command(
    check, answers, severity, seen, fix
):
    found = check(nvml_with(**answers))
    assert found.severity is severity
    assert seen in found.seen
    assert fix in found.fix
    assert found.why
    assert found.exit_code == (Exit.VOID if severity is BAD else Exit.DONE)


HIDDEN = [
    (gpu.compute_mode, "DeviceGetComputeMode"),
    (gpu.persistence, "DeviceGetPersistenceMode"),
    (gpu.display, "DeviceGetDisplayActive"),
    (gpu.ecc, "DeviceGetEccMode"),
    (gpu_state.power_limit, "DeviceGetPowerManagementDefaultLimit"),
    (gpu_state.temperature, "DeviceGetTemperature"),
    (in_use, "DeviceGetMemoryInfo"),
]


@pytest.mark.parametrize(("check", "question"), HIDDEN, ids=[question for _, question in HIDDEN])
def test_what_a_driver_does_not_tell_is_unknown_and_not_well(check, question):
    assert check(nvml_with(**{question: REFUSED})).severity is UNKNOWN


IDLE, POWER_CAP, HEAT, LOCKED = 0x1, 0x4, 0x40, 0x2  # NVML's bits


@pytest.mark.parametrize(
    ("idle", "busy", "severity", "seen"),
    [
        (IDLE, LOCKED, OK, "none"),
        (HEAT, 0, BAD, "hardware thermal slowdown"),
        (IDLE, POWER_CAP | HEAT, BAD, "software power cap, hardware thermal slowdown"),
        (None, 0, UNKNOWN, "cannot be asked"),
    ],
)
def test_throttling_counts_whether_idle_or_under_load(idle, busy, severity, seen):
    found = gpu_state.throttle(idle, {"throttle_reasons": busy})
    assert (found.severity, found.seen) == (severity, seen)


@pytest.mark.parametrize(
    ("busy", "severity"),
    [
        ({"sm_clock_mhz": 1500, "throttle_reasons": 0}, OK),
        ({"sm_clock_mhz": 1500}, OK),
        ({"sm_clock_mhz": 1500, "throttle_reasons": POWER_CAP}, WARN),
        ({"sm_clock_mhz": 1980, "throttle_reasons": 0}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_a_clock_below_its_maximum_under_load_is_held_by_a_lock_or_by_throttling(busy, severity):
    assert gpu_state.clocks(nvml_with(), busy).severity is severity


def test_how_to_lock_a_clock_is_told_where_no_lock_is_seen():
    found = gpu_state.clocks(nvml_with(), {"sm_clock_mhz": 1980})
    assert found.fix == "sudo nvidia-smi -i GPU-1 -lgc 1980"


def test_corrected_errors_alone_are_no_warning():
    nvml = nvml_with(DeviceGetTotalEccErrors=lambda _, kind, counter: (9, 0)[kind])
    found = gpu.ecc(nvml)
    assert found.severity is OK
    assert "9 corrected" in found.seen


def test_processes_that_compute_or_draw_are_named_once_each():
    nvml = nvml_with(
        DeviceGetComputeRunningProcesses=[process(7, used=3 * GIB)],
        DeviceGetGraphicsRunningProcesses=[process(7, used=None), process(8, used=None)],
    )
    assert processes_on(nvml) == (
        GpuProcess(7, "python3", 3 * GIB, draws=False),
        GpuProcess(8, "python3", 0, draws=True),
    )


def test_a_gpu_shared_with_a_process_that_computes_is_bad_and_names_it():
    nvml = nvml_with(
        DeviceGetComputeRunningProcesses=[process(7, used=3 * GIB), process(9, used=None)],
        SystemGetProcessName=REFUSED,
    )
    found = gpu_state.processes(processes_on(nvml), own_is_shown=True)
    assert found.severity is BAD
    assert "7 (name not shown, 3.0 GiB), 9 (name not shown)" in found.seen
    assert found.fix == "ps -o pid,user,etime,args -p 7,9"


def test_a_process_that_draws_is_a_warning():
    nvml = nvml_with(DeviceGetGraphicsRunningProcesses=[process(8)])
    assert gpu_state.processes(processes_on(nvml), own_is_shown=True).severity is WARN


def test_no_process_is_well_only_where_processes_are_shown_at_all():
    others = processes_on(nvml_with())
    assert gpu_state.processes(others, own_is_shown=True).severity is OK
    assert gpu_state.processes(others, own_is_shown=False).severity is UNKNOWN


def test_memory_that_a_listed_process_takes_is_not_said_twice():
    full = SimpleNamespace(total=80 * GIB, free=60 * GIB)
    assert in_use(nvml_with(DeviceGetMemoryInfo=full)).severity is WARN
    nvml = nvml_with(DeviceGetMemoryInfo=full, DeviceGetComputeRunningProcesses=[process(7)])
    assert in_use(nvml).severity is OK


def test_readings_that_are_not_given_are_named():
    found = gpu_state.exposure(("throttle_reasons", "power_w"))
    assert found.severity is UNKNOWN
    assert "throttle_reasons, power_w" in found.seen
    assert gpu_state.exposure(()).severity is OK


@pytest.mark.parametrize(("capability", "severity"), [((7, 5), WARN), ((9, 0), OK), ((12, 0), OK)])
def test_a_gpu_older_than_the_kernels_were_tested_on_is_a_warning(capability, severity):
    facts = cuda_facts(nvml_with(DeviceGetCudaComputeCapability=capability))
    assert gpu.identity(facts).severity is severity


def test_an_nvml_that_cannot_be_asked_is_bad_with_what_to_install_or_ask(monkeypatch):
    found = gpu.unanswered(Unsupported("the driver is not loaded", hint="look"))
    assert (found.severity, found.fix) == (BAD, "nvidia-smi -L")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.unanswered(Unsupported("not installed")).fix == "pip install nvidia-ml-py"
