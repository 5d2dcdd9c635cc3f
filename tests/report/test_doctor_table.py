from __future__ import annotations

import json

from rich.console import Console

from attnbench.errors import Exit
from attnbench.measure.doctor.examine import Examination
from attnbench.measure.doctor.finding import bad, ok, unknown, warn
from attnbench.report.doctor_table import examination_json, print_examination

LONG_FIX = "sudo nvidia-smi -i GPU-a1681e1b-b876-e2a5-0007-6180ee4bf701 -q -d PERFORMANCE,POWER"
LONG_WHY = "one throttled reading voids the run: cool the GPU, or lower its clock, and come back"
ILL = Examination(
    device="cuda",
    name="NVIDIA H100",
    findings=(
        ok("memory", "9 GiB free"),
        warn("clocks", "not locked", "they wander"),
        bad("throttling", "power brake", LONG_WHY, LONG_FIX),
        unknown("ECC", "[none] of it"),
    ),
)


def printed(examination: Examination, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        print_examination(console, examination)
    return capture.get().splitlines()


def test_the_gravest_comes_first_and_the_end_says_whether_it_counts():
    text = "\n".join(printed(ILL, 100))
    order = [text.index(check) for check in ("throttling", "clocks", "ECC", "memory")]
    assert order == sorted(order)
    assert text.endswith("A measurement here would not count.")


def test_on_a_narrow_terminal_words_fold_and_a_command_stays_one_line():
    lines = printed(ILL, 50)
    assert f"  {LONG_FIX}" in lines
    assert max(len(line) for line in lines if LONG_FIX not in line) <= 50
    assert LONG_WHY in " ".join(" ".join(lines).split())


def test_what_was_seen_is_no_markup():
    assert any("[none] of it" in line for line in printed(ILL, 80))


def test_a_fit_machine_says_so():
    fit = Examination(device="cpu", name="", findings=(ok("memory", "9 GiB free"),))
    lines = printed(fit, 80)
    assert lines[0] == "cpu"
    assert lines[-1] == "A measurement here counts."


def test_for_machines_the_same_is_json():
    data = json.loads(examination_json(ILL))
    assert data["exit_code"] == Exit.VOID
    assert data["findings"][2] == {
        "check": "throttling",
        "severity": "bad",
        "seen": "power brake",
        "why": LONG_WHY,
        "fix": LONG_FIX,
        "exit_code": 12,
    }
