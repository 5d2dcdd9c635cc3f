"""Claims that are decided by what the ledger holds: by all of it, and never by a chosen part."""

from __future__ import annotations

import msgspec
import pytest

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Ledger, Reason, retract
from attnbench.measure.by_results import adjudicate_by_results
from attnbench.measure.conductor import Conductor
from attnbench.measure.verdicts import arm_results
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.claim import ClaimReason, Direction, Outcome, Reach
from attnbench.protocol.claim_file import ImportedClaim
from attnbench.protocol.claim_log import import_claims, standings
from attnbench.protocol.decided import Decided, Measure
from tests.measure.fake_workers import FakeWorkers, NoteTaker
from tests.measure.planned import CPU, plan
from tests.protocol.claims import CLAIMS

INT8 = "int8_kv,impl=torch"
PLACE = {
    "context": 1024, "batch": 1, "dtype": "float32", "scope": Scope.STEP, "mode": Mode.EAGER,
}  # fmt: skip


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def run(ledger: Ledger, us: float, **changes) -> None:
    """A decode run in which INT8 takes so long, in milliseconds a thousandth of it."""
    workers = FakeWorkers(step_us={INT8: us})
    evidence = Conductor(plan(**changes), ledger, NoteTaker(), run=workers).conduct()
    for result in arm_results(evidence):
        ledger.append(Kind.RESULT, msgspec.to_builtins(result), cites=evidence.cites)


def claim(bound: float, decided: Decided | None = None, **rule) -> ImportedClaim:
    """PR-01 about INT8 on this processor, with this bound, give or take a twentieth."""
    found = CLAIMS["PR-01"]
    time = Decided(quantity=Measure.STEP_TIME, arms=("int8_kv",), **PLACE)
    of_here = {"bound": bound, "gpu": CPU.name, "model": "embedded", "decided": decided or time}
    changed = msgspec.structs.replace(found.entry.rule, **(of_here | rule))
    return msgspec.structs.replace(found, entry=msgspec.structs.replace(found.entry, rule=changed))


def judged(ledger: Ledger, imported: ImportedClaim):
    import_claims(ledger, [imported])
    (done,) = adjudicate_by_results(ledger, [imported])
    return done


def results_of(ledger: Ledger, arm: str) -> list[str]:
    return [r.id for r in ledger.records() if r.kind is Kind.RESULT and r.body["arm"] == arm]


@pytest.mark.parametrize(("bound", "outcome"), [(0.9, Outcome.SUPPORTED), (0.8, Outcome.FALSIFIED)])
def test_a_time_is_held_against_the_bound_and_the_verdict_cites_rule_and_results(
    ledger, bound, outcome
):
    run(ledger, 900.0)
    done = judged(ledger, claim(bound))
    assert done.verdict.outcome is outcome
    imported = standings(ledger.records())["PR-01"].imported
    assert done.record.cites == (imported.id, *results_of(ledger, INT8))
    body = done.record.body
    assert (body["basis"], body["rule_record"]) == ("recorded-results", imported.id)
    assert "retrospective" in body["observed"]["note"]
    (seen,) = body["observed"]["results"]
    assert (seen["sessions"], seen["arm"]) == (3, INT8)
    (interval,) = seen["intervals"]
    assert interval["low"] <= 0.9 <= interval["high"]


def test_every_live_result_counts_and_one_against_it_is_enough(ledger):
    for us in (900.0, 700.0, 900.0):
        run(ledger, us)
    done = judged(ledger, claim(0.9, tolerance=0.15))
    assert (done.verdict.outcome, done.verdict.reason) == (
        Outcome.FALSIFIED,
        ClaimReason.BOUND_MISSED,
    )
    said = done.record.body["observed"]
    assert [each["claim"] for each in said["results"]] == ["SUPPORTED", "FALSIFIED", "SUPPORTED"]
    assert said["level"] == pytest.approx(1 - 0.05 / 3, rel=1e-5)  # they share the error rate
    assert set(done.record.cites[1:]) == set(results_of(ledger, INT8))


def test_a_result_that_was_taken_back_counts_no_more_and_taints_the_verdict(ledger):
    for us in (900.0, 700.0):
        run(ledger, us)
    first = judged(ledger, claim(0.9))
    assert first.verdict.outcome is Outcome.FALSIFIED
    _, wrong = results_of(ledger, INT8)
    retract(ledger, wrong, Reason.ENVIRONMENT, "it throttled")
    assert standings(ledger.records())["PR-01"].outcome is Outcome.INCONCLUSIVE
    second = judged(ledger, claim(0.9))
    assert (second.is_new, second.verdict.outcome) == (True, Outcome.SUPPORTED)
    assert wrong not in second.record.cites


def test_the_same_verdict_is_recorded_once_and_with_another_result_again(ledger):
    run(ledger, 900.0)
    assert [judged(ledger, claim(0.9)).is_new for _ in range(2)] == [True, False]
    run(ledger, 900.0)
    assert judged(ledger, claim(0.9)).is_new


