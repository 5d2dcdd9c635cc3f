"""Workers side by side, and one that is started before its task is known."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pytest

from attnbench.errors import Exit, WorkerFailed
from attnbench.measure import worker
from attnbench.measure.events import EventWriter
from attnbench.measure.imports import uncollected
from attnbench.measure.supervisor import Processes
from attnbench.measure.tasks import MemoryTask, QualityTask
from attnbench.quality.levels import QualityCounts
from tests.measure.standing import with_arms

BENCH = with_arms("sdpa")
MEMORY = MemoryTask(bench=BENCH, layers=())
QUALITY = QualityTask(bench=BENCH, counts=QualityCounts(context=16, windows=1, steps=1))
SILENCE_S = 60.0  # nothing waits for it when all is well
# Tells its process and its arguments.
TELLS = """
    import json, os, sys
    said = f"{os.getpid()} {' '.join(sys.argv[1:])}"
    sys.stdin.readline()
    print(json.dumps({"event": "progress", "done": 0, "total": 0, "detail": said}), flush=True)
    print('{"event":"result","result":{"task":"memory","arms":{},"failures":{}}}')
"""
WAITS = """
    import signal, sys, time
    sys.stdin.readline()
    deaf = "deaf" in sys.argv
    signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
    print('{"event":"progress","done":0,"total":0,"detail":"here"}', flush=True)
    time.sleep(600)
"""


def processes(script: str, *arguments: str) -> Processes:
    return Processes(command=(sys.executable, "-c", textwrap.dedent(script), *arguments))


def told(run: Processes, task) -> list[str]:
    """What a worker tells of itself: its process id, then its arguments."""
    heard: list[str] = []
    run(task, lambda event: heard.append(event.detail), SILENCE_S)
    return heard[0].split()


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_worker_that_was_started_ahead_gets_the_next_task_and_no_other():
    with processes(TELLS) as run:
        run.ahead()
        run.ahead()  # one is enough
        first, second = told(run, QUALITY), told(run, QUALITY)
    assert first[1:] == ["ahead"]
    assert second[1:] == []
    assert first[0] != second[0]


def test_memory_is_counted_in_a_worker_that_imported_nothing_ahead():
    with processes(TELLS) as run:
        run.ahead()
        assert told(run, MEMORY)[1:] == []
        assert told(run, QUALITY)[1:] == ["ahead"]


def test_a_worker_that_got_no_task_is_gone_at_the_end():
    with processes(TELLS) as run:
        run.ahead()
        pid = run._waiting._process.pid
        assert is_there(pid)
    assert not is_there(pid)


def test_one_that_died_before_its_task_came_is_reported_as_one_that_died_at_it():
    with processes("import sys; print('no torch', file=sys.stderr); sys.exit(3)") as run:
        run.ahead()
        with pytest.raises(WorkerFailed, match=r"(?s)status 3.*no torch"):
            told(run, QUALITY)


@pytest.mark.parametrize("deaf", [(), ("deaf",)])
def test_stop_interrupts_what_waits_in_another_thread_and_ends_its_worker(deaf, monkeypatch):
    monkeypatch.setattr("attnbench.measure.supervisor.INTERRUPT_GRACE_S", 0.2)
    here = Event()
    with processes(WAITS, *deaf) as run, ThreadPoolExecutor(1) as other:
        waiting = other.submit(run, QUALITY, lambda event: here.set(), SILENCE_S)
        assert here.wait(SILENCE_S)
        (working,) = run._working
        run.stop()
        with pytest.raises(KeyboardInterrupt):
            waiting.result(SILENCE_S)
        assert not is_there(working._process.pid)
        with pytest.raises(KeyboardInterrupt):
            run(QUALITY, lambda event: None, SILENCE_S)


def test_two_at_once_hear_their_own_workers():
    with processes(TELLS) as run, ThreadPoolExecutor(2) as both:
        ids = [each.result()[0] for each in [both.submit(told, run, QUALITY) for _ in range(2)]]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(("arguments", "order"), [(["ahead"], ["import", "read"]), ([], ["read"])])
def test_a_worker_that_is_started_ahead_imports_before_it_reads_its_task(
    arguments, order, monkeypatch
):
    done: list[str] = []

    class Asked:
        def readline(self):
            done.append("read")
            return b"no task"

    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    monkeypatch.setattr(worker, "take_stdout", lambda: EventWriter(io.BytesIO(), io.BytesIO()))
    monkeypatch.setattr(worker, "import_ahead", lambda: done.append("import"))
    monkeypatch.setattr(sys, "argv", ["worker", *arguments])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Asked()))
    assert worker.main() == Exit.RUNTIME
    assert done == order


@pytest.mark.parametrize("was_on", [True, False])
def test_imports_are_not_collected_and_the_collector_is_as_before(was_on):
    frozen = gc.get_freeze_count()
    try:
        if not was_on:
            gc.disable()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is was_on
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
        gc.enable()


def left(program: str) -> subprocess.CompletedProcess[str]:
    """How a process with a buffered standard output ended."""
    command, env = [sys.executable, "-c", program], {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_leaving_flushes_runs_exit_handlers_and_gives_the_status():
    program = (
        "import atexit, threading, time; from attnbench.measure.lifeline import leave; "
        "atexit.register(print, 'handler'); "
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start(); "
        "print('said', end=' '); leave(11)"
    )
    done = left(program)
    assert done.stdout.split() == ["said", "thread", "handler"]
    assert (done.returncode, done.stderr) == (11, "")


def test_leaving_with_a_reader_that_is_gone_ends_as_python_does():
    program = (
        "import os, sys; from attnbench.measure.lifeline import leave; "
        "print('said'); os.close(1); leave(0)"
    )
    done = left(program)
    assert done.returncode == 120
