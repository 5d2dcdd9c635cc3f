"""An arm that no worker survives costs that worker, not the run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

import msgspec
import pytest

from attnbench.errors import AttnbenchError, SessionLost, WorkerFailed, WorkerHung
from attnbench.ledger import Ledger, verify
from attnbench.measure.answers import (
    MemoryResult,
    PilotResult,
    QualityResult,
    SessionResult,
    TaskResult,
)
from attnbench.measure.events import Doing, Mark, Progress
from attnbench.measure.tasks import MemoryTask, PilotTask, QualityTask, SessionTask, Task
from attnbench.measure.workers import NOTE_WIDTH, Workers
from attnbench.protocol.cell import Arm, Role
from attnbench.quality.levels import QualityCounts
from tests.measure.fake_workers import UNSUPPORTED, FakeWorkers, NoteTaker
from tests.measure.standing import STEPS, cell, with_arms

HUNG = WorkerHung("the worker said nothing for 60 s and was killed", hint="a smaller cell")
LOST = SessionLost("it changed the model's weights", reason="weights-changed")
BENCH = with_arms("sdpa", "int8_kv", "sink_window")
BASELINE = Arm(label="sdpa", method="sdpa", role=Role.BASELINE)
WITH_BASELINE = msgspec.structs.replace(BENCH, arms=(BASELINE, *BENCH.arms[1:]))
SESSION = SessionTask(bench=WITH_BASELINE, session=0, cells=(cell(BENCH),), steps=STEPS)
PILOT = PilotTask(bench=BENCH, cells=(cell(BENCH),), steps=STEPS)
MEMORY = MemoryTask(bench=BENCH, layers=())
QUALITY = QualityTask(bench=BENCH, counts=QualityCounts(context=16, windows=1, steps=1))


@dataclass
class Deadly:
    """Workers that do not survive these arms, unless they are told to leave them out."""

    errors: dict[str, BaseException]
    tasks: list[Task] = field(default_factory=list)
    answer: Callable[[Task], TaskResult] = field(default_factory=lambda: FakeWorkers()._result)

    def __call__(self, task: Task, on_event: Callable, silence_s: float) -> TaskResult:
        self.tasks.append(task)
        on_event(Progress(done=0, total=1, detail="loading"))
        for arm in task.bench.arms:
            if arm.label not in task.bench.left_out:
                on_event(Mark(arm=arm.label, doing=Doing.TIMED, cell=0))
                if arm.label in self.errors:
                    raise self.errors[arm.label]
        return self.answer(task)


def test_an_arm_that_two_workers_side_by_side_do_not_survive_costs_neither_its_result(ledger):
    both = Barrier(2)

    class Beside(Deadly):
        def __call__(self, task, on_event, silence_s):
            if any(arm.label == "int8_kv" for arm in task.bench.arms):
                both.wait(60)
            return super().__call__(task, on_event, silence_s)

    workers, told = hired(ledger, Beside({"int8_kv": HUNG}))
    with ThreadPoolExecutor(1) as other:
        quality = other.submit(workers.work, "quality", QUALITY, QualityResult, told.update)
        memory = workers.work("memory", MEMORY, MemoryResult, told.update)
    for result in (memory, quality.result()):
        assert set(result.arms) == {"sdpa", "sink_window"}
    assert set(workers.left_out) == {"int8_kv"}
    assert len([note for note in told.notes if "left out" in note]) == 1
    assert sorted(phases(ledger)) == ["closed"] * 2 + ["failed"] * 2 + ["opened"] * 4
    assert verify(ledger.path).exit_code == 0


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def hired(ledger: Ledger, run: Callable) -> tuple[Workers, NoteTaker]:
    told = NoteTaker()
    return Workers(ledger, told, about={"protocol": "canonical"}, run=run), told


def phases(ledger: Ledger) -> list[str]:
    return [record.body["phase"] for record in ledger.records()]


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (HUNG, "WorkerHung", "hung"),
        (LOST, "SessionLost", "weights-changed"),
        (WorkerFailed("the worker was killed by SIGSEGV"), "WorkerFailed", ""),
    ],
)
def test_a_task_is_done_again_without_the_arm_that_was_running(ledger, error, kind, reason):
    run = Deadly({"int8_kv": error})
    workers, _ = hired(ledger, run)
    assert isinstance(workers.work(0, SESSION, SessionResult, NoteTaker().update), SessionResult)
    first, second = run.tasks
    assert first == SESSION
    (label,) = second.bench.left_out
    failure = second.bench.left_out[label]
    assert (label, failure.type, failure.reason) == ("int8_kv", kind, reason)
    assert error.message in failure.message
    assert failure.hint == error.hint
    assert failure.during == "timed steps of int8_kv"
    assert second.bench.arms == SESSION.bench.arms


def test_the_worker_that_was_lost_stands_in_the_ledger_before_the_one_that_was_not(ledger):
    workers, _ = hired(ledger, Deadly({"int8_kv": HUNG}))
    workers.work(0, SESSION, SessionResult, NoteTaker().update)
    assert phases(ledger) == ["opened", "failed", "opened", "closed"]
    first, failed, again, closed = ledger.records()
    assert (failed.cites, closed.cites) == ((first.id,), (again.id,))
    assert "at 'timed steps of int8_kv': the worker said nothing" in failed.body["error"]
    assert workers.cites == [closed.id]
    assert first.body["task"]["bench"]["left_out"] == {}
    assert again.body["task"]["bench"]["left_out"]["int8_kv"]["reason"] == "hung"
    assert verify(ledger.path).exit_code == 0


def test_who_is_left_out_is_told_in_one_short_line(ledger):
    long = WorkerHung("the worker said nothing\n" + "word " * 99)
    workers, told = hired(ledger, Deadly({"int8_kv": long}))
    workers.work(0, SESSION, SessionResult, NoteTaker().update)
    (note,) = told.notes
    assert note.startswith("left out from here on: int8_kv: at 'timed steps of int8_kv'")
    assert "\n" not in note
    assert len(note) < NOTE_WIDTH + 60


def test_an_arm_that_was_left_out_stays_out_of_every_later_task(ledger):
    run = Deadly({"int8_kv": HUNG})
    workers, _ = hired(ledger, run)
    for number in range(2):
        task = msgspec.structs.replace(SESSION, session=number)
        workers.work(number, task, SessionResult, NoteTaker().update)
    assert [sorted(task.bench.left_out) for task in run.tasks] == [[], ["int8_kv"], ["int8_kv"]]


def test_several_arms_can_be_left_out_one_worker_each(ledger):
    run = Deadly({"int8_kv": HUNG, "sink_window": LOST})
    workers, _ = hired(ledger, run)
    workers.work(0, SESSION, SessionResult, NoteTaker().update)
    assert [sorted(task.bench.left_out) for task in run.tasks] == [
        [],
        ["int8_kv"],
        ["int8_kv", "sink_window"],
    ]


def test_what_a_task_left_out_itself_stays_out(ledger):
    gone = msgspec.structs.replace(
        SESSION,
        bench=msgspec.structs.replace(WITH_BASELINE, left_out={"sink_window": UNSUPPORTED}),
    )
    run = Deadly({"int8_kv": HUNG})
    workers, _ = hired(ledger, run)
    workers.work(0, gone, SessionResult, NoteTaker().update)
    assert sorted(run.tasks[-1].bench.left_out) == ["int8_kv", "sink_window"]


@pytest.mark.parametrize("task", [MEMORY, QUALITY])
def test_memory_and_quality_go_on_without_an_arm_that_was_left_out_before(ledger, task):
    run = Deadly({"int8_kv": HUNG})
    workers, _ = hired(ledger, run)
    workers.work(0, SESSION, SessionResult, NoteTaker().update)
    workers.work("after", task, MemoryResult | QualityResult, NoteTaker().update)
    assert [arm.label for arm in run.tasks[-1].bench.arms] == ["sdpa", "sink_window"]
    told = {"int8_kv"} if task is QUALITY else set()  # whose samples must say why there are none
    assert set(run.tasks[-1].bench.left_out) == told


def test_a_pilot_can_lose_an_arm_that_might_have_become_the_baseline(ledger):
    workers, _ = hired(ledger, Deadly({"sdpa": HUNG}))
    workers.work("pilot", PILOT, PilotResult, NoteTaker().update)
    assert set(workers.left_out) == {"sdpa"}


@pytest.mark.parametrize("role", [Role.BASELINE, Role.BASELINE_AGAIN])
def test_without_its_baseline_a_session_is_lost(ledger, role):
    arms = (Arm(label="a", method="sdpa", role=role), *BENCH.arms)
    task = msgspec.structs.replace(SESSION, bench=msgspec.structs.replace(BENCH, arms=arms))
    workers, told = hired(ledger, Deadly({"a": HUNG}))
    with pytest.raises(WorkerHung, match="timed steps of a"):
        workers.work(0, task, SessionResult, NoteTaker().update)
    assert phases(ledger) == ["opened", "failed"]
    assert (workers.left_out, told.notes) == ({}, [])


@pytest.mark.parametrize("last", ["progress", "nothing"])
def test_a_hang_that_no_arm_is_to_blame_for_is_raised(ledger, last):
    def run(task, on_event, silence_s):
        if last == "progress":
            on_event(Mark(arm="int8_kv", doing=Doing.PROBED, cell=0))
            on_event(Progress(done=1, total=1, detail="read bandwidth"))
        raise HUNG

    workers, _ = hired(ledger, run)
    with pytest.raises(WorkerHung, match="said nothing"):
        workers.work(0, SESSION, SessionResult, NoteTaker().update)
    assert phases(ledger) == ["opened", "failed"]
    assert workers.left_out == {}


def test_an_arm_that_is_lost_although_it_was_left_out_ends_the_run(ledger):
    tries = []

    def run(task, on_event, silence_s):
        tries.append(task)
        assert len(tries) <= 2, "it is tried again and again"
        on_event(Mark(arm="int8_kv", doing=Doing.SET_UP, cell=0))
        raise HUNG

    workers, told = hired(ledger, run)
    with pytest.raises(WorkerHung):
        workers.work(0, SESSION, SessionResult, NoteTaker().update)
    assert phases(ledger) == ["opened", "failed"] * 2
    assert len(told.notes) == 1


def test_an_error_that_the_worker_lives_to_report_is_no_arms_doing(ledger):
    workers, _ = hired(ledger, Deadly({"int8_kv": AttnbenchError("the text is too short")}))
    with pytest.raises(AttnbenchError, match="too short"):
        workers.work(0, SESSION, SessionResult, NoteTaker().update)
    assert phases(ledger) == ["opened", "failed"]
    assert workers.left_out == {}


def test_ctrl_c_aborts_and_blames_nobody(ledger):
    workers, told = hired(ledger, Deadly({"int8_kv": KeyboardInterrupt()}))
    with pytest.raises(KeyboardInterrupt):
        workers.work(0, SESSION, SessionResult, NoteTaker().update)
    assert phases(ledger) == ["opened", "aborted"]
    assert workers.left_out == {}
    assert told.notes == [f"interrupted: run {workers.run} ends as aborted in the ledger"]