@pytest.mark.parametrize(
    ("rule", "decided"),
    [
        ({"gpu": "NVIDIA H100 80GB HBM3"}, {}),
        ({"model": "preset:llama-3.2-1b"}, {}),
        ({}, {"context": 2048}),
        ({}, {"scope": Scope.ATTENTION}),
        ({}, {"device": "cuda"}),
        ({}, {"arms": ("int4_kv",)}),
        ({}, {"models": ("preset:llama-3.2-1b",)}),
        ({}, {"sessions": 4}),
    ],
)
def test_results_of_another_arm_or_cell_or_of_too_few_sessions_decide_nothing(
    ledger, rule, decided
):
    run(ledger, 900.0)
    settings = {"quantity": Measure.STEP_TIME, "arms": ("int8_kv",), **PLACE, **decided}
    before = len(list(ledger.records()))
    with pytest.raises(UsageError, match="no live result of this ledger decides PR-01"):
        judged(ledger, claim(0.9, Decided(**settings), **rule))
    assert len(list(ledger.records())) == before + 1  # the import


def test_a_void_result_does_not_count_and_is_named(ledger):
    run(ledger, 900.0)
    void = FakeWorkers(step_us={INT8: 700.0}, read_bytes={INT8: 10**12})  # far below its floor
    evidence = Conductor(plan(), ledger, NoteTaker(), run=void).conduct()
    (result,) = (r for r in arm_results(evidence) if r.arm == INT8)
    assert result.verdict.latency == "VOID"
    record = ledger.append(Kind.RESULT, msgspec.to_builtins(result), cites=evidence.cites)
    done = judged(ledger, claim(0.9))
    assert done.verdict.outcome is Outcome.SUPPORTED
    assert done.record.body["observed"]["left_out"] == [
        {"result": record.id, "why": "VOID by its own checks"}
    ]


@pytest.mark.parametrize(
    ("baseline", "arm", "ratio"),
    [("strongest", "int8_kv", 1 / 0.9), ("eager_repeat_kv", "int8_kv", 2 / 0.9)],
)
def test_a_speed_up_is_over_the_baseline_that_the_rule_names(ledger, baseline, arm, ratio):
    run(ledger, 900.0)
    decided = Decided(quantity=Measure.SPEED_UP, arms=(arm,), baseline=baseline, **PLACE)
    done = judged(ledger, claim(ratio, decided, tolerance=0.02))
    assert done.verdict.outcome is Outcome.SUPPORTED
    missed = claim(2.5, decided, direction=Direction.AT_LEAST, tolerance=0.0)
    assert judged(ledger, missed).verdict.outcome is Outcome.FALSIFIED


def test_the_strongest_exact_arm_is_the_baseline_that_the_pilot_chose(ledger):
    run(ledger, 900.0)
    decided = Decided(quantity=Measure.STEP_TIME, arms=("strongest",), **PLACE)
    done = judged(ledger, claim(1.0, decided))
    assert done.verdict.outcome is Outcome.SUPPORTED
    (seen,) = done.record.body["observed"]["results"]
    assert seen["arm"] == "sdpa"


def test_floor_and_read_rate_are_of_the_bytes_of_the_arm_and_its_sessions(ledger):
    run(ledger, 900.0, cells=((Scope.ATTENTION, Mode.GRAPH),))
    place = PLACE | {"scope": Scope.ATTENTION, "mode": Mode.GRAPH}
    result = next(
        r.body for r in ledger.records() if r.kind is Kind.RESULT and r.body["arm"] == INT8
    )
    floor = Decided(quantity=Measure.BYTE_FLOOR, arms=("int8_kv",), **place)
    done = judged(ledger, claim(result["floor"]["ms"], floor))
    assert done.verdict.outcome is Outcome.SUPPORTED
    rate = Decided(quantity=Measure.READ_RATE, arms=("int8_kv",), **place)
    seen = result["floor"]["read_bytes"] / 900e-6 / 1e12
    assert judged(ledger, claim(seen, rate)).verdict.outcome is Outcome.SUPPORTED
    assert judged(ledger, claim(1.2 * seen, rate)).verdict.outcome is Outcome.FALSIFIED


def test_a_claim_about_everywhere_is_falsified_in_one_place_and_supported_in_none(ledger):
    run(ledger, 900.0)
    anywhere = {"reach": Reach.UNIVERSAL, "gpu": "", "model": ""}
    done = judged(ledger, claim(0.9, **anywhere))
    assert (done.verdict.outcome, done.verdict.reason) == (
        Outcome.INCONCLUSIVE,
        ClaimReason.ONE_PLACE,
    )
    assert judged(ledger, claim(0.7, **anywhere)).verdict.outcome is Outcome.FALSIFIED


def test_nothing_is_recorded_where_one_of_several_cannot_be_judged(ledger):
    run(ledger, 900.0)
    fine, other = claim(0.9), CLAIMS["PR-16"]
    import_claims(ledger, [fine, other])
    before = len(list(ledger.records()))
    with pytest.raises(UsageError, match="PR-16"):
        adjudicate_by_results(ledger, [fine, other])
    assert len(list(ledger.records())) == before
    (done,) = adjudicate_by_results(ledger, [fine, other], all_of_them=False)
    assert done.claim.key == "PR-01"


def test_a_rule_that_was_not_imported_judges_nothing(ledger):
    run(ledger, 900.0)
    with pytest.raises(UsageError, match="a rule is recorded before"):
        adjudicate_by_results(ledger, [claim(0.9)])
