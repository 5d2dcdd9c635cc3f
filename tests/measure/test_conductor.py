"""Every worker stands in the ledger from before it starts until after it ends."""

from __future__ import annotations

import gzip
from dataclasses import replace
from threading import Barrier, Event

import msgspec
import pytest

from attnbench.errors import AttnbenchError, Unsupported, WorkerFailed, WorkerHung
from attnbench.ledger import Ledger, verify
from attnbench.ledger.folding import phases as conclusions_of
from attnbench.measure.answers import TaskResult
from attnbench.measure.conductor import Conductor
from attnbench.measure.events import Doing, Mark
from attnbench.measure.evidence import Evidence
from attnbench.measure.plan import Plan
from attnbench.measure.tasks import SessionTask
from attnbench.measure.verdicts import arm_results
from attnbench.measure.workers import SILENCE_S
from attnbench.protocol.cell import Mode, Role, Scope
from attnbench.protocol.looks import protocol_at
from attnbench.protocol.presets import SEQUENTIAL
from tests.measure.fake_workers import UNSUPPORTED, FakeWorkers, NoteTaker, broke, name_of
from tests.measure.planned import EAGER, INT8, MATH, SDPA, SINK, ZERO, plan, request

ORDER = ["pilot", 0, 1, 2, "memory", "quality"]
TIMED = ORDER[:-2]  # alone on the machine; memory and quality run side by side on a CPU


LONGEST_S = 60.0  # nothing waits for it when all is well


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def conduct(
    ledger: Ledger,
    workers: FakeWorkers,
    described: Plan | None = None,
    told: NoteTaker | None = None,
) -> Evidence:
    workers.watch = lambda: phases(ledger)
    return Conductor(described or plan(), ledger, told or NoteTaker(), run=workers).conduct()


def conclusions(ledger: Ledger) -> dict[str, str]:
    """How each session ended that was opened, by its opening record."""
    return conclusions_of(ledger.records())


def phases(ledger: Ledger) -> list[tuple[str, object]]:
    if not ledger.path.exists():
        return []
    return [(record.body["phase"], record.body["session"]) for record in ledger.records()]


def test_pilot_and_sessions_run_in_this_order_and_memory_and_quality_after_them(ledger):
    workers = FakeWorkers()
    conduct(ledger, workers)
    assert list(workers.tasks)[:-2] == TIMED
    assert set(workers.tasks) == set(ORDER)


def test_every_worker_is_opened_before_it_starts_and_those_that_time_are_closed_before_the_next(
    ledger,
):
    workers = FakeWorkers()
    conduct(ledger, workers)
    both = [(phase, name) for name in TIMED for phase in ("opened", "closed")]
    for index, name in enumerate(TIMED):
        assert workers.seen[name] == both[: 2 * index + 1]
    assert phases(ledger)[: len(both)] == both
    for name in ("memory", "quality"):
        assert workers.seen[name][: len(both)] == both
        assert ("opened", name) in workers.seen[name]
        assert ("closed", name) not in workers.seen[name]
    assert sorted(phases(ledger)[len(both) :]) == sorted(
        (phase, name) for name in ("memory", "quality") for phase in ("opened", "closed")
    )


class Meeting(FakeWorkers):
    """Memory and quality each wait until the other has begun; `fault` is raised by one of them
    while the other goes on until it is stopped."""

    def __init__(self, fault=None):
        super().__init__()
        self.together, self.stopped, self.fault = Barrier(2), Event(), fault or {}

    def stop(self):
        self.stopped.set()

    def __call__(self, task, on_event, silence_s):
        name = name_of(task)
        if name in ("memory", "quality"):
            self.together.wait(LONGEST_S)
            if name in self.fault:
                raise self.fault[name]
            if self.fault:
                assert self.stopped.wait(LONGEST_S)
                raise KeyboardInterrupt
        return super().__call__(task, on_event, silence_s)


def test_on_a_cpu_memory_and_quality_run_side_by_side_and_both_are_recorded(ledger):
    evidence = conduct(ledger, Meeting())
    assert (evidence.failed, evidence.memory is None, evidence.quality is None) == (
        (),
        False,
        False,
    )
    assert phases(ledger)[-4:-2] in (
        [("opened", "memory"), ("opened", "quality")],
        [("opened", "quality"), ("opened", "memory")],
    )
    assert verify(ledger.path).exit_code == 0
    assert set(conclusions(ledger).values()) == {"closed"}


