from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from attnbench.errors import ModelError, Unsupported, UsageError, WorkerFailed
from attnbench.measure.answers import PilotResult, SessionResult
from attnbench.measure.chosen import fastest_exact
from attnbench.measure.events import Failure, Progress, decode_event
from attnbench.measure.judging import run_judging
from attnbench.measure.overseer import Overseer
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import Fill, MemoryTask, PilotTask, QualityTask, SessionTask
from attnbench.measure.workbench import open_bench
from attnbench.measure.worker import failure_event
from attnbench.protocol.integrity import ERROR_BOUND, REST_OF_STEP
from attnbench.quality.levels import QualityCounts
from attnbench.quality.text import TextTooShort
from tests.measure.simulated import Muted
from tests.measure.standing import CPU, STEPS, arm, cell, with_arms
from tests.models.tiny import COMMON, build

SILENCE_S = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny model on disk, without a tokenizer."""
    path = tmp_path_factory.mktemp("tiny")
    build("llama", COMMON).save_pretrained(path)
    return str(path)


def run(task, on_event=None):
    return run_task(task, on_event or Overseer(lambda *_: None), SILENCE_S)


def test_a_whole_session_runs_in_a_process_of_its_own(folder):
    bench = msgspec.structs.replace(with_arms("sdpa", "Nan", "zero_cost"), model=folder)
    shown: list[tuple[int, int, str]] = []
    overseer = Overseer(lambda *told: shown.append(told))
    task = SessionTask(bench=bench, session=0, cells=(cell(bench),), steps=STEPS)
    result = overseer.timed(run(task, overseer))
    assert isinstance(result, SessionResult)
    (walked,) = result.cells
    assert set(walked.failures) == {"Nan"}
    assert len(walked.samples.visits) == 2 * 4
    assert walked.read_bytes["sdpa"] > walked.read_bytes["zero_cost"] == result.weight_bytes
    assert len(result.cache_sha256) == 64
    assert shown[-1][0] == shown[-1][1]
    # The parent read its own clock around every visit.
    assert all(visit.parent_us > 0 for visit in walked.samples.visits)
    assert {check.layer for check in walked.checks["sdpa"]} == {REST_OF_STEP, 0, 1, 2}
    assert max(check.worst_head for check in walked.checks["sdpa"]) < ERROR_BOUND["float32"]
    assert result.influence["sdpa"].counted == result.influence["sdpa"].declared == 1
    assert result.influence["zero_cost"].declared == 0
    assert set(result.replays) == set(walked.checks) == {"sdpa", "zero_cost"}
    phases = result.phases_s
    assert sum(phases.values()) - phases["total"] <= phases["total"]


def test_the_pilot_reports_layers_arms_and_times(folder):
    exact = msgspec.structs.replace(with_arms("sdpa", "sdpa_repeat_kv"), model=folder)
    bench = msgspec.structs.replace(exact, arms=(*exact.arms, arm("Transposed")))
    result = run(PilotTask(bench=bench, cells=(cell(exact),), steps=STEPS))
    assert isinstance(result, PilotResult)
    assert [(layer.heads, layer.kv_heads, layer.head_dim) for layer in result.layers] == [
        (4, 2, 8)
    ] * 3
    assert result.arms["Transposed"].failure.type == "BrokenArm"
    assert {visit.arm for visit in result.session.cells[0].samples.visits} == {
        "sdpa",
        "sdpa_repeat_kv",
    }
    memory = run(MemoryTask(bench=exact, layers=result.layers))
    assert memory.arms["sdpa"].reachable_bytes == 3 * 2 * 2 * 2 * 25 * 8 * 4


def test_an_arm_that_only_says_it_is_exact_never_becomes_the_baseline(folder):
    bench = msgspec.structs.replace(with_arms("SaysExact", "Exact"), model=folder)
    pilot = run(PilotTask(bench=bench, cells=(cell(bench),), steps=STEPS))
    assert pilot.arms["SaysExact"].failure.type == "BrokenArm"
    assert fastest_exact(pilot, 0) == "Exact"
    assert "differs from attention" in pilot.session.cells[0].failures["SaysExact"].message
    alone = msgspec.structs.replace(with_arms("SaysExact", "ForgetsNew"), model=folder)
    pilot = run(PilotTask(bench=alone, cells=(cell(alone),), steps=STEPS))
    with pytest.raises(Unsupported, match="no exact arm") as refused:
        fastest_exact(pilot, 0)
    assert "differs from attention" in refused.value.hint


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can tell a child")
def test_a_worker_and_its_children_do_not_outlive_a_parent_that_was_killed():
    """The parent is killed by a signal that it cannot handle."""
    told = "import sys; from attnbench.measure.lifeline import end_with_parent; end_with_parent(); "
    child = told + "import time; print('ready', flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.stdout.read() == b""  # ends when nobody holds the pipe any more


def test_a_model_that_is_not_there_is_the_users_error_across_processes():
    bench = msgspec.structs.replace(with_arms("sdpa"), model="./nowhere.gguf")
    task = SessionTask(bench=bench, session=0, cells=(), steps=STEPS)
    with pytest.raises(ModelError, match="nowhere"):
        run(task)


def test_a_context_beyond_the_model_is_refused(folder):
    bench = msgspec.structs.replace(CPU, model=folder, context=129)
    with pytest.raises(UsageError, match="128 positions"), open_bench(bench):
        pass


def test_quality_of_a_model_that_cannot_read_is_refused(folder):
    bench = msgspec.structs.replace(with_arms("sdpa"), model=folder, fill=Fill.PREFILLED)
    with pytest.raises(UsageError, match="tokenizer"):
        run_judging(
            QualityTask(
                bench=bench, counts=QualityCounts(context=bench.context, windows=1, steps=2)
            ),
            Muted(),
        )


def test_a_task_that_is_none_is_refused():
    ran = subprocess.run(
        [sys.executable, "-m", "attnbench.measure.worker"],
        input=b'{"task":"coffee"}',
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 1
    event = decode_event(ran.stdout.strip())
    assert isinstance(event, Failure)
    assert event.type == "ValidationError"
    assert b"Traceback" in ran.stderr


def test_a_bug_in_the_worker_is_a_failed_worker_with_its_traceback(folder):
    bench = msgspec.structs.replace(CPU, model=folder, dtype="float31")
    with pytest.raises(WorkerFailed, match=r"(?s)AttributeError.*float31"):
        run(SessionTask(bench=bench, session=0, cells=(), steps=STEPS))


def test_stray_prints_cannot_reach_the_events():
    script = (
        "import os; from attnbench.measure.events import take_stdout; events = take_stdout(); "
        "print('loading', flush=True); os.write(1, b'native'); events.progress(1, 2, 'x')"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert decode_event(ran.stdout.strip()) == Progress(done=1, total=2, detail="x")
    assert b"loading" in ran.stderr
    assert b"native" in ran.stderr


def test_an_error_travels_by_the_name_of_its_nearest_public_class():
    event = failure_event(TextTooShort("too short", hint="less context"))
    assert (event.type, event.message, event.hint) == ("UsageError", "too short", "less context")
    assert failure_event(KeyError("x")).type == "KeyError"
