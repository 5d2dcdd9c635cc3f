"""What torch, a kernel and the bandwidth came to, and the process in which they are tried."""

from __future__ import annotations

import sys

import msgspec
import pytest
import torch

from attnbench.errors import WorkerFailed
from attnbench.measure.answers import Bandwidth
from attnbench.measure.device import cuda_facts
from attnbench.measure.doctor import computing
from attnbench.measure.doctor.finding import Severity
from attnbench.measure.doctor.trial import Trial, tried
from attnbench.measure.nvml import Nvml
from tests.measure.fake_nvml import FakeNvml

BAD, WARN, UNKNOWN, OK = Severity
ON_GPU = Trial(torch_cuda="13.0", gpu_seen=True, kernel_failure="", own_is_shown=True)
READ = Bandwidth(
    gb_s=3114.0, buffer_bytes=1 << 32, reads=20, read_us=(1.0,), theoretical_gb_s=3352.0,
    how="triton", note="",
)  # fmt: skip


def facts(cuda: int = 13000):
    return cuda_facts(Nvml(FakeNvml(SystemGetCudaDriverVersion=cuda), "handle"))


@pytest.mark.parametrize(
    ("trial", "cuda", "severity", "why"),
    [
        (ON_GPU, 13000, OK, ""),
        (ON_GPU, 12080, OK, ""),  # seen all the same: compatibility packages exist
        (Trial(torch_cuda="", gpu_seen=False), 13000, BAD, "without CUDA"),
        (Trial(torch_cuda="13.0", gpu_seen=False), 12080, BAD, "torch for CUDA 12.8"),
        (Trial(torch_cuda="13.0", gpu_seen=False), 13000, BAD, "do not find each other"),
    ],
)
def test_a_torch_that_cannot_use_the_driver_is_bad(trial, cuda, severity, why):
    found = computing.torch_on_cuda(trial, facts(cuda))
    assert found.severity is severity
    assert why in found.why


@pytest.mark.parametrize(
    ("built_for", "wanted", "severity"),
    [("", False, OK), ("13.0", True, OK), ("13.0", False, WARN)],
)
def test_a_cuda_build_without_a_gpu_is_a_warning_unless_the_cpu_was_wanted(
    built_for, wanted, severity
):
    trial = Trial(torch_cuda=built_for, gpu_seen=False)
    assert computing.torch_on_cpu(trial, wanted=wanted).severity is severity


@pytest.mark.parametrize(
    ("failure", "severity"), [(None, UNKNOWN), ("", OK), ("CompilationError: no PTX", BAD)]
)
def test_kernels_are_well_only_where_one_ran(failure, severity):
    trial = msgspec.structs.replace(ON_GPU, kernel_failure=failure)
    assert computing.kernels(trial).severity is severity


def test_a_bandwidth_is_shown_beside_theory_and_a_doubtful_one_is_bad():
    assert "3,114 GB/s, 93% of 3,352 in theory" in computing.read_bandwidth(READ).seen
    doubtful = msgspec.structs.replace(READ, note="the probe read 900 GB/s, 27%")
    assert computing.read_bandwidth(doubtful).severity is BAD
    assert list(computing.probed(ON_GPU)) == []
    failed = msgspec.structs.replace(ON_GPU, probe_failure="no room")
    assert [found.seen for found in computing.probed(failed)] == ["no room"]


def test_on_a_cpu_torch_and_the_bandwidth_are_tried_in_a_process_of_their_own():
    trial = tried("cpu", probe=True)
    assert trial.torch_cuda == (torch.version.cuda or "")
    assert trial.kernel_failure is None
    assert trial.bandwidth is not None
    assert trial.bandwidth.how == "torch.sum, 1 threads"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('libcudart.so: not found')", "libcudart.so: not found"),
        ("import os; os._exit(3)", "exit status 3"),
        ("print('[]')", "brought its process down"),
    ],
)
def test_a_trial_that_dies_is_told_with_its_last_words(script, said):
    with pytest.raises(WorkerFailed, match=said):
        tried("cpu", probe=False, command=(sys.executable, "-c", script))


def test_what_libraries_print_before_the_result_does_no_harm():
    said = msgspec.json.encode(ON_GPU).decode()
    script = f"print('a warning'); print({said!r})"
    assert tried("cuda", probe=False, command=(sys.executable, "-c", script)) == ON_GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_a_kernel_runs_the_clock_is_read_and_the_bandwidth_believed():
    trial = tried("cuda", probe=True)
    assert (trial.gpu_seen, trial.kernel_failure, trial.probe_failure) == (True, "", "")
    assert trial.busy["sm_clock_mhz"] > 0
    assert trial.bandwidth is not None
    assert trial.bandwidth.note == ""