@pytest.mark.parametrize(
    "described", [replace(plan(), device="cuda"), replace(plan(), cache_bytes=2 << 30)]
)
def test_on_a_gpu_and_in_little_memory_quality_waits_for_memory(ledger, described):
    workers = FakeWorkers()
    conduct(ledger, workers, described)
    after = workers.seen["quality"]
    assert after.index(("closed", "memory")) < after.index(("opened", "quality"))


def test_an_interrupt_aborts_both_that_run_side_by_side_and_is_told_once(ledger):
    workers, told = Meeting({"memory": KeyboardInterrupt()}), NoteTaker()
    with pytest.raises(KeyboardInterrupt):
        conduct(ledger, workers, told=told)
    ends = list(conclusions(ledger).values())
    assert ends == ["closed"] * len(TIMED) + ["aborted"] * 2
    assert verify(ledger.path).exit_code == 0
    assert len([note for note in told.notes if "interrupted" in note]) == 1


def test_the_opening_record_holds_the_task_the_protocol_and_the_environment(ledger):
    workers = FakeWorkers()
    conduct(ledger, workers)
    for record in ledger.records():
        if record.body["phase"] == "opened":
            body = record.body
            task = type(workers.tasks[body["session"]])
            assert msgspec.convert(body["task"], task) == workers.tasks[body["session"]]
            assert body["protocol"] == "canonical"
            assert body["environment"]["device"] == "A processor"
            assert body["environment"]["torch"]


def test_a_blob_of_a_closed_session_decodes_to_what_the_worker_sent(ledger):
    workers = FakeWorkers()
    conduct(ledger, workers)
    closed = [record for record in ledger.records() if record.body["phase"] == "closed"]
    for record in closed:
        blob = gzip.decompress(ledger.get_blob(record.body["samples"]))
        sent = workers.results[record.body["session"]]
        assert msgspec.json.decode(blob, type=TaskResult) == sent
    assert len(closed) == len(ORDER)


def test_the_evidence_cites_every_closed_session_and_these_cite_their_opening(ledger):
    evidence = conduct(ledger, FakeWorkers())
    records = {record.id: record for record in ledger.records()}
    cited_sessions = [records[cited].body["session"] for cited in evidence.cites]
    assert (cited_sessions[:-2], set(cited_sessions)) == (TIMED, set(ORDER))
    for cited in evidence.cites:
        (opening,) = records[cited].cites
        assert records[opening].body["phase"] == "opened"
        assert records[opening].body["session"] == records[cited].body["session"]
        assert records[opening].body["run"] == evidence.run


def test_the_fastest_exact_arm_of_the_pilot_is_a_and_a_again(ledger):
    told = NoteTaker()
    workers = FakeWorkers({"sdpa": 1500.0, "eager_repeat_kv": 1200.0, "int8_kv,impl=torch": 10.0})
    (cell,) = conduct(ledger, workers, told=told).cells
    assert cell.baseline.label == "eager_repeat_kv"
    assert [(arm.label, arm.method, arm.role) for arm in cell.arms[:2]] == [
        ("eager_repeat_kv", "eager_repeat_kv", Role.BASELINE),
        ("eager_repeat_kv#2", "eager_repeat_kv", Role.BASELINE_AGAIN),
    ]
    assert {arm.label: arm.role for arm in cell.arms[2:]} == {
        "sdpa": Role.CANDIDATE,
        "int8_kv,impl=torch": Role.CANDIDATE,
        "sink_window,window=64,impl=torch": Role.CANDIDATE,
        "zero_cost": Role.CONTROL,
    }
    assert "baseline of step · eager: eager_repeat_kv" in told.notes


def test_an_arm_with_the_kernel_of_another_is_tried_in_the_pilot_and_never_the_baseline(ledger):
    workers = FakeWorkers({"sdpa": 1500.0, "eager_repeat_kv": 1600.0, "sdpa,backend=math": 900.0})
    described = plan()
    arms = tuple(replace(arm, twin="sdpa") if arm is MATH else arm for arm in described.arms)
    (cell,) = conduct(ledger, workers, replace(described, arms=arms)).cells
    assert cell.baseline.label == "sdpa"
    assert "sdpa,backend=math" in {arm.label for arm in workers.tasks["pilot"].bench.arms}


