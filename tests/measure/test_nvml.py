from __future__ import annotations

import os
import sys

import pytest

from attnbench.errors import Unsupported
from attnbench.measure.nvml import (
    AllocatorProbe,
    NullProbe,
    Nvml,
    NvmlProbe,
    process_bytes,
    refuse_mig,
    unasked,
)
from tests.measure.fake_nvml import FakeNvml, NVMLError, field_values, process


@pytest.fixture
def nvml_with(monkeypatch):
    def make(**answers) -> Nvml:
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(**answers))
        return Nvml.by_uuid("GPU-1")

    return make


def test_the_state_holds_clocks_power_temperature_throttling_errors_and_other_processes(nvml_with):
    assert NvmlProbe(nvml_with()).read() == {
        "sm_clock_mhz": 1980,
        "mem_clock_mhz": 1980,
        "power_w": 350.5,
        "power_limit_w": 700.0,
        "temperature_c": 41,
        "throttle_reasons": 0,
        "ecc_corrected": 0,
        "ecc_uncorrected": 0,
        "other_processes": 0,
        "power_now_w": 353.25,
        "power_throttled_ns": 208_080_032,
        "heat_throttled_ns": 0,
    }


def test_a_graphics_clock_of_its_own_is_told(nvml_with):
    nvml = nvml_with(DeviceGetClockInfo=lambda _, clock: (1755, 1980, 2619)[clock])
    assert NvmlProbe(nvml).read()["graphics_clock_mhz"] == 1755


def test_ecc_errors_are_told_apart_by_kind(nvml_with):
    nvml = nvml_with(DeviceGetTotalEccErrors=lambda _, kind, counter: (7, 2)[kind])
    state = NvmlProbe(nvml).read()
    assert (state["ecc_corrected"], state["ecc_uncorrected"]) == (7, 2)


def test_the_gpu_is_asked_for_by_its_uuid(nvml_with):
    nvml = nvml_with()
    assert ("DeviceGetHandleByUUID", ("GPU-1",)) in nvml.api.asked


REFUSED = NVMLError("Not Supported")
NO_THROTTLE_REASONS = {
    "DeviceGetCurrentClocksEventReasons": REFUSED,
    "DeviceGetCurrentClocksThrottleReasons": REFUSED,
}
COUNTERS = {"power_now_w", "power_throttled_ns", "heat_throttled_ns"}
HIDDEN = [
    ({"DeviceGetFieldValues": REFUSED}, COUNTERS),
    ({"DeviceGetFieldValues": field_values(refused=75)}, {"heat_throttled_ns"}),
    ({"DeviceGetPowerUsage": REFUSED}, {"power_w"}),
    ({"DeviceGetTemperature": REFUSED}, {"temperature_c"}),
    (NO_THROTTLE_REASONS, {"throttle_reasons"}),
    ({"DeviceGetTotalEccErrors": REFUSED}, {"ecc_corrected", "ecc_uncorrected"}),
    ({"DeviceGetClockInfo": REFUSED}, {"sm_clock_mhz", "mem_clock_mhz"}),
    ({"DeviceGetComputeRunningProcesses": REFUSED}, {"other_processes"}),
    ({"DeviceGetComputeRunningProcesses": []}, {"other_processes"}),
]


@pytest.mark.parametrize(("answers", "fields"), HIDDEN)
def test_what_a_gpu_does_not_support_is_absent_and_not_zero_and_named(nvml_with, answers, fields):
    everything = NvmlProbe(nvml_with()).read().keys()
    nvml = nvml_with(**answers)
    assert NvmlProbe(nvml).read().keys() == everything - fields
    assert set(unasked(nvml)) == fields


def test_of_a_gpu_that_tells_everything_nothing_is_unasked(nvml_with):
    assert unasked(nvml_with()) == ()


@pytest.mark.parametrize("name", ["Event", "Throttle"])
def test_throttle_reasons_have_an_old_and_a_new_name(nvml_with, name):
    known = {**NO_THROTTLE_REASONS, f"DeviceGetCurrentClocks{name}Reasons": 0x8}
    assert NvmlProbe(nvml_with(**known)).read()["throttle_reasons"] == 0x8


@pytest.mark.parametrize(
    "answers", [{"DeviceGetMigMode": [1, 1]}, {"DeviceIsMigDeviceHandle": 1}], ids=["gpu", "slice"]
)
def test_a_gpu_that_is_split_is_refused_with_how_to_make_it_whole(nvml_with, answers):
    with pytest.raises(Unsupported, match="memory bandwidth") as caught:
        refuse_mig(nvml_with(**answers))
    assert "nvidia-smi -i GPU-1 -mig 0" in caught.value.hint


@pytest.mark.parametrize("answer", [[0, 0], [0, 1], REFUSED])
def test_a_gpu_that_is_not_split_now_or_never_is_accepted(nvml_with, answer):
    refuse_mig(nvml_with(DeviceGetMigMode=answer))


class FakeTorch:
    """What of torch the allocator's probe looks at."""

    def __init__(self, *, in_use: bool, stats: dict[str, int]) -> None:
        self.cuda = self
        self.is_initialized = lambda: in_use
        self.memory_stats_as_nested_dict = lambda: stats


def test_allocator_retries_stand_beside_the_state_of_the_gpu(nvml_with, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "torch", FakeTorch(in_use=True, stats={"num_alloc_retries": 2})
    )
    probe = NvmlProbe(nvml_with())
    assert AllocatorProbe(probe).read() == probe.read() | {"alloc_retries": 2}
    assert AllocatorProbe(NullProbe()).read() == {"alloc_retries": 2}


@pytest.mark.parametrize(
    "torch",
    [None, FakeTorch(in_use=False, stats={}), FakeTorch(in_use=True, stats={})],
    ids=["not imported", "no CUDA in use", "another allocator"],
)
def test_where_torch_has_no_cuda_allocator_in_use_there_are_no_retries(monkeypatch, torch):
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert AllocatorProbe(NullProbe()).read() == {}


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
