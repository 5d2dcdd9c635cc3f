"""The whole examination, with a simulated GPU and a trial that only pretends."""

from __future__ import annotations

import sys

import pytest

from attnbench.errors import Exit, WorkerFailed
from attnbench.measure.doctor.examine import Examination, Examiner, chosen_device
from attnbench.measure.doctor.finding import Finding, Severity
from attnbench.measure.doctor.trial import Trial
from tests.measure.fake_nvml import FakeNvml, NVMLError, process
from tests.measure.unloaded import unloaded

SHOWN = Trial(
    torch_cuda="13.0",
    gpu_seen=True,
    kernel_failure="",
    own_is_shown=True,
    busy={"sm_clock_mhz": 1980, "throttle_reasons": 0},
)
CPU_BUILD = Trial(torch_cuda="", gpu_seen=False)


def shown(kind: str, *, probe: bool) -> Trial:
    return SHOWN if kind == "cuda" else CPU_BUILD


def crashed(kind: str, *, probe: bool) -> Trial:
    raise WorkerFailed("torch brought its process down")


@pytest.fixture
def examine(monkeypatch, tmp_path):
    """Examine a machine with a GPU that answers so; None: there is no NVML."""

    def run(answers: dict | None, device: str = "", try_out=shown) -> Examination:
        nvml = None if answers is None else FakeNvml(**answers)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # the tests' own, without a GPU
        unloaded(monkeypatch)
        return Examiner(tmp_path / "ledger.jsonl", try_out=try_out).examine(device)

    return run


def test_the_device_is_chosen_as_decode_chooses_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert chosen_device() == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert chosen_device() == "cpu"


def test_a_gpu_that_is_there_and_cannot_be_measured_is_what_is_asked_about(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(DeviceGetMigMode=[1, 1]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert chosen_device() == "cuda"


def found(examination: Examination, check: str) -> Finding:
    (finding,) = [finding for finding in examination.findings if finding.check == check]
    return finding


ALONE: dict[str, object] = {"DeviceGetComputeRunningProcesses": []}


def test_a_gpu_in_good_order_is_fit_though_no_lock_of_its_clocks_is_seen(examine):
    examination = examine(ALONE)
    assert (examination.device, examination.name) == ("cuda", "NVIDIA H100 80GB HBM3")
    assert examination.exit_code == Exit.DONE
    assert found(examination, "clocks").severity is Severity.UNKNOWN
    assert found(examination, "processes").severity is Severity.OK


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_gpu_packages_processor_memory_and_ledger_are_looked_at_once_each(examine, device):
    checks = [finding.check for finding in examine(ALONE, device).findings]
    assert len(checks) == len(set(checks))
    assert {"GPU", "torch", "kernels", "packages", "environment", "CPU load"} <= set(checks)
    assert {"CPU quota", "memory", "swap", "ledger file", "disk", "ledger"} <= set(checks)


@pytest.mark.parametrize(
    ("answers", "check"),
    [
        ({"DeviceGetComputeRunningProcesses": [process(7)]}, "processes"),
        (ALONE | {"DeviceGetMigMode": [1, 1]}, "MIG"),
        (ALONE | {"DeviceGetCurrentClocksEventReasons": 0x8}, "throttling"),
        (ALONE | {"DeviceGetRemappedRows": (0, 0, 0, 1)}, "ECC"),
    ],
)
def test_what_voids_a_measurement_leaves_with_12(examine, answers, check):
    examination = examine(answers)
    assert found(examination, check).severity is Severity.BAD
    assert examination.exit_code == Exit.VOID


def test_a_driver_that_hides_all_that_it_may_is_fit_and_says_what_it_hides(examine):
    refused = NVMLError("Not Supported")
    hidden = {
        "DeviceGetCurrentClocksEventReasons": refused,
        "DeviceGetCurrentClocksThrottleReasons": refused,
        "DeviceGetEccMode": refused,
    }
    blind = Trial(
        torch_cuda="13.0", gpu_seen=True, kernel_failure="", missing=("throttle_reasons",)
    )
    examination = examine(ALONE | hidden, try_out=lambda *_, **__: blind)
    assert examination.exit_code == Exit.DONE
    for check in ("throttling", "ECC", "processes", "readings"):
        assert found(examination, check).severity is Severity.UNKNOWN


def test_a_gpu_that_is_asked_for_and_not_there_leaves_with_12(examine):
    examination = examine(None, "cuda")
    assert examination.exit_code == Exit.VOID
    assert found(examination, "driver").fix == "pip install nvidia-ml-py"


def test_without_a_gpu_the_cpu_is_examined(examine):
    examination = examine(None, "cpu")
    assert examination.device == "cpu"
    assert examination.exit_code == Exit.DONE
    assert found(examination, "kernels").severity is Severity.UNKNOWN


def test_a_gpu_is_left_alone_where_the_cpu_was_asked_for(examine):
    examination = examine({"Init": NVMLError("never asked")}, "cpu")
    assert examination.exit_code == Exit.DONE


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_trial_that_crashes_is_bad_and_the_rest_is_told(examine, device):
    examination = examine(ALONE, device, try_out=crashed)
    assert found(examination, "torch").severity is Severity.BAD
    assert found(examination, "ledger").severity is Severity.OK
    assert examination.exit_code == Exit.VOID


def test_a_broken_ledger_outweighs_a_void_measurement():
    findings = tuple(
        Finding(check="x", severity=Severity.BAD, seen="", exit_code=code)
        for code in (Exit.VOID, Exit.LEDGER_BROKEN, Exit.DONE)
    )
    examination = Examination(device="cpu", name="", findings=findings)
    assert examination.exit_code == Exit.LEDGER_BROKEN