@pytest.mark.parametrize(("quick_in", "baseline"), [(3, "sdpa"), (4, "sdpa,backend=math")])
def test_an_arm_of_the_pilot_alone_is_the_baseline_where_it_is_faster_in_every_block(
    ledger, quick_in, baseline
):
    class Close(FakeWorkers):
        def _pilot(self, task):
            pilot = super()._pilot(task)
            (cell,) = pilot.session.cells
            visits = tuple(
                msgspec.structs.replace(v, steps_us=(990.0 if v.block < quick_in else 1500.0,))
                if v.arm == MATH.label
                else msgspec.structs.replace(v, steps_us=(1000.0 if v.arm == "sdpa" else 1100.0,))
                for v in cell.samples.visits
            )
            samples = msgspec.structs.replace(cell.samples, visits=visits)
            cells = (msgspec.structs.replace(cell, samples=samples),)
            session = msgspec.structs.replace(pilot.session, cells=cells)
            return msgspec.structs.replace(pilot, session=session)

    (cell,) = conduct(ledger, Close()).cells
    assert cell.baseline.label == baseline


def test_one_slow_visit_does_not_cost_an_arm_the_baseline(ledger):
    class Stumbling(FakeWorkers):
        def _pilot(self, task):
            pilot = super()._pilot(task)
            (cell,) = pilot.session.cells
            first = next(visit for visit in cell.samples.visits if visit.arm == "sdpa")
            slow = msgspec.structs.replace(first, steps_us=(1e6,))
            visits = tuple(slow if v is first else v for v in cell.samples.visits)
            samples = msgspec.structs.replace(cell.samples, visits=visits)
            cells = (msgspec.structs.replace(cell, samples=samples),)
            session = msgspec.structs.replace(pilot.session, cells=cells)
            return msgspec.structs.replace(pilot, session=session)

    (cell,) = conduct(ledger, Stumbling()).cells
    assert cell.baseline.label == "sdpa"


def test_the_pilot_times_the_exact_arms_alone_and_examines_all(ledger):
    workers = FakeWorkers()
    conduct(ledger, workers)
    task = workers.tasks["pilot"]
    timed = {arm for group in task.cells[0].schedule.groups for arm in group.capture_order}
    assert timed == {"sdpa", "sdpa,backend=math", "eager_repeat_kv"}
    assert {arm.label for arm in task.bench.arms} == {arm.label for arm in plan().arms}


def test_every_block_of_every_session_holds_a_a_again_and_every_other_arm_once(ledger):
    workers = FakeWorkers()
    (cell,) = conduct(ledger, workers).cells
    expected = sorted(arm.label for arm in cell.arms)
    assert {"sdpa", "sdpa#2"} <= set(expected)
    assert "sdpa,backend=math" not in expected
    for number in range(3):
        task = workers.tasks[number]
        assert sorted(arm.label for arm in task.bench.arms) == expected
        for group in task.cells[0].schedule.groups:
            for block in group.blocks:
                assert sorted(block.arms) == expected


def test_every_cell_has_its_own_baseline_and_its_own_order(ledger):
    class Attentive(FakeWorkers):
        """In scope attention the eager arm is the fastest."""

        def _cell(self, cell, number):
            fast = {"eager_repeat_kv": 500.0} if cell.scope is Scope.ATTENTION else {}
            self.step_us = fast
            return super()._cell(cell, number)

    workers = Attentive()
    cells = ((Scope.STEP, Mode.EAGER), (Scope.ATTENTION, Mode.EAGER))
    evidence = conduct(ledger, workers, plan(cells=cells))
    assert [cell.baseline.label for cell in evidence.cells] == ["sdpa", "eager_repeat_kv"]
    for number in range(3):
        task = workers.tasks[number]
        assert [(cell.scope, cell.mode) for cell in task.cells] == list(cells)
        for held, planned in zip(evidence.cells, task.cells, strict=True):
            labels = {arm for group in planned.schedule.groups for arm in group.capture_order}
            assert labels == {arm.label for arm in held.arms}
            assert labels <= {arm.label for arm in task.bench.arms}
        assert task.cells[0].schedule.groups != task.cells[1].schedule.groups


def test_what_the_pilot_timed_as_fastest_is_what_every_worker_launches(ledger):
    slow, fast = ({"block_n": 64, "splits": n, "num_warps": 4, "num_stages": 2} for n in (16, 2))
    workers = FakeWorkers(launches={"sdpa": (slow, fast), "int8_kv,impl=torch": (slow,)})
    conduct(ledger, workers)
    assert workers.tasks["pilot"].bench.kernels == {}
    for number in range(3):
        assert workers.tasks[number].bench.kernels == {
            "sdpa": fast,
            "sdpa#2": fast,
            "int8_kv,impl=torch": slow,
        }
    for name in ("memory", "quality"):
        kernels = workers.tasks[name].bench.kernels
        assert kernels == {"sdpa": fast, "int8_kv,impl=torch": slow}


