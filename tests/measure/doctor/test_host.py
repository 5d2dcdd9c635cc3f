"""Checks of processor, memory, packages and ledger, in folders made for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attnbench.errors import Exit
from attnbench.ledger import Ledger
from attnbench.measure.doctor import cpu, limits, software
from attnbench.measure.doctor.finding import Severity
from attnbench.measure.doctor.gpu import absent
from attnbench.measure.doctor.ledger import chain, disk, ledger_findings, writable
from attnbench.measure.doctor.system import System
from tests.ledger.samples import record_run

BAD, WARN, UNKNOWN, OK = Severity
GIB = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """Files of a machine below proc/ and sys/."""

    def make(**files: str) -> System:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return System(tmp_path / "proc", tmp_path / "sys")

    return lambda files=(): make(**dict(files))


def policies(*governors: str) -> dict[str, str]:
    folder = "sys/devices/system/cpu/cpufreq"
    return {f"{folder}/policy{i}/scaling_governor": name for i, name in enumerate(governors)}


@pytest.mark.parametrize(
    ("governors", "severity"),
    [((), UNKNOWN), (("performance",) * 2, OK), (("performance", "powersave"), WARN)],
)
def test_the_governor_of_every_core_counts(machine, governors, severity):
    found = cpu.governor(machine(policies(*governors)), "cpu")
    assert found.severity is severity
    assert ("tee" in found.fix) is (severity is WARN)


@pytest.mark.parametrize(
    ("text", "kind", "severity"),
    [
        ("0.40 1 1", "cpu", OK),
        ("1.60 1 1", "cpu", WARN),
        ("4.00 1 1", "cpu", BAD),
        ("4.00 1 1", "cuda", WARN),
    ],
)
def test_a_load_above_a_quarter_of_the_cores_is_told_and_on_a_cpu_nothing_counts_above_all_of_them(
    machine, text, kind, severity
):
    assert cpu.load(machine({"proc/loadavg": text}), 4, kind).severity is severity


@pytest.mark.parametrize(
    ("active", "kind", "severity"),
    [("1", "cpu", WARN), ("1", "cuda", OK), ("0", "cpu", OK), ("", "cpu", UNKNOWN)],
)
def test_two_threads_on_a_core_matter_to_a_cpu(machine, active, kind, severity):
    found = cpu.smt(machine({"sys/devices/system/cpu/smt/active": active}), kind)
    assert found.severity is severity


@pytest.mark.parametrize(("steal", "severity"), [(0, OK), (500, WARN)])
def test_a_virtual_machine_is_noted_and_stolen_time_warned_of(machine, steal, severity):
    files = {
        "proc/cpuinfo": "processor : 0\nflags\t\t: fpu hypervisor avx",
        "proc/stat": f"cpu  9000 0 500 500 0 0 0 {steal} 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1",
    }
    found = cpu.virtual(machine(files))
    assert found.severity is severity
    assert "a virtual machine" in found.seen


def ticking(step_ns: int):
    now = iter(range(0, 10**9, step_ns))
    return lambda: next(now)


@pytest.mark.parametrize(
    ("source", "step_ns", "severity"),
    [("tsc", 40, OK), ("", 40, OK), ("hpet", 40, WARN), ("tsc", 15_000, WARN)],
)
def test_a_slow_or_coarse_clock_is_a_warning(machine, source, step_ns, severity):
    files = {"sys/devices/system/clocksource/clocksource0/current_clocksource": source}
    assert cpu.clock(machine(files), ticking(step_ns)).severity is severity


def test_a_single_core_is_a_warning():
    assert cpu.cores(1).severity is WARN
    assert cpu.cores(8).severity is OK


def version_2(group: str, limit: str, stopped: int = 0) -> dict[str, str]:
    return {
        f"sys/fs/cgroup{group}/cpu.max": limit,
        f"sys/fs/cgroup{group}/cpu.stat": f"usage_usec 1\nnr_periods 90\nnr_throttled {stopped}",
    }


def test_without_a_limit_there_is_no_quota(machine):
    found = limits.cpu_quota(machine({"proc/self/cgroup": "0::/"} | version_2("", "max 100000")), 4)
    assert (found.severity, found.seen) == (OK, "no limit")


def test_the_tightest_limit_above_the_process_counts(machine):
    files = {"proc/self/cgroup": "0::/outer/inner"}
    files |= version_2("/outer", "150000 100000", stopped=7)
    files |= version_2("/outer/inner", "300000 100000") | version_2("/other", "10000 100000")
    found = limits.cpu_quota(machine(files), 4)
    assert (found.severity, found.seen) == (WARN, "1.5 of 4 cores; stopped in 7 of 90 periods")


def test_a_quota_of_all_cores_that_never_stopped_anything_is_well(machine):
    files = {"proc/self/cgroup": "0::/"} | version_2("", "400000 100000")
    assert limits.cpu_quota(machine(files), 4).severity is OK


@pytest.mark.parametrize(("quota", "severity"), [("50000", WARN), ("-1", OK)])
def test_a_limit_of_the_first_version_of_control_groups_counts_too(machine, quota, severity):
    group = "sys/fs/cgroup/cpu,cpuacct/docker/a1"
    files = {
        "proc/self/cgroup": "5:memory:/docker/a1\n4:cpu,cpuacct:/docker/a1",
        f"{group}/cpu.cfs_quota_us": quota,
        f"{group}/cpu.cfs_period_us": "100000",
    }
    assert limits.cpu_quota(machine(files), 2).severity is severity


@pytest.mark.parametrize("path", ["/docker/a1", "/../../host"])
def test_in_a_container_that_sees_its_hosts_path_the_root_it_has_counts(machine, path):
    files = {"proc/self/cgroup": f"0::{path}"} | version_2("", "50000 100000")
    assert limits.cpu_limit(machine(files)).cores == 0.5


@pytest.mark.parametrize(
    ("total_kb", "free_kb", "severity"), [(0, 0, OK), (2048, 2048, OK), (2048, 1024, WARN)]
)
def test_swap_in_use_is_a_warning(machine, total_kb, free_kb, severity):
    text = f"MemTotal: 9 kB\nSwapTotal:  {total_kb} kB\nSwapFree:  {free_kb} kB"
    assert limits.swap(machine({"proc/meminfo": text})).severity is severity


def test_little_free_memory_is_a_warning():
    assert limits.free_memory(GIB, 8 * GIB).severity is WARN
    assert limits.free_memory(4 * GIB, 8 * GIB).severity is OK


@pytest.mark.parametrize(
    ("vendor", "kind", "severity"),
    [("0x10de", "0x030200", WARN), ("0x10de", "0x040300", OK), ("0x1002", "0x030000", OK)],
    ids=["NVIDIA GPU", "its sound card", "another maker's"],
)
def test_a_card_that_no_driver_speaks_for_is_seen(machine, vendor, kind, severity):
    at = "sys/bus/pci/devices/0000:01:00.0"
    system = machine({f"{at}/vendor": vendor, f"{at}/class": kind})
    assert absent(system, wanted=False).severity is severity
    assert absent(system, wanted=True).severity is OK


TESTED = {"torch": "2.13.0+cpu", "triton": "3.9.0", "transformers": "5.23.0", "numpy": "2.4.1"}


def test_packages_that_fit_are_one_finding():
    (found,) = software.packages(TESTED)
    assert found.severity is OK
    assert "torch 2.13.0+cpu" in found.seen


@pytest.mark.parametrize("version", ["5.16.2", ""])
def test_a_package_that_is_missing_or_too_old_is_bad(version):
    _, found = software.packages(TESTED | {"transformers": version})
    assert found.severity is BAD
    assert "tokenizers" in found.why
    assert found.fix == "pip install --upgrade 'transformers>=5.17'"


@pytest.mark.parametrize(
    ("triton", "numpy", "kind", "severity"),
    [
        ("3.6.0", "2.4.0", "cpu", WARN),
        ("3.6.0", "2.4.0", "cuda", OK),
        ("3.6.0", "2.3.5", "cpu", OK),
        ("3.9.0", "2.5.0", "cpu", OK),
    ],
)
def test_the_interpreter_that_fails_with_a_newer_numpy_is_known(triton, numpy, kind, severity):
    found = software.interpreter(TESTED | {"triton": triton, "numpy": numpy}, kind)
    assert found.severity is severity


def test_the_oldest_packages_are_those_that_the_project_requires():
    required = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    for name, least in software.LEAST.items():
        assert f'"{name}>={least}' in required


def test_variables_that_change_what_is_timed_are_bad_on_a_gpu():
    environ = {"CUDA_LAUNCH_BLOCKING": "1", "TRITON_INTERPRET": "0", "HOME": "/root"}
    found = software.switches(environ, "cuda")
    assert (found.severity, found.fix) == (BAD, "unset CUDA_LAUNCH_BLOCKING")
    assert software.switches(environ, "cpu").severity is OK
    assert software.switches({}, "cuda").severity is OK


def test_a_ledger_that_is_not_there_yet_is_well_and_is_not_made(tmp_path):
    path = tmp_path / "new" / "ledger.jsonl"
    assert {found.severity for found in ledger_findings(path)} == {OK}
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_cannot_be_written_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    assert writable(tmp_path / "ledger.jsonl").severity is BAD


@pytest.mark.parametrize(("free_bytes", "severity"), [(1 << 20, BAD), (GIB, WARN), (9 * GIB, OK)])
def test_room_on_the_disk_counts(tmp_path, free_bytes, severity):
    assert disk(tmp_path / "ledger.jsonl", free_bytes).severity is severity


def test_a_sound_ledger_is_counted_and_a_changed_one_is_broken(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    record_run(ledger, "aa11")
    assert "records and" in chain(ledger.path).seen
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b"aa11", b"aa12", 1))
    found = chain(ledger.path)
    assert (found.severity, found.exit_code) == (BAD, Exit.LEDGER_BROKEN)
    assert found.fix == f"attnbench ledger verify --ledger {ledger.path}"


def test_a_ledger_that_cannot_be_read_is_no_broken_one(tmp_path):
    (tmp_path / "ledger.jsonl").mkdir()
    found = chain(tmp_path / "ledger.jsonl")
    assert (found.severity, found.exit_code) == (BAD, Exit.VOID)
