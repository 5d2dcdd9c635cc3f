"""What a protocol file changes of a run: the baseline, how much faster, the bands, the marks."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from attnbench.errors import Unsupported, UsageError
from attnbench.ledger import Kind, Ledger
from attnbench.measure.chosen import pilot_alone
from attnbench.measure.conductor import Conductor
from attnbench.measure.plan import DecodeRequest, plan_decode
from attnbench.measure.verdicts import arm_results
from attnbench.protocol.bands import DEFAULT_BANDS, Bands, Gate
from attnbench.protocol.presets import CANONICAL
from attnbench.protocol.result import Promise
from attnbench.report.decode_notes import notes
from tests.measure.fake_workers import UNSUPPORTED, FakeWorkers, NoteTaker
from tests.measure.planned import ARMS, INT8, SDPA, plan, request

REGISTERED = Promise(
    protocol="p", file_sha256="ab" * 32, exploratory=False, registration="cd" * 32, version=2
)
EXPLORATORY = Promise(protocol="p", file_sha256="ab" * 32, exploratory=True)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def results(ledger, workers, **changes):
    evidence = Conductor(plan(**changes), ledger, NoteTaker(), run=workers).conduct()
    return {result.arm: result for result in arm_results(evidence)}, pilot_alone(evidence)


def with_arm(arm, **changes):
    return tuple(replace(each, **changes) if each is arm else each for each in ARMS)


def test_a_named_baseline_is_a_although_another_exact_arm_is_faster(ledger):
    workers = FakeWorkers({"sdpa": 1500.0, "eager_repeat_kv": 1200.0})
    promise = msgspec.structs.replace(REGISTERED, baseline="sdpa")
    found, alone = results(
        ledger,
        workers,
        arms=with_arm(SDPA, named_baseline=True),
        request=request(promise=promise),
    )
    assert {result.baseline for result in found.values()} == {"sdpa"}
    assert found["eager_repeat_kv"].verdict.latency == "FASTER"
    said = list(notes(tuple(found.values()), alone[found["sdpa"].cell]))
    assert any("sdpa (A, named by the protocol)" in line for line in said)


def test_a_named_baseline_that_does_not_run_here_is_an_error_that_says_why(ledger):
    workers = FakeWorkers(not_here={"sdpa": UNSUPPORTED})
    with pytest.raises(Unsupported, match="sdpa, which is named as the baseline") as refusal:
        results(ledger, workers, arms=with_arm(SDPA, named_baseline=True))
    assert "no kernel" in refusal.value.hint


def test_only_exact_attention_can_be_named_as_the_baseline():
    asked = DecodeRequest(model="embedded", protocol=CANONICAL, device="cpu", baseline="int8_kv")
    with pytest.raises(UsageError, match="no exact attention"):
        plan_decode(asked)


def test_a_plan_knows_which_arm_is_named_and_what_is_claimed_of_which():
    asked = DecodeRequest(
        model="embedded",
        protocol=CANONICAL,
        device="cpu",
        methods=("int8_kv",),
        baseline="sdpa,backend=flash",
        claims={"int8_kv": 0.4},
    )
    arms = {arm.label: arm for arm in plan_decode(asked).arms}
    assert [label for label, arm in arms.items() if arm.named_baseline] == ["sdpa,backend=flash"]
    assert arms["sdpa,backend=flash"].twin == ""
    assert {label: arm.claim for label, arm in arms.items() if arm.claim} == {
        "int8_kv,impl=torch": 0.4
    }


@pytest.mark.parametrize(
    ("step_us", "latency", "reason"),
    [(500.0, "FASTER", "interval-clear"), (800.0, "INCONCLUSIVE", "not-resolved")],
)
def test_faster_is_said_only_of_what_clears_the_registered_claim(ledger, step_us, latency, reason):
    workers = FakeWorkers({INT8.label: step_us, "zero_cost": 400.0})
    found, _ = results(ledger, workers, arms=with_arm(INT8, claim=0.4))
    verdict = found[INT8.label].verdict
    assert (verdict.latency, verdict.latency_reason) == (latency, reason)
    assert found[INT8.label].statistics.claim == 0.4


def test_quality_is_judged_by_the_bands_that_were_registered(ledger):
    lenient = {
        **DEFAULT_BANDS,
        Gate.MEAN_COSINE: (Bands("cosine_mean", (0.96, 9.0), (0.9, 9.0)),),
    }
    workers = FakeWorkers(cosine={INT8.label: 0.97})
    by_default, _ = results(ledger, workers)
    registered, _ = results(ledger, workers, request=request(bands=lenient))
    assert by_default[INT8.label].verdict.quality_reason == "mean-cosine"
    assert registered[INT8.label].verdict.quality_reason == "gates-not-run"


@pytest.mark.parametrize("promise", [REGISTERED, EXPLORATORY])
def test_every_record_of_a_run_says_under_which_promise_it_was_measured(ledger, promise):
    found, _ = results(ledger, FakeWorkers(), request=request(promise=promise))
    records = list(ledger.records())
    assert {r.kind for r in records} == {Kind.SESSION}
    assert {r.body["promise"]["exploratory"] for r in records} == {promise.exploratory}
    assert {r.body["cell"]["context"] for r in records} == {1024}
    opened = [r for r in records if r.body["phase"] == "opened"]
    assert {r.cites for r in opened} == {(promise.registration,) if promise.registration else ()}
    assert {result.promise for result in found.values()} == {promise}
    first = next(notes(tuple(found.values())))
    assert first.startswith("EXPLORATORY: protocol p" if promise.exploratory else "protocol p, v")
