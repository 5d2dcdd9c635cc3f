from __future__ import annotations

import torch

from attnbench.measure import clock
from attnbench.measure.clock import HostClock, device_clock


def test_the_host_clock_is_read_once_between_consecutive_steps(monkeypatch):
    marks_ns = iter([1_000, 4_000, 9_000, 10_500])
    monkeypatch.setattr(clock.time, "perf_counter_ns", lambda: next(marks_ns))
    calls = []
    timing = HostClock().time(lambda: calls.append(None), 3)
    assert timing.steps_us == (3.0, 5.0, 1.5)
    assert timing.wall_us == 9.5
    assert len(calls) == 3


def test_work_on_the_cpu_is_timed_by_the_host():
    assert isinstance(device_clock(torch.device("cpu")), HostClock)
