from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from attnbench.errors import DoesNotFit, SessionLost, WorkerFailed, WorkerHung
from attnbench.measure.answers import MemoryResult
from attnbench.measure.events import Kept, Mark, Pick, Wanted
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import Bench, Fill, MemoryTask

TASK = MemoryTask(
    bench=Bench(
        model="embedded",
        dtype="float32",
        device="cpu",
        context=16,
        batch=1,
        arms=(),
        fill=Fill.SYNTHETIC,
        seed=1,
        threads=1,
    ),
    layers=(),
)
GOOD = '{"event":"result","result":{"task":"memory","arms":{},"failures":{}}}'


def supervised(script: str, *, on_event=lambda event: None, silence_s=20.0, exit_grace_s=20.0):
    command = (sys.executable, "-c", textwrap.dedent(script))
    return run_task(TASK, on_event, silence_s, command=command, exit_grace_s=exit_grace_s)


def test_the_task_arrives_and_the_result_comes_back():
    script = f"""
        import json, sys
        assert json.loads(sys.stdin.readline())["task"] == "memory"
        print('{GOOD}')
    """
    assert supervised(script) == MemoryResult(arms={}, failures={})


def test_progress_is_handed_on_in_order():
    script = f"""
        print('{{"event":"progress","done":1,"total":2,"detail":"sdpa"}}', flush=True)
        print('{{"event":"progress","done":2,"total":2,"detail":"int8_kv"}}', flush=True)
        print('{GOOD}')
    """
    heard = []
    supervised(script, on_event=heard.append)
    assert [(event.done, event.detail) for event in heard] == [(1, "sdpa"), (2, "int8_kv")]


def test_a_long_line_in_pieces_is_one_event():
    script = """
        import sys, time
        line = '{"event":"progress","done":1,"total":2,"detail":"' + "x" * 300_000 + '"}'
        sys.stdout.write(line[:100_000]); sys.stdout.flush(); time.sleep(0.1)
        sys.stdout.write(line[100_000:]); sys.stdout.flush()
    """
    heard = []
    with pytest.raises(WorkerFailed, match="without a result"):
        supervised(script, on_event=heard.append)
    assert len(heard[0].detail) == 300_000


def test_a_worker_that_dies_is_reported_with_its_status_and_last_words():
    with pytest.raises(WorkerFailed, match=r"(?s)status 3.*no CUDA for you"):
        supervised("import sys; print('no CUDA for you', file=sys.stderr); sys.exit(3)")