def test_an_arm_that_fails_in_the_pilot_is_told_and_left_out_of_everything_after(ledger):
    told = NoteTaker()
    workers = FakeWorkers(not_here={"int8_kv,impl=torch": UNSUPPORTED})
    (cell,) = conduct(ledger, workers, told=told).cells
    assert "left out: int8_kv,impl=torch: no kernel" in told.notes
    for task in (workers.tasks[0], workers.tasks["memory"], workers.tasks["quality"]):
        assert "int8_kv,impl=torch" not in {arm.label for arm in task.bench.arms}
    assert "int8_kv,impl=torch" not in {arm.label for arm in cell.arms}


def test_without_an_exact_arm_there_is_no_baseline_and_the_error_says_why(ledger):
    failures = {arm.label: UNSUPPORTED for arm in (SDPA, MATH, EAGER)}
    with pytest.raises(Unsupported, match="no baseline") as refusal:
        conduct(ledger, FakeWorkers(not_here=failures))
    assert "sdpa: no kernel" in refusal.value.hint


@pytest.mark.parametrize("name", TIMED)
def test_an_interrupt_leaves_an_aborted_session_and_a_ledger_that_verifies(ledger, name):
    told = NoteTaker()
    with pytest.raises(KeyboardInterrupt):
        conduct(ledger, FakeWorkers(faults={name: KeyboardInterrupt()}), told=told)
    assert phases(ledger)[-2:] == [("opened", name), ("aborted", name)]
    opened, aborted = list(ledger.records())[-2:]
    assert aborted.cites == (opened.id,)
    assert verify(ledger.path).exit_code == 0
    assert aborted.body["run"] in told.notes[-1]


@pytest.mark.parametrize("name", ["pilot", 1])
def test_what_a_worker_that_everything_needs_raises_is_recorded_and_raised(ledger, name):
    fault = WorkerFailed("the worker was killed by SIGKILL", hint="try a smaller batch")
    with pytest.raises(WorkerFailed, match="SIGKILL") as raised:
        conduct(ledger, FakeWorkers(faults={name: fault}))
    assert raised.value.hint == "try a smaller batch"
    assert phases(ledger)[-1] == ("failed", name)
    assert "SIGKILL" in list(ledger.records())[-1].body["error"]
    assert verify(ledger.path).exit_code == 0


def test_a_worker_that_dies_or_hangs_is_reported_with_what_it_was_doing(ledger):
    fault = WorkerFailed(f"the worker said nothing for {SILENCE_S:g} s and was killed")
    with pytest.raises(WorkerFailed, match="at 'step of pilot': the worker said nothing"):
        conduct(ledger, FakeWorkers(faults={"pilot": fault}))


@pytest.mark.parametrize("name", ["memory", "quality"])
def test_sessions_are_not_lost_to_a_part_that_fails_after_them(ledger, name):
    fault = AttnbenchError("the text is too short")
    evidence = conduct(ledger, FakeWorkers(faults={name: fault}))
    assert evidence.failed == (fault,)
    assert len(evidence.sessions) == 3
    assert getattr(evidence, name) is None
    assert ("failed", name) in phases(ledger)
    assert len(evidence.cites) == len(ORDER) - 1


@pytest.mark.parametrize("described", [plan(weights="random"), plan(request=request(quality=None))])
def test_quality_is_not_run_on_random_weights_or_where_it_is_not_wanted(ledger, described):
    workers = FakeWorkers()
    evidence = conduct(ledger, workers, described)
    assert list(workers.tasks) == ORDER[:-1]
    assert evidence.quality is None
    assert evidence.failed == ()


def test_quality_is_judged_at_batch_one_whatever_is_timed(ledger):
    workers = FakeWorkers()
    conduct(ledger, workers, plan(request=request(batch=4)))
    assert workers.tasks[0].bench.batch == 4
    assert workers.tasks["quality"].bench.batch == 1


LOOKING = msgspec.structs.replace(SEQUENTIAL, blocks=12, groups=4)
FAR_APART = {INT8.label: 800.0, SINK.label: 700.0}


def test_a_run_ends_at_the_look_at_which_every_candidate_is_settled(ledger):
    told, workers = NoteTaker(), FakeWorkers(FAR_APART)
    evidence = conduct(ledger, workers, plan(request=request(protocol=LOOKING)), told)
    assert set(workers.tasks) == set(ORDER)
    assert len(evidence.sessions) == 3
    assert "planned look after 3 sessions: every candidate is settled" in told.notes
    assert [stage for stage in told.stages if "session 3" in stage] == ["session 3 of 8"]
    assert (evidence.memory is None, evidence.quality is None) == (False, False)


