from __future__ import annotations

import subprocess
import sys

import pytest

from attnbench.errors import Unsupported
from attnbench.measure import device
from attnbench.measure.device import (
    cpu_facts,
    cpu_name,
    device_facts,
    environment,
    has_gpu,
    last_level_cache_bytes,
)
from tests.measure.fake_nvml import FakeNvml, NVMLError


@pytest.fixture
def gpu(monkeypatch):
    def install(**answers) -> FakeNvml:
        nvml = FakeNvml(**answers)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "torch_cuda", lambda: "13.0")
    return install


def test_bandwidth_in_theory_is_memory_clock_times_bus_width_twice_a_cycle(gpu):
    gpu()
    facts = device_facts("cuda")
    assert facts.name == "NVIDIA H100 80GB HBM3"
    assert facts.compute_capability == "9.0"
    assert facts.cuda == "13.0"
    # 2619 MHz x 2 x 5120 bits / 8: the 3.35 TB/s of the data sheet
    assert facts.theoretical_bandwidth_gb_s == pytest.approx(3352.32)


def test_a_gpu_that_hides_its_bus_has_no_bandwidth_in_theory(gpu):
    gpu(DeviceGetMemoryBusWidth=NVMLError("Not Supported"))
    assert device_facts("cuda").theoretical_bandwidth_gb_s == 0


def test_the_first_visible_gpu_is_meant(gpu, monkeypatch):
    nvml = gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    device_facts("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc")
    device_facts("cuda")
    assert ("DeviceGetHandleByIndex", (3,)) in nvml.asked
    assert ("DeviceGetHandleByUUID", ("GPU-abc",)) in nvml.asked


@pytest.mark.parametrize("hidden", ["", "-1", "MIG-GPU-1/1/0"])
def test_a_hidden_or_sliced_gpu_is_refused_by_name(gpu, monkeypatch, hidden, tmp_path):
    gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not has_gpu(tmp_path)
    with pytest.raises(Unsupported, match="CUDA_VISIBLE_DEVICES"):
        device_facts("cuda")


def test_without_a_driver_there_is_no_gpu(gpu, tmp_path):
    gpu(Init=NVMLError("Driver Not Loaded"))
    assert not has_gpu(tmp_path)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"Init": NVMLError("Shared Library Not Found", 12)}, "no NVIDIA driver is installed"),
        ({"Init": NVMLError("Driver Not Loaded", 9)}, "driver is not loaded"),
        ({"Init": NVMLError("Unknown Error", 999)}, "driver does not answer"),
        ({"DeviceGetHandleByIndex": NVMLError("Invalid Argument", 2)}, "no GPU has this number"),
    ],
)
def test_a_missing_gpu_or_driver_is_told_before_what_nvml_says(gpu, answers, said):
    gpu(**answers)
    with pytest.raises(Unsupported) as caught:
        device_facts("cuda")
    before, _, after = caught.value.message.partition("NVML")
    assert before.startswith("there is no GPU here that can be measured")
    assert said in before
    assert str(next(iter(answers.values()))) in after


def test_a_pytorch_without_cuda_is_told_where_there_is_a_gpu(gpu, monkeypatch):
    gpu()
    monkeypatch.setattr(device, "torch_cuda", lambda: "")
    with pytest.raises(Unsupported, match="built without CUDA") as caught:
        device_facts("cuda")
    assert "--device cpu" in caught.value.hint


def test_a_gpu_that_nvml_refuses_is_no_reason_to_go_on_with_the_cpu(gpu, tmp_path):
    gpu(Init=NVMLError("Driver/library version mismatch"))
    assert not has_gpu(tmp_path)
    (tmp_path / "nvidia0").touch()
    with pytest.raises(Unsupported, match="cannot be measured"):
        has_gpu(tmp_path)


def test_a_gpu_that_mig_splits_is_neither_measured_nor_replaced_by_the_cpu(gpu):
    gpu(DeviceGetMigMode=[1, 1])
    for ask in (has_gpu, lambda: device_facts("cuda")):
        with pytest.raises(Unsupported, match="MIG is on"):
            ask()


def test_the_cpu_has_memory_and_cores():
    facts = cpu_facts()
    assert facts.kind == "cpu"
    assert 0 < facts.memory_free_bytes <= facts.memory_total_bytes
    assert facts.cores >= 1


def test_the_processor_is_named_as_the_system_names_it(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Ryzen 9\nmodel name\t: other\n")
    assert cpu_name(cpuinfo) == "Ryzen 9"


def test_the_largest_cache_counts(tmp_path):
    for index, size in enumerate(("48K", "2048K", "32M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_level_cache_bytes(tmp_path) == 32 << 20


def test_the_environment_names_versions_without_importing_what_is_heavy():
    script = (
        "import sys; from attnbench.measure.device import cpu_facts, environment; "
        "said = environment(cpu_facts()); assert said['torch'], said; "
        "print(sorted({'torch', 'transformers', 'triton', 'pynvml'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    assert environment(cpu_facts())["attnbench"] == "0.1.0"
