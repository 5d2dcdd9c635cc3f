"""A quality run without a worker process: planned, run, judged, recorded."""

from __future__ import annotations

import msgspec
import pytest

from attnbench.errors import UsageError, WorkerFailed
from attnbench.ledger import Kind, Ledger, verify
from attnbench.measure.answers import QualityResult
from attnbench.measure.appraising import FLOOR, Appraiser, QualityRequest, plan_quality
from attnbench.measure.recompute import Outcome, recompute
from attnbench.measure.tasks import ArmFailure
from attnbench.protocol.appraisal import ArmQuality
from attnbench.quality.levels import Level
from tests.measure.fake_workers import FakeWorkers, NoteTaker

UNFIT = ArmFailure(
    type="Unsupported", message="head dimension 64", hint="use 128", during="quality"
)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def planned(*methods: str, **more):
    return plan_quality(QualityRequest(model="embedded", device="cpu", methods=methods, **more))


def appraised(ledger, workers, *methods, **more):
    return Appraiser(planned(*methods, **more), ledger, NoteTaker(), run=workers).appraise()


def test_only_what_was_asked_for_is_judged_and_the_floor_beside_it():
    assert [arm.label for arm in planned("random_k").arms] == ["random_k", FLOOR]
    bare = [arm.label.partition(",")[0] for arm in planned().arms]
    assert sorted(bare) == ["int8_kv", "sdpa", "sink_window"]


def test_a_level_says_how_much_is_run():
    quick, full = (planned("int8_kv", level=level) for level in (Level.QUICK, Level.FULL))
    assert quick.counts.windows >= 5
    assert quick.counts.haystacks
    assert full.counts.windows > quick.counts.windows
    assert full.minutes > quick.minutes > 0


def test_a_result_cites_the_session_that_holds_its_samples(ledger):
    workers = FakeWorkers(cosine={"int8_kv,impl=torch": 0.97})
    found = appraised(ledger, workers, "int8_kv")
    records = list(ledger.records())
    assert [r.body.get("phase", "result") for r in records] == ["opened", "closed", *["result"] * 2]
    assert all(r.cites == (records[1].id,) for r in records[2:])
    assert verify(ledger.path).is_sound
    killed = msgspec.convert(records[2].body, ArmQuality)
    assert killed == found.results[0]
    assert (killed.verdict.quality, killed.verdict.quality_reason) == ("MARGINAL", "mean-cosine")
    assert killed.gates["mean-cosine"] == "MARGINAL"
    assert killed.not_run["needle"].startswith("0 facts")
    assert killed.worst.layer == 0
    assert found.results[1].floor


def test_other_bands_decide_and_are_recorded(ledger):
    strict = ("mean-cosine.kill_below=0.98",)
    workers = FakeWorkers(cosine={"int8_kv,impl=torch": 0.97})
    found = appraised(ledger, workers, "int8_kv", bands=strict).results[0]
    assert found.verdict.quality == "KILL"
    assert found.bands == strict


def test_what_was_recorded_is_built_again_from_the_samples_and_a_changed_verdict_is_found(ledger):
    workers = FakeWorkers(cosine={"int8_kv,impl=torch": 0.97})
    appraised(ledger, workers, "int8_kv", bands=("mean-cosine.kill_below=0.98",))
    (killed, floor) = recompute(ledger).results
    assert (killed.outcome, floor.outcome) == (Outcome.SAME, Outcome.SAME)
    body = dict(list(ledger.records())[2].body)
    cites = list(ledger.records())[2].cites
    body["verdict"] = {**body["verdict"], "quality": "PASS"}
    ledger.append(Kind.RESULT, body, cites=cites)
    changed = recompute(ledger).results[-1]
    assert changed.outcome is Outcome.DIFFERS
    assert [each.member for each in changed.differences] == ["verdict.quality"]


def test_an_arm_without_samples_has_no_verdict_and_says_why(ledger):
    class Unfit(FakeWorkers):
        def _quality(self, task):
            whole = super()._quality(task)
            rest = {label: arm for label, arm in whole.arms.items() if label != "random_k"}
            return msgspec.structs.replace(whole, arms=rest, failures={"random_k": UNFIT})

    found = appraised(ledger, Unfit(), "random_k").results[0]
    assert (found.verdict.quality, found.verdict.quality_reason) == (
        "NOT_EVALUATED",
        "not-measured",
    )
    assert found.failure == "Unsupported: head dimension 64"
    assert found.verdict.next_step == "use 128"
    assert not found.figures
    assert not found.gates


def test_a_run_that_fails_leaves_no_verdict(ledger):
    workers = FakeWorkers(faults={"quality": WorkerFailed("it died")})
    with pytest.raises(WorkerFailed):
        appraised(ledger, workers, "int8_kv")
    assert [r.body["phase"] for r in ledger.records()] == ["opened", "failed"]


def test_the_worker_is_told_how_much_to_run(ledger):
    workers = FakeWorkers()
    appraised(ledger, workers, "int8_kv", context=300)
    task = workers.tasks["quality"]
    assert task.counts.context == 300
    assert task.bench.batch == 1
    assert isinstance(workers.results["quality"], QualityResult)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"model": "preset:llama-3.2-1b"}, "random weights"),
        ({"methods": ("tests.measure.odd_methods:Replacing",)}, "trained with"),
        ({"methods": ("no_such",)}, "no method"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_runs(request_, said):
    request = {"model": "embedded", "device": "cpu", "methods": ("int8_kv",), **request_}
    with pytest.raises(UsageError, match=said) as refused:
        plan_quality(QualityRequest(**request))
    assert refused.value.hint


def test_what_an_arm_did_to_the_process_is_the_reason_that_it_has_no_verdict(ledger):
    patched = ArmFailure(
        type="BrokenArm", message="it replaced x", hint="", during="quality", reason="patched"
    )

    class Patching(FakeWorkers):
        def _quality(self, task):
            whole = super()._quality(task)
            rest = {label: arm for label, arm in whole.arms.items() if label != "random_k"}
            return msgspec.structs.replace(whole, arms=rest, failures={"random_k": patched})

    found = appraised(ledger, Patching(), "random_k").results[0]
    assert (found.verdict.quality, found.verdict.quality_reason) == ("NOT_EVALUATED", "patched")
    assert "other people's functions" in found.verdict.next_step
    assert found.failure == "BrokenArm: it replaced x"


def test_a_context_that_cannot_be_judged_is_refused_and_none_is_judged_at_another():
    with pytest.raises(UsageError, match="4096 positions") as refused:
        planned("int8_kv", context=4090)
    assert "--ctx 4032" in refused.value.hint
    assert planned("int8_kv", context=4032).counts.context == 4032
