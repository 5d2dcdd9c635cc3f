"""`attnbench methods tune` as a user runs it, with a worker that only says what it would find."""

from __future__ import annotations

import json

import msgspec
import pytest

from attnbench.measure import tuned
from attnbench.measure.answers import ArmRounds, RefusedLaunch, TimedLaunch, TunedCell, TuneResult
from attnbench.measure.tasks import ArmFailure, TuneTask
from attnbench.methods.kernel_table import read_table
from tests.measure import planned

GPU = msgspec.structs.replace(
    planned.CPU, kind="cuda", name="A GPU", compute_capability="8.9", driver="1.2"
)
LAUNCH = {"block_n": 64, "splits": 8, "num_warps": 4, "num_stages": 3, "ring": 0}
SLOWER = {**LAUNCH, "splits": 4}
BROKE = ArmFailure(type="Unsupported", message="no such kernel", hint="", during="tuning")
ARGUMENTS = ("methods", "tune", "flash_decode", "--ctx", "4096", "--batch", "1", "--batch", "4")


def worker(task: TuneTask, on_event, silence_s) -> TuneResult:
    """The second of two cells does not fit."""
    first, *others = task.cells
    found = TunedCell(
        cell=first,
        layers=4,
        read_bytes=4_000_000,
        launches=(
            TimedLaunch(launch=SLOWER, median_us=48.0),
            TimedLaunch(launch=LAUNCH, median_us=40.0),
        ),
        refused=(RefusedLaunch(launch=LAUNCH, failure=BROKE),),
        untried=9,
        first_us={"flash_decode": 40.0, "sdpa": 38.0, "sdpa,backend=flash": 80.0},
        rounds={
            "flash_decode": ArmRounds(step_us=(40.0, 44.0, 42.0)),
            "sdpa": ArmRounds(step_us=(40.0, 40.0, 40.0)),
        },
        failures={"fa3": BROKE},
    )
    failed = tuple(TunedCell(cell=cell, failure=BROKE) for cell in others)
    return TuneResult(label="flash_decode", cells=(found, *failed), device={"name": "A GPU"})


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    monkeypatch.setattr(tuned, "has_gpu", lambda: True)
    monkeypatch.setattr(tuned, "device_facts", lambda kind: GPU)
    monkeypatch.setattr(tuned, "run_task", worker)


def test_json_holds_each_cell_its_fastest_arm_and_the_distance_to_it(attnbench):
    done = attnbench(*ARGUMENTS, "--head-dim", "64", "--against", "exact", "--json")
    assert done.code == 0
    said = json.loads(done.out)
    first, second = said["cells"]
    assert (first["fastest"], first["fastest_us"], first["method_us"]) == ("sdpa", 10.0, 10.5)
    assert first["behind_percent"] == pytest.approx(5.0)
    assert first["behind_us"] == pytest.approx(0.5)
    assert first["behind_percent_range"] == pytest.approx([0.0, 10.0])
    assert first["gb_s"] == pytest.approx(4_000_000 / 10.5 / 1e3)
    assert (first["tried"], first["refused"], first["untried"]) == (2, 1, 9)
    assert first["launch"] == LAUNCH
    assert first["arms"]["sdpa,backend=flash"]["rounds"] == 0
    assert second["behind_percent"] is None
    assert second["failures"] == {"all": "no such kernel"}
    assert "eager_repeat_kv" in said["left_out"]
    assert len(said["entries"]) == 1


def test_the_winners_go_to_the_table_that_is_asked_for(attnbench, tmp_path):
    path = tmp_path / "mine.json"
    for _ in range(2):
        done = attnbench(*ARGUMENTS, "--head-dim", "64", "--out", str(path))
    assert done.code == 0
    (entry,) = read_table(path).entries
    assert entry.launch == LAUNCH
    assert (entry.place.gpu, entry.place.context, entry.place.batch) == ("A GPU", 4096, 1)
    assert (entry.measured.step_us, entry.measured.next_us, entry.measured.tried) == (40.0, 48.0, 2)
    assert entry.measured.driver == "1.2"


def test_a_person_reads_one_line_a_cell_and_why_others_have_no_figures(attnbench):
    done = attnbench(*ARGUMENTS, "--head-dim", "64")
    header, first, second, *rest = done.out.splitlines()
    assert "behind %" in header
    assert first.split()[:6] == ["4096", "1", "64", "4", "10.50", "381"]
    assert "sdpa" in first
    assert "5.00" in first
    assert "2 of 12" in first
    assert "splits=8" in first
    assert second.split()[:4] == ["4096", "4", "64", "0"]
    assert "no figures: fa3: no such kernel" in rest


def test_a_run_without_any_figures_ends_with_an_error_code(attnbench, monkeypatch):
    def nothing(task, on_event, silence_s):
        cells = tuple(TunedCell(cell=cell, failure=BROKE) for cell in task.cells)
        return TuneResult(label="flash_decode", cells=cells, device={})

    monkeypatch.setattr(tuned, "run_task", nothing)
    assert attnbench(*ARGUMENTS, "--json").code == 1


def test_a_table_that_is_none_is_refused_before_anything_is_measured(attnbench, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("{")
    done = attnbench(*ARGUMENTS, "--out", str(path))
    assert done.code == 2
    assert "is no table" in done.err


def test_without_a_gpu_it_is_refused_and_says_what_can_be_done(attnbench, monkeypatch):
    monkeypatch.setattr(tuned, "has_gpu", lambda: False)
    done = attnbench(*ARGUMENTS)
    assert done.code == 1
    assert "tuned on a CUDA GPU" in done.err
    assert "parity" in done.err
