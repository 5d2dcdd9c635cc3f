"""A calibration from its pilot to its record, with workers that answer at once."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

from attnbench.errors import UsageError, WorkerFailed
from attnbench.ledger import Kind, Ledger, Reason, retract, verify
from attnbench.ledger.sides import latest_two
from attnbench.measure.calibrating import KERNEL_CACHE, Calibrator
from attnbench.measure.calibration_past import past_of
from attnbench.measure.calibration_plan import (
    PERCENTS,
    CalibrationRequest,
    fastest_of_another_kernel,
    plan_calibration,
)
from attnbench.measure.tasks import SessionTask
from attnbench.methods.registry import parse
from attnbench.protocol.cell import Role
from attnbench.protocol.verdict import Verdict
from tests.measure.fake_workers import UNSUPPORTED, FakeWorkers, NoteTaker

REQUEST = CalibrationRequest(ctx=64, protocol="quick", sessions=3, device="cpu")
SLOWER = {f"+{percent:g}%": 1000.0 * (1 + percent / 100) for percent in PERCENTS}


class Bench:
    """A ledger, and calibrations that write into it."""

    def __init__(self, folder) -> None:
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.notes = NoteTaker()

    def run(self, workers: FakeWorkers, request: CalibrationRequest = REQUEST, resume: str = ""):
        past = past_of(self.ledger, resume).held if resume else None
        plan = plan_calibration(request)
        return Calibrator(plan, self.ledger, self.notes, past=past, run=workers).calibrate()

    def phases(self) -> list[str]:
        sessions = (r for r in self.ledger.records() if r.kind is Kind.SESSION)
        return [f"{r.body['session']} {r.body['phase']}" for r in sessions]

    def results(self):
        return [r for r in self.ledger.records() if r.kind is Kind.RESULT]

    @property
    def only_run(self) -> str:
        (run,) = {r.body["run"] for r in self.ledger.records() if "run" in r.body}
        return run


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def workers(**settings) -> FakeWorkers:
    return FakeWorkers(step_us={"X": 1003.0, "sdpa_packed": 1010.0, **SLOWER}, **settings)


def test_every_arm_holds_the_same_extra_kernel_and_only_the_wait_differs(bench):
    sent = workers()
    bench.run(sent)
    arms = {arm.label: arm for arm in sent.tasks[0].bench.arms}
    assert list(arms) == ["A", "A#2", "S", "+0.2%", "+0.5%", "+1%", "+2%", "+5%", "X"]
    methods = {label: parse(arm.method) for label, arm in arms.items()}
    assert {method.name for method in methods.values()} == {"waiting"}
    assert methods["A"] == methods["A#2"] == methods["S"] != methods["X"]
    assert methods["X"].wait_us == 0.0
    assert {method.inner for label, method in methods.items() if label != "X"} == {"sdpa"}
    assert arms["A"].role is Role.BASELINE
    assert arms["A#2"].role is Role.BASELINE_AGAIN


def test_waits_are_shares_of_the_step_that_the_pilot_timed(bench):
    sent = FakeWorkers(pilot_us={"sdpa": 400.0, "sdpa_packed": 500.0})
    bench.run(sent)
    waits = {arm.label: parse(arm.method).wait_us for arm in sent.tasks[0].bench.arms}
    assert waits["+5%"] == pytest.approx(20.0, rel=0.02)
    assert waits["+0.2%"] == pytest.approx(0.8, rel=0.02)


def test_a_is_the_fastest_exact_arm_and_stays_it_and_x_is_another_method(bench):
    sent = FakeWorkers(pilot_us={"sdpa": 1200.0, "sdpa_packed": 900.0})
    bench.run(sent)
    inner = {arm.label: parse(arm.method).inner for arm in sent.tasks[2].bench.arms}
    assert (inner["A"], inner["X"]) == ("sdpa_packed", "sdpa")


def pilot_of(**arms):
    """A pilot that timed these specs at so many microseconds, with a ring of so many tiles."""
    arms = {spec.replace("__", ",kernel="): found for spec, found in arms.items()}
    visits = [SimpleNamespace(arm=spec, steps_us=(us,)) for spec, (us, _) in arms.items()]
    cell = SimpleNamespace(samples=SimpleNamespace(visits=visits))
    return SimpleNamespace(
        arms={
            spec: SimpleNamespace(method=spec, fastest=None if ring is None else {"ring": ring})
            for spec, (_, ring) in arms.items()
        },
        session=SimpleNamespace(cells=(cell,)),
    )


def test_the_other_kernel_of_the_same_method_is_nearer_than_another_method():
    found = pilot_of(flash_decode=(90.0, 4), flash_decode__split=(93.0, 0), sdpa=(98.0, None))
    assert fastest_of_another_kernel(found, "flash_decode") == "flash_decode,kernel=split"
    assert fastest_of_another_kernel(found, "flash_decode,kernel=split") == "flash_decode"


def test_where_there_is_one_kernel_of_a_method_another_method_is_x():
    found = pilot_of(flash_decode=(90.0, 0), flash_decode__split=(90.0, 0), sdpa=(98.0, None))
    assert fastest_of_another_kernel(found, "flash_decode") == "sdpa"


def test_a_machine_where_only_one_method_runs_has_no_pair_to_compare(bench):
    with pytest.raises(UsageError, match="only sdpa runs here"):
        bench.run(FakeWorkers(not_here={"sdpa_packed": UNSUPPORTED}))


def test_the_kernel_that_the_pilot_chose_is_pinned_in_every_arm(bench):
    launches = tuple(
        {"block_n": 64, "splits": splits, "num_warps": 4, "num_stages": 2} for splits in (9, 3)
    )
    sent = workers(launches={"sdpa": launches})
    result = bench.run(sent)
    kernels = sent.tasks[0].bench.kernels
    assert set(kernels) == {"A", "A#2", "S", *SLOWER}
    assert {kernel["splits"] for kernel in kernels.values()} == {3}
    assert result.kernels == kernels
    assert sent.tasks["pilot"].configurations == 3


def test_the_result_is_recorded_and_cites_every_closed_session(bench):
    result = bench.run(workers())
    (record,) = bench.results()
    closed = [r.id for r in bench.ledger.records() if r.body.get("phase") == "closed"]
    assert list(record.cites) == closed
    assert len(closed) == 4
    assert record.body["calibration"] == "instrument"
    assert record.body["findings"]["sessions"] == 3
    assert record.body["arms"]["A"] == "waiting,at_layer=0"
    assert result.findings.false_positives.trials == 1
    assert {level.arm: level.found for level in result.findings.levels}["+5%"] == 1
    assert set(result.findings.sham_verdicts) <= {v.value for v in Verdict}
    assert verify(bench.ledger.path).is_sound


def test_an_interrupted_run_leaves_a_valid_ledger_and_goes_on_where_it_stopped(bench):
    with pytest.raises(KeyboardInterrupt):
        bench.run(workers(faults={1: KeyboardInterrupt()}))
    assert bench.phases()[-2:] == ["1 opened", "1 aborted"]
    assert verify(bench.ledger.path).is_sound
    assert bench.results() == []
    later = workers()
    result = bench.run(later, resume=bench.only_run[:5])
    assert set(later.tasks) == {1, 2}
    assert result.findings.sessions == 3
    assert len(bench.results()[0].cites) == 4


def test_a_run_goes_on_to_more_sessions_with_those_that_it_has(bench):
    first = workers()
    bench.run(first)
    later = workers()
    grown = msgspec.structs.replace(REQUEST, sessions=6)
    result = bench.run(later, grown, resume=bench.only_run)
    assert set(later.tasks) == {3, 4, 5}
    assert result.findings.sessions == 6
    assert [count.runs for count in result.findings.levels] == [2] * 5
    fresh = workers()
    Bench(bench.ledger.path.parent / "other").run(fresh, grown)
    for number, sent in {**first.tasks, **later.tasks}.items():
        if isinstance(sent, SessionTask):
            assert sent.cells == fresh.tasks[number].cells


def test_a_session_that_was_retracted_is_measured_again(bench):
    bench.run(workers())
    closed = [r for r in bench.ledger.records() if r.body.get("phase") == "closed"]
    retract(bench.ledger, closed[2].id, next(iter(Reason)), "somebody used the machine")
    again = workers()
    bench.run(again, resume=bench.only_run)
    assert set(again.tasks) == {1}


def test_a_run_does_not_go_on_elsewhere(bench):
    bench.run(workers())
    past = past_of(bench.ledger, bench.only_run).held
    plan = plan_calibration(REQUEST)
    for changed in (
        replace(past, environment={**past.environment, "torch": "1.0"}),
        replace(past, sources={**past.sources, "sdpa": "00"}),
    ):
        with pytest.raises(UsageError, match="cannot go on here"):
            Calibrator(plan, bench.ledger, bench.notes, past=changed, run=workers())


def test_another_card_of_the_same_kind_is_told(bench):
    bench.run(workers())
    past = past_of(bench.ledger, bench.only_run).held
    other = replace(past, environment={**past.environment, "device_uuid": "GPU-1"})
    Calibrator(plan_calibration(REQUEST), bench.ledger, bench.notes, past=other, run=workers())
    assert bench.notes.notes[-1].startswith("not as before: device_uuid GPU-1")


@pytest.mark.parametrize("name", ["", "nosuch"])
def test_a_run_that_is_not_there_cannot_go_on(bench, name):
    with pytest.raises(UsageError, match="no calibration begins"):
        past_of(bench.ledger, name)


def test_a_session_that_fails_ends_the_run_and_the_rest_can_be_had_later(bench):
    with pytest.raises(WorkerFailed):
        bench.run(workers(faults={2: WorkerFailed("it died")}))
    later = workers()
    bench.run(later, resume=bench.only_run)
    assert set(later.tasks) == {2}


def test_a_calibration_is_no_result_to_compare_runs_by(bench):
    bench.run(workers())
    assert latest_two(bench.ledger) == "there is no run with results yet"


ORDER = msgspec.structs.replace(REQUEST, order_effect=True)


def test_the_order_effect_is_one_method_in_fresh_processes_without_compiled_kernels(bench):
    caches = []
    sent = FakeWorkers(watch=lambda: caches.append(os.environ.get(KERNEL_CACHE, "")))
    result = bench.run(sent, ORDER)
    assert len({cache for cache in caches[:3] if cache}) == 3
    assert caches[3:] == [os.environ.get(KERNEL_CACHE, "")] * 3
    assert {arm.method for arm in sent.tasks[0].bench.arms} == {"sdpa"}
    assert [bias.how for bias in result.order_effect] == ["sequential", "blocks"]
    assert bench.phases()[::2] == [
        f"{how} {n} opened" for how in ("sequential", "blocks") for n in range(3)
    ]


def test_the_order_effect_goes_on_as_well(bench):
    with pytest.raises(KeyboardInterrupt):
        bench.run(FakeWorkers(faults={2: KeyboardInterrupt()}), ORDER)
    bench.run(FakeWorkers(), ORDER, resume=bench.only_run)
    closed = [phase for phase in bench.phases() if phase.endswith("closed")]
    assert len(closed) == len(set(closed)) == 6