def test_a_worker_killed_by_the_system_is_said_to_have_run_out_of_memory():
    with pytest.raises(WorkerFailed, match="SIGKILL") as caught:
        supervised("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "memory" in caught.value.hint


BAR = "print('\\rLoading weights: 100%|####| 30/30 [00:00<00:00]', file=sys.stderr)"


def test_of_a_worker_that_was_killed_progress_bars_are_not_its_last_words():
    script = f"import os, signal, sys; print('a warning', file=sys.stderr); {BAR}; "
    with pytest.raises(WorkerFailed) as caught:
        supervised(script + "sys.stderr.flush(); os.kill(os.getpid(), signal.SIGKILL)")
    assert caught.value.message == "the worker was killed by SIGKILL"


def test_of_a_worker_that_was_killed_the_end_of_a_traceback_is_shown():
    script = f"""
        import os, signal, sys, traceback
        try:
            int("x")
        except ValueError:
            traceback.print_exc()
        {BAR}
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(WorkerFailed) as caught:
        supervised(script)
    ended = "ValueError: invalid literal for int() with base 10: 'x'"
    assert caught.value.message == f"the worker was killed by SIGKILL: {ended}"


def test_progress_bars_are_no_last_words_of_a_worker_that_ends_by_itself():
    with pytest.raises(WorkerFailed, match="no CUDA") as caught:
        supervised(f"import sys; {BAR}; print('no CUDA', file=sys.stderr); sys.exit(3)")
    assert "Loading" not in caught.value.message


def test_a_crash_is_named_by_its_signal():
    with pytest.raises(WorkerFailed, match="SIGSEGV"):
        supervised("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")


def test_a_result_does_not_hide_a_crash_after_it():
    with pytest.raises(WorkerFailed, match="SIGABRT"):
        supervised(f"import os; print('{GOOD}', flush=True); os.abort()")


def test_what_is_no_event_is_shown():
    with pytest.raises(WorkerFailed, match=r"no event.*Segmentation"):
        supervised("print('Segmentation violated')")


def test_silence_is_a_hang_and_ends_the_worker():
    with pytest.raises(WorkerHung, match=r"said nothing for 0\.5 s"):
        supervised("import time; time.sleep(600)", silence_s=0.5)


def test_a_worker_that_does_not_end_after_its_result_is_ended():
    script = f"""
        import os, time
        print('{GOOD}', flush=True)
        os.close(1)
        time.sleep(600)
    """
    with pytest.raises(WorkerFailed, match="did not end"):
        supervised(script, exit_grace_s=0.3)


def test_an_error_of_the_worker_is_raised_as_what_it_was():
    script = """
        print('{"event":"error","type":"DoesNotFit","message":"needs 9 GiB","hint":"--ctx 512"}')
        raise SystemExit(1)
    """
    with pytest.raises(DoesNotFit, match="needs 9 GiB") as caught:
        supervised(script)
    assert caught.value.hint == "--ctx 512"


@pytest.mark.parametrize("kind", ["KeyError", "IntEnum", "no such class"])
def test_an_error_that_is_not_ours_is_a_failed_worker(kind):
    script = f"""print('{{"event":"error","type":"{kind}","message":"oops","hint":""}}')"""
    with pytest.raises(WorkerFailed, match=f"{kind}: oops"):
        supervised(script)


def test_a_flood_on_standard_error_does_not_block_the_worker():
    script = f"""
        import sys
        for line in range(50_000):
            print("warning", line, file=sys.stderr)
        print('{GOOD}')
    """
    assert supervised(script) == MemoryResult(arms={}, failures={})


def test_a_worker_that_asks_gets_its_answer_as_one_line_and_goes_on():
    script = f"""
        import json, sys
        sys.stdin.readline()
        print('{{"event":"kept","visits":{{"sdpa":4}},"layers":2}}', flush=True)
        said = str(json.loads(sys.stdin.readline()))
        print(json.dumps({{"event":"progress","done":1,"total":1,"detail":said}}), flush=True)
        print('{GOOD}')
    """
    heard = []

    def answer(event):
        heard.append(event)
        if isinstance(event, Kept):
            return Wanted(picks=(Pick(arm="sdpa", visit=3, layer=1),))
        return None

    assert supervised(script, on_event=answer) == MemoryResult(arms={}, failures={})
    assert heard[0] == Kept(visits={"sdpa": 4}, layers=2)
    assert heard[1].detail == str({"picks": [{"arm": "sdpa", "visit": 3, "layer": 1}]})


def test_a_worker_that_is_gone_when_it_is_answered_is_reported_as_it_ended():
    script = """
        import os, sys
        sys.stdin.readline()
        os.close(0)
        print('{"event":"kept","visits":{"sdpa":4},"layers":2}', flush=True)
        sys.exit(5)
    """

    def late(event):
        time.sleep(0.3)
        return Wanted(picks=(Pick(arm="sdpa", visit=0, layer=0),) * 10_000)

    with pytest.raises(WorkerFailed, match="status 5"):
        supervised(script, on_event=late)


def test_a_worker_that_dies_without_having_read_its_task_is_reported_as_dead():
    task = msgspec.structs.replace(
        TASK, bench=msgspec.structs.replace(TASK.bench, model="x" * 1_000_000)
    )
    command = (sys.executable, "-c", "raise SystemExit(7)")
    with pytest.raises(WorkerFailed, match="status 7") as caught:
        run_task(task, lambda event: None, 20.0, command=command)
    assert type(caught.value) is WorkerFailed


def marked(patience_s: float) -> str:
    """A line of a script that says what an arm is at, and how long that may last."""
    sent = f'{{"event":"mark","arm":"a","doing":"probe","cell":0,"patience_s":{patience_s}}}'
    return f"print('{sent}', flush=True)"


def test_a_mark_can_shorten_the_silence_that_is_allowed():
    heard = []
    with pytest.raises(WorkerHung, match=r"said nothing for 0\.3 s"):
        supervised(f"{marked(0.3)}; import time; time.sleep(600)", on_event=heard.append)
    assert heard == [Mark(arm="a", doing="probe", cell=0, patience_s=0.3)]


@pytest.mark.parametrize(
    "next_event",
    ["""print('{"event":"progress","done":1,"total":2,"detail":""}', flush=True)""", marked(0)],
)
def test_what_a_mark_asked_for_is_forgotten_after_the_next_event(next_event):
    script = f"{marked(60)}; {next_event}; import time; time.sleep(600)"
    with pytest.raises(WorkerHung, match=r"said nothing for 0\.4 s"):
        supervised(script, silence_s=0.4)


def test_the_reason_of_an_error_arrives_with_it():
    script = """
        print('{"event":"error","type":"SessionLost","message":"gone","hint":"",'
              '"reason":"weights-changed"}')
        raise SystemExit(1)
    """
    with pytest.raises(SessionLost, match="gone") as caught:
        supervised(script)
    assert caught.value.reason == "weights-changed"


FORKS = """
    import os, sys, time
    child = os.fork()
    if child == 0:
        time.sleep(600)
    event = '{"event":"progress","done":%d,"total":%d,"detail":""}'
    print(event % (os.getpid(), child), flush=True)
    time.sleep(600)
"""


def test_ctrl_c_ends_the_worker_and_its_children():
    seen: list[int] = []

    def interrupt(event) -> None:
        seen.extend((event.done, event.total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervised(FORKS, on_event=interrupt)
    assert [pid for pid in seen if lives(pid)] == []


def test_a_hang_ends_the_children_too():
    seen: list[int] = []
    with pytest.raises(WorkerFailed, match="said nothing"):
        supervised(
            FORKS, on_event=lambda event: seen.extend((event.done, event.total)), silence_s=0.5
        )
    assert len(seen) == 2
    assert [pid for pid in seen if lives(pid)] == []


def test_a_worker_that_ignores_the_request_to_stop_is_killed():
    script = """
        import os, signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print('{"event":"progress","done":%d,"total":1,"detail":""}' % os.getpid(), flush=True)
        time.sleep(600)
    """
    seen: list[int] = []
    with pytest.raises(WorkerFailed):
        supervised(script, on_event=lambda event: seen.append(event.done), silence_s=0.3)
    assert not lives(seen[0])


def lives(pid: int) -> bool:
    """Whether the process still runs; a zombie that nobody has collected does not."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return True
