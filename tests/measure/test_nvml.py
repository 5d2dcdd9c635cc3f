from __future__ import annotations

import os
import sys

import pytest

from attnbench.errors import Unsupported
from attnbench.measure.nvml import NullProbe, Nvml, NvmlProbe, process_bytes
from tests.measure.fake_nvml import FakeNvml, NVMLError, process


@pytest.fixture
def nvml_with(monkeypatch):
    def make(**answers) -> Nvml:
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(**answers))
        return Nvml.by_uuid("GPU-1")

    return make


def test_the_state_holds_clocks_power_temperature_throttling_and_other_processes(nvml_with):
    assert NvmlProbe(nvml_with()).read() == {
        "sm_clock_mhz": 1980,
        "mem_clock_mhz": 1980,
        "power_w": 350.5,
        "temperature_c": 41,
        "throttle_reasons": 0,
        "ecc_uncorrected": 0,
        "other_processes": 0,
    }


def test_the_gpu_is_asked_for_by_its_uuid(nvml_with):
    nvml = nvml_with()
    assert ("DeviceGetHandleByUUID", ("GPU-1",)) in nvml.api.asked


@pytest.mark.parametrize(
    ("question", "field"),
    [
        ("DeviceGetPowerUsage", "power_w"),
        ("DeviceGetTemperature", "temperature_c"),
        ("DeviceGetCurrentClocksThrottleReasons", "throttle_reasons"),
        ("DeviceGetTotalEccErrors", "ecc_uncorrected"),
        ("DeviceGetComputeRunningProcesses", "other_processes"),
    ],
)
def test_what_a_gpu_does_not_support_is_absent_and_not_zero(nvml_with, question, field):
    state = NvmlProbe(nvml_with(**{question: NVMLError("Not Supported")})).read()
    assert field not in state
    assert len(state) == 6


def test_a_question_that_the_binding_does_not_know_is_unanswered(nvml_with):
    assert nvml_with().ask("DeviceGetSomethingNewer") is None


def test_a_missing_binding_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unsupported, match="pynvml") as caught:
        Nvml.by_uuid("GPU-1")
    assert "nvidia-ml-py" in caught.value.hint


@pytest.mark.parametrize("question", ["Init", "DeviceGetHandleByUUID"])
def test_a_driver_that_refuses_is_unsupported_with_its_own_words(nvml_with, question):
    with pytest.raises(Unsupported, match="Driver Not Loaded"):
        nvml_with(**{question: NVMLError("Driver Not Loaded")})


def test_every_process_but_this_one_is_another(nvml_with):
    both = [process(os.getpid()), process(1)]
    state = NvmlProbe(nvml_with(DeviceGetComputeRunningProcesses=both)).read()
    assert state["other_processes"] == 1


def test_a_single_process_under_a_foreign_number_is_this_one(nvml_with):
    nvml = nvml_with(DeviceGetComputeRunningProcesses=[process(99_999_999, used=7)])
    assert NvmlProbe(nvml).read()["other_processes"] == 0
    assert process_bytes(nvml) == 7


def test_an_empty_list_of_processes_says_nothing(nvml_with):
    nvml = nvml_with(DeviceGetComputeRunningProcesses=[])
    assert "other_processes" not in NvmlProbe(nvml).read()
    assert process_bytes(nvml) is None


def test_memory_of_this_process_is_told_among_others(nvml_with):
    nvml = nvml_with(
        DeviceGetComputeRunningProcesses=[process(1, used=5), process(os.getpid(), used=7)]
    )
    assert process_bytes(nvml) == 7


def test_memory_is_unknown_among_processes_that_are_all_foreign(nvml_with):
    nvml = nvml_with(DeviceGetComputeRunningProcesses=[process(1), process(2)])
    assert process_bytes(nvml) is None


def test_a_device_without_a_state_has_none():
    assert NullProbe().read() == {}
