"""What of the processor would spoil a measurement.

`kind` is the device that is measured: on a GPU the CPU only launches, on a CPU it is the subject.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from itertools import pairwise

from attnbench.measure.doctor.finding import Finding, bad, ok, unknown, warn
from attnbench.measure.doctor.system import System

DRIFT = "a drift of 1 % gave 14 to 66 % false verdicts where arms ran one after the other"
GOVERNORS = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
# Of the usable cores, by the load average of the last minute: from the first on it is told, from
# the second on a step on a CPU waits for its core.
BUSY_SHARE, CROWDED_SHARE = 0.25, 1.0
STEAL_SHARE = 0.01  # of the time since the machine started
READINGS = 1000
COARSE_NS = 1000  # steps of small cells last tens of microseconds
SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def cores(usable: int) -> Finding:
    """How many there are, and what a session takes of them."""
    if usable == 1:
        return warn(
            "cores", "1 usable", "the process that supervises a session shares the core with it"
        )
    return ok("cores", f"{usable} usable; a session on a CPU takes 1 unless --threads says more")


def governor(system: System, kind: str) -> Finding:
    """Whether the clock follows the load."""
    governors = set(system.cpu_files("cpufreq/policy*/scaling_governor"))
    if not governors:
        return unknown("CPU frequency", "not shown here: the host decides, or nothing scales it")
    seen = f"governor {', '.join(sorted(governors))}"
    if governors == {"performance"}:
        return ok("CPU frequency", seen)
    subject = "a step's time" if kind == "cpu" else "the time to launch a step"
    return warn(
        "CPU frequency",
        seen,
        f"the clock follows the load, and {subject} with it: {DRIFT}",
        f"echo performance | sudo tee {GOVERNORS}",
    )


def load(system: System, usable: int, kind: str) -> Finding:
    """Whether others use the processor now."""
    text = system.read_proc("loadavg")
    if not text:
        return unknown("CPU load", "not shown here")
    average = float(text.split()[0])
    seen = f"{average:.2f} runnable on average over a minute, {usable} cores"
    if average <= BUSY_SHARE * usable:
        return ok("CPU load", seen)
    show = "ps -eo pid,user,pcpu,comm --sort=-pcpu | head"
    if kind == "cpu" and average >= CROWDED_SHARE * usable:
        return bad("CPU load", seen, "steps wait for a core: A cannot be told from A′", show)
    return warn(
        "CPU load",
        seen,
        "what else runs takes cores, caches and memory bandwidth from some steps and not others",
        show,
    )


def smt(system: System, kind: str) -> Finding:
    """Whether two threads share a core."""
    active = system.read_sys("devices/system/cpu/smt/active")
    if not active:
        return unknown("SMT", "not shown here")
    if active == "0":
        return ok("SMT", "off: no two threads share a core")
    if kind != "cpu":
        return ok("SMT", "on; it does not matter to a GPU")
    return warn(
        "SMT",
        "on",
        "a neighbour on the same core slows a step without any other sign",
        "echo off | sudo tee /sys/devices/system/cpu/smt/control",
    )


def virtual(system: System) -> Finding:
    """Whether a hypervisor runs others on the same processor, and what they took so far."""
    steal = _steal_share(system)
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", system.read_proc("cpuinfo"), re.MULTILINE)
    guest = bool(flags) or bool(system.read_sys("hypervisor/type"))
    seen = "a virtual machine" if guest else "no sign of a hypervisor"
    if steal < STEAL_SHARE:
        return ok("virtualisation", f"{seen}; {steal:.1%} of the time stolen")
    return warn(
        "virtualisation",
        f"{seen}; {steal:.1%} of the time stolen since it started",
        "the host gave that time to other machines, in the middle of steps; ask for dedicated "
        "cores",
    )


def _steal_share(system: System) -> float:
    """Of the processors' time since the start, that which the hypervisor gave to others."""
    fields = system.read_proc("stat").partition("\n")[0].split()[1:9]  # up to steal
    jiffies = [int(field) for field in fields]
    total = sum(jiffies)
    return jiffies[7] / total if len(jiffies) == 8 and total else 0.0


def clock(system: System, now_ns: Callable[[], int] = time.perf_counter_ns) -> Finding:
    """Whether the clock that times steps is steady and fine enough."""
    source = system.read_sys("devices/system/clocksource/clocksource0/current_clocksource")
    tick_ns = finest_tick_ns(now_ns)
    seen = f"{source or 'source not shown'}, {tick_ns} ns between readings"
    if tick_ns < COARSE_NS and source not in SLOW_CLOCKS:
        return ok("clock", seen)
    return warn(
        "clock",
        seen,
        "each step is timed between two readings, and a slow clock is a part of every one",
        "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource",
    )


def finest_tick_ns(now_ns: Callable[[], int]) -> int:
    """The smallest difference that two readings of a clock show, in nanoseconds."""
    readings = [now_ns() for _ in range(READINGS)]
    return min((b - a for a, b in pairwise(readings) if b > a), default=0)
