from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest

from attnbench.errors import Exit
from attnbench.ledger import Ledger
from attnbench.measure.doctor import examine
from attnbench.measure.doctor.trial import Trial
from tests.ledger.samples import record_run
from tests.measure.fake_nvml import FakeNvml, process
from tests.measure.unloaded import unloaded


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU (or without, for None), on which trying things out takes no time."""

    def make(answers: dict | None) -> Ledger:
        monkeypatch.setitem(sys.modules, "pynvml", None if answers is None else FakeNvml(**answers))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        ledger = Ledger(tmp_path / "ledger.jsonl")
        monkeypatch.setenv("ATTNBENCH_LEDGER", str(ledger.path))
        return ledger

    def pretend(kind: str, *, probe: bool) -> Trial:
        assert not probe
        on_gpu = kind == "cuda"
        return Trial(
            torch_cuda="13.0" if on_gpu else "",
            gpu_seen=on_gpu,
            kernel_failure="" if on_gpu else None,
            own_is_shown=on_gpu,
            busy={"sm_clock_mhz": 1980} if on_gpu else {},
        )

    monkeypatch.setattr(examine, "Examiner", partial(examine.Examiner, try_out=pretend))
    unloaded(monkeypatch)
    return make


ALONE: dict[str, object] = {"DeviceGetComputeRunningProcesses": []}


def test_a_fit_machine_leaves_with_0(attnbench, machine):
    machine(ALONE)
    outcome = attnbench("doctor")
    assert outcome.code == Exit.DONE
    assert outcome.out.startswith("cuda · NVIDIA H100 80GB HBM3\n")
    assert "sudo nvidia-smi -i GPU-1 -lgc 1980" in outcome.out


def test_another_process_on_the_gpu_leaves_with_12_and_is_named(attnbench, machine):
    machine({"DeviceGetComputeRunningProcesses": [process(7)]})
    outcome = attnbench("doctor")
    assert outcome.code == Exit.VOID
    assert "7 (python3, 1.0 GiB)" in outcome.out


def test_json_is_all_that_is_printed(attnbench, machine):
    machine(None)
    outcome = attnbench("doctor", "--device", "cpu", "--json")
    data = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (Exit.DONE, "")
    assert data["device"] == "cpu"
    assert {finding["severity"] for finding in data["findings"]} <= {"ok", "warn", "unknown"}


def test_a_device_can_be_asked_for_and_must_be_one(attnbench, machine):
    machine(ALONE)
    assert attnbench("doctor", "--device", "cpu").out.startswith("cpu · ")
    assert attnbench("doctor", "--device", "tpu").code == Exit.USAGE


def test_a_broken_ledger_leaves_with_13(attnbench, machine):
    ledger = machine(None)
    record_run(ledger, "aa11")
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b"aa11", b"aa12", 1))
    assert attnbench("doctor", "--device", "cpu").code == Exit.LEDGER_BROKEN


WHAT_IS_IMPORTED = """
import sys
from attnbench.cli.main import main
try:
    main()
finally:
    print(sorted({"torch", "triton", "transformers"} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--device", "cpu", "--json"]])
def test_the_process_that_asks_never_imports_torch(tmp_path, arguments):
    done = subprocess.run(
        [sys.executable, "-c", WHAT_IS_IMPORTED, "doctor", *arguments],
        env={**os.environ, "ATTNBENCH_LEDGER": str(tmp_path / "ledger.jsonl")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (Exit.DONE, Exit.VOID)  # as busy as the machine is
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout
