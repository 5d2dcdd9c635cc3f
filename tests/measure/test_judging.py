"""The quality worker holds the process still, and one arm costs no other its figures."""

from __future__ import annotations

import msgspec
import pytest
import torch

import attnbench.quality.compounded as compounded
from attnbench.errors import SessionLost, WorkerFailed
from attnbench.ledger import Ledger
from attnbench.measure.answers import QualityResult
from attnbench.measure.events import Progress
from attnbench.measure.household import Household
from attnbench.measure.judging import run_judging
from attnbench.measure.tasks import Bench, Fill, QualityTask
from attnbench.measure.workers import Workers
from attnbench.methods.registry import parse
from attnbench.models.info import LoadedModel
from attnbench.models.sources import load
from attnbench.protocol.cell import Arm, Role
from attnbench.quality.gates import judge
from attnbench.quality.levels import QualityCounts
from tests.measure.fake_workers import NoteTaker
from tests.measure.simulated import Muted

CHEATS = "tests.measure.quality_cheats"
COUNTS = QualityCounts(context=96, windows=1, steps=2, logit_steps=8, haystacks=1)


@pytest.fixture(scope="module")
def household() -> Household:
    return Household(bench("sdpa"))


def bench(*methods: str) -> Bench:
    return Bench(
        model="embedded",
        dtype="float32",
        device="cpu",
        context=COUNTS.context,
        batch=1,
        arms=tuple(arm(method) for method in methods),
        fill=Fill.PREFILLED,
        seed=0,
        threads=1,
    )


def arm(method: str) -> Arm:
    return Arm(label=parse(method).label, method=method, role=Role.CANDIDATE)


def task(*methods: str, counts: QualityCounts = COUNTS) -> QualityTask:
    return QualityTask(bench=bench(*methods), counts=counts)


@pytest.fixture(scope="module")
def found(household) -> QualityResult:
    cheats = ("JudgesItself", "PatchesInTheModel", "LeavesTorchChanged", "FewTokens")
    specs = ["sdpa", *(f"{CHEATS}:{cheat}" for cheat in cheats), "int8_kv,impl=torch"]
    return run_judging(task(*specs), Muted(), household)


@pytest.mark.parametrize(
    ("label", "what"),
    [
        ("judges_itself", "attnbench.quality.local.head_metrics"),
        ("patches_in_the_model", "attnbench.quality.compounded.compare_logits"),
        ("leaves_torch_changed", "Tensor.norm"),
    ],
)
def test_who_replaces_what_judges_it_is_out_and_what_it_replaced_is_named(found, label, what):
    assert label not in found.arms
    failure = found.failures[label]
    assert (failure.reason, failure.during) == ("patched", "quality")
    assert what in failure.message


def test_who_puts_back_what_judges_it_when_it_is_judged_is_seen_before(household):
    outputs_only = msgspec.structs.replace(COUNTS, logit_steps=0, haystacks=0)
    found = run_judging(task(f"{CHEATS}:JudgesItselfOnce", counts=outputs_only), Muted(), household)
    assert "attnbench.quality.local.head_metrics" in found.failures["judges_itself_once"].message


def test_the_other_arms_are_judged_as_if_it_had_not_been_there(found, household):
    alone = run_judging(
        task("sdpa", f"{CHEATS}:FewTokens", "int8_kv,impl=torch"), Muted(), household
    )
    assert found.arms == alone.arms
    assert judge(found.arms["few_tokens"], "approximate", "trained").verdict == "KILL"
    assert compounded.compare_logits.__module__ == "attnbench.quality.compounded"


def test_what_changed_between_the_turns_is_no_arms_fault_and_ends_the_run(household, monkeypatch):
    own = compounded.compare_logits

    class Meddling(Muted):
        def progress(self, done, total, detail):
            if detail.startswith("layer 3"):
                monkeypatch.setattr(compounded, "compare_logits", compounded.decoded)

    with pytest.raises(SessionLost, match="between the arms' turns") as lost:
        run_judging(task("sdpa"), Meddling(), household)
    assert lost.value.reason == "patched"
    assert compounded.compare_logits is own


def test_who_edits_the_model_costs_the_worker_and_is_the_one_to_blame():
    fresh = Household(bench("sdpa"))
    fresh._loaded = loaded_copy()
    told = Muted()
    local_only = msgspec.structs.replace(COUNTS, haystacks=0)
    with pytest.raises(SessionLost, match="weights") as lost:
        run_judging(task(f"{CHEATS}:EditsTheModel", counts=local_only), told, fresh)
    assert lost.value.reason == "weights-changed"
    assert told.marks[-1].arm == "edits_the_model"


def loaded_copy() -> LoadedModel:
    return load("embedded", torch.float32, torch.device("cpu"), seed=0)


class InProcess:
    """Does the tasks of a run here; what would end a worker is the end of one."""

    def __init__(self, household: Household) -> None:
        self.household = household
        self.asked: list[list[str]] = []

    def __call__(self, task, on_event, silence_s):
        del silence_s
        self.asked.append([arm.label for arm in task.bench.arms])
        try:
            return run_judging(task, Telling(on_event), self.household)
        except SystemExit as ended:
            raise WorkerFailed(f"the worker ended with status {ended.code}") from ended


class Telling(Muted):
    def __init__(self, on_event) -> None:
        super().__init__()
        self.on_event = on_event

    def progress(self, done, total, detail):
        self.on_event(Progress(done=done, total=total, detail=detail))

    def mark(self, mark):
        self.on_event(mark)


def test_an_arm_that_ends_the_worker_costs_that_worker_and_the_others_are_judged(
    tmp_path, household
):
    run = InProcess(household)
    workers = Workers(Ledger(tmp_path / "ledger.jsonl"), NoteTaker(), about={}, run=run)
    few = msgspec.structs.replace(COUNTS, haystacks=0)
    asked = task("sdpa", f"{CHEATS}:EndsTheWorker", "int8_kv,impl=torch", counts=few)
    found = workers.work("quality", asked, QualityResult, NoteTaker().update)
    assert run.asked == [
        ["sdpa", "ends_the_worker", "int8_kv,impl=torch"],
        ["sdpa", "int8_kv,impl=torch"],
    ]
    assert sorted(found.arms) == ["int8_kv,impl=torch", "sdpa"]
    failure = found.failures["ends_the_worker"]
    assert failure.type == "WorkerFailed"
    assert "quality of ends_the_worker" in failure.message