def test_what_a_look_found_is_judged_at_the_level_of_that_look(ledger):
    evidence = conduct(ledger, FakeWorkers(FAR_APART), plan(request=request(protocol=LOOKING)))
    look = protocol_at(LOOKING, 3)
    for result in arm_results(evidence):
        assert (result.protocol["sessions"], result.protocol["level"]) == (3, look.level)
        if result.role is Role.CANDIDATE:
            assert result.ratio.level == look.level > LOOKING.level
            assert result.verdict.latency in ("FASTER", "SLOWER", "EQUIVALENT")


def test_a_run_goes_on_to_its_last_session_while_a_candidate_is_not_settled(ledger):
    fast = {INT8.label: 800.0, "eager_repeat_kv": 800.0}
    told = NoteTaker()
    workers = FakeWorkers(fast, pilot_us={"eager_repeat_kv": 2000.0})
    evidence = conduct(ledger, workers, plan(request=request(protocol=LOOKING)), told)
    assert len(evidence.sessions) == 8
    assert [note for note in told.notes if "planned look" in note] == [
        "planned look after 3 sessions: not settled yet",
        "planned look after 5 sessions: not settled yet",
    ]
    last = protocol_at(LOOKING, 8).level
    assert {result.protocol["level"] for result in arm_results(evidence)} == {last}


def test_nothing_is_looked_at_before_the_end_where_no_look_is_planned(ledger):
    told = NoteTaker()
    conduct(ledger, FakeWorkers(FAR_APART), told=told)
    assert not [note for note in told.notes if "look" in note]


def test_an_arm_that_hangs_costs_its_worker_and_the_run_goes_on_without_it(ledger):
    class Hanging(FakeWorkers):
        def __call__(self, task, on_event, silence_s):
            left = getattr(task.bench, "left_out", {})
            if isinstance(task, SessionTask) and task.session == 1 and INT8.label not in left:
                on_event(Mark(arm=INT8.label, doing=Doing.TIMED, cell=0))
                raise WorkerHung("the worker said nothing for 60 s and was killed")
            self.breaks |= (
                {(task.session, INT8.label): left[INT8.label]}
                if left and isinstance(task, SessionTask)
                else {}
            )
            return super().__call__(task, on_event, silence_s)

    workers = Hanging(FAR_APART)
    evidence = conduct(ledger, workers)
    found = {result.arm: result.verdict for result in arm_results(evidence)}
    assert (found[INT8.label].latency, found[INT8.label].latency_reason) == ("VOID", "hung")
    assert found[SINK.label].latency == "FASTER"
    assert phases(ledger).count(("opened", 1)) == 2
    for name in ("memory", "quality"):
        assert INT8.label not in {arm.label for arm in workers.tasks[name].bench.arms}


def test_every_run_has_an_id_of_its_own(ledger):
    runs = {conduct(ledger, FakeWorkers()).run for _ in range(2)}
    assert {r.body["run"] for r in ledger.records()} == runs
    assert len(runs) == 2


def test_progress_of_a_worker_reaches_the_display(ledger):
    told = NoteTaker()
    conduct(ledger, FakeWorkers(), plan(arms=(SDPA, EAGER, INT8, ZERO)), told)
    assert told.updates[0] == (1, 2, "step of pilot")
    stages = [stage.split(":")[0] for stage in told.stages]
    assert stages[:-2] == ["pilot", "session 1 of 3", "session 2 of 3", "session 3 of 3"]
    assert set(stages[-2:]) == {"memory", "quality"}


def test_a_result_of_another_kind_is_an_error(ledger):
    class Confused(FakeWorkers):
        def _pilot(self, task):
            return self._quality(task)

    with pytest.raises(AttnbenchError, match="QualityResult, not a PilotResult"):
        conduct(ledger, Confused())


def test_the_reason_of_a_broken_arm_is_told_in_one_line(ledger):
    told = NoteTaker()
    long = msgspec.structs.replace(broke("pilot"), message="first line\n" + "word " * 99)
    conduct(ledger, FakeWorkers(not_here={"zero_cost": long}), told=told)
    said = next(note for note in told.notes if note.startswith("left out: zero_cost: first line"))
    assert "\n" not in said
    assert len(said) < 200
    assert said.endswith("…")
