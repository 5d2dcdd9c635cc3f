from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from attnbench.kernels.read_bandwidth import ReadConfig, configurations, read, whole_rounds
from attnbench.measure.bandwidth import Reader, read_bandwidth, readers, validity
from attnbench.measure.clock import Timing
from attnbench.measure.device import cpu_facts


class ScriptedClock:
    """Runs the steps and says that they took these times, in microseconds."""

    def __init__(self, *times_us: float) -> None:
        self._times = iter(times_us)

    def time(self, step, count: int) -> Timing:
        for _ in range(count):
            step()
        taken = tuple(next(self._times) for _ in range(count))
        return Timing(taken, sum(taken))


@pytest.fixture
def _small_buffer(monkeypatch):
    monkeypatch.setattr("attnbench.measure.bandwidth.CPU_BUFFER_BYTES", 1 << 20)


@pytest.mark.usefixtures("_small_buffer")
def test_bandwidth_is_bytes_over_the_median():
    found = read_bandwidth(cpu_facts(), ScriptedClock(100.0, 1000.0, 110.0, 90.0))
    assert found.read_us == (100.0, 1000.0, 110.0, 90.0)
    assert found.gb_s == pytest.approx((1 << 20) / 105e-6 / 1e9)
    assert found.buffer_bytes == 1 << 20
    assert found.note == ""


@pytest.mark.usefixtures("_small_buffer")
def test_of_several_readers_which_have_all_read_once_the_fastest_counts():
    asked = []
    ready = tuple(
        Reader(read=partial(asked.append, how), buffer_bytes=1000, reads=2, how=how)
        for how in ("slow", "fast", "slower")
    )
    found = read_bandwidth(cpu_facts(), ScriptedClock(3.0, 3.0, 1.0, 1.0, 4.0, 4.0), ready)
    assert (found.how, found.gb_s) == ("fast", 1.0)
    assert asked == ["slow", "slow", "fast", "fast", "slower", "slower"]
    (reader,) = readers(cpu_facts())
    assert reader.buffer_bytes == 1 << 20


def test_the_buffer_exceeds_every_cache_where_memory_allows(monkeypatch):
    monkeypatch.setattr("attnbench.measure.bandwidth.last_level_cache_bytes", lambda: 1 << 20)
    found = read_bandwidth(cpu_facts(), ScriptedClock(*[1.0] * 4))
    assert found.buffer_bytes == 4 << 20


@pytest.mark.parametrize(
    ("gb_s", "theory", "note"),
    [
        (2700.0, 3352.0, ""),
        (2600.0, 3352.0, "78% of what memory clock and bus width give"),
        (3400.0, 3352.0, "more than"),
        (15.0, 0.0, ""),
    ],
)
def test_a_probe_below_four_fifths_of_theory_or_above_it_says_so(gb_s, theory, note):
    assert note in validity(gb_s, theory)
    assert bool(validity(gb_s, theory)) == bool(note)


@pytest.mark.parametrize("processors", [4, 24, 58, 132])
def test_every_configuration_reads_the_whole_buffer_in_whole_rounds(processors):
    configs = configurations(processors)
    elements = whole_rounds((1 << 31) // 4, configs)
    assert elements > 0.9 * (1 << 31) / 4
    assert all(elements % (config.tile * config.programs) == 0 for config in configs)


def test_a_buffer_that_is_not_whole_rounds_is_refused():
    with pytest.raises(ValueError, match="whole rounds"):
        read(torch.ones(100), torch.empty(2), ReadConfig(tile=16, programs=2, num_warps=1))


def test_the_kernel_reads_every_element_once():
    script = (
        "import torch; from attnbench.kernels.read_bandwidth import ReadConfig, read; "
        "x = torch.arange(4096, dtype=torch.float32); sums = torch.empty(4); "
        "read(x, sums, ReadConfig(tile=128, programs=4, num_warps=1)); "
        "assert sums.tolist() == x.view(8, 4, 128).sum(dim=(0, 2)).tolist(), sums"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()
