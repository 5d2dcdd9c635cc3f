"""Results are built again from their samples, to the byte, and what is not as recorded is told."""

from __future__ import annotations

import gzip
from typing import Any

import msgspec
import pytest

from attnbench.errors import Exit, LedgerError
from attnbench.ledger import Kind, Ledger, Reason, Record, reinstate, retract
from attnbench.ledger.canonical import canonical_bytes
from attnbench.ledger.survey import Survey
from attnbench.measure import recompute as module
from attnbench.measure.calibrating import Calibrator
from attnbench.measure.calibration_plan import plan_calibration
from attnbench.measure.conductor import Conductor, Sweeper
from attnbench.measure.lost import sweep_results
from attnbench.measure.recompute import Outcome, Rechecked, Recomputed, differences, recompute
from attnbench.measure.recorded import built_in_methods
from attnbench.measure.sweep_plan import SweepPlan
from attnbench.measure.tasks import ArmFailure
from attnbench.measure.verdicts import arm_results
from attnbench.methods.registry import names
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.presets import SEQUENTIAL
from attnbench.protocol.reading import read
from attnbench.protocol.registration import register
from attnbench.protocol.result import Promise
from tests.measure.fake_workers import UNSUPPORTED, FakeWorkers, NoteTaker, broke
from tests.measure.planned import plan, request
from tests.measure.test_calibrating import REQUEST
from tests.measure.test_calibrating import workers as calibration_workers
from tests.protocol.texts import SPEED

HERE = "0" * 40
FASTER = {"int8_kv,impl=torch": 900.0, "sink_window,window=64,impl=torch": 1004.0}


@pytest.fixture(autouse=True)
def one_source(monkeypatch):
    """The source that records and the one that compares are one commit, and clean."""
    for place in ("attnbench.ledger.book", "attnbench.measure.recompute"):
        monkeypatch.setattr(f"{place}.source_commit", lambda: HERE)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def run(ledger: Ledger, workers: FakeWorkers, **changes: Any) -> None:
    """A decode run and its results, as the commands record them: with the promise first."""
    evidence = Conductor(plan(**changes), ledger, NoteTaker(), run=workers).conduct()
    promise = evidence.plan.request.promise
    promised = [promise.registration] if promise and promise.registration else []
    for result in arm_results(evidence):
        body = msgspec.to_builtins(result)
        ledger.append(Kind.RESULT, body, cites=[*promised, *evidence.cites])


def results(ledger: Ledger) -> list[Record]:
    return [record for record in ledger.records() if record.kind is Kind.RESULT]


def outcomes(found: Recomputed) -> set[Outcome]:
    return {each.outcome for each in found.results}


def worded(ledger: Ledger, record: Record, **changes: Any) -> Record:
    """The same result once more with other members, citing the same sessions."""
    return ledger.append(Kind.RESULT, {**record.body, **changes}, cites=record.cites)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"step_us": FASTER, "cosine": {"int8_kv,impl=torch": 0.97}}, {}),
        ({"not_here": {"sink_window,window=64,impl=torch": UNSUPPORTED}}, {}),
        ({"breaks": {(1, "int8_kv,impl=torch"): broke("step")}}, {}),
        ({"faults": {"memory": LedgerError("no room")}}, {}),
        ({"faults": {"quality": LedgerError("no text")}}, {}),
        ({"probe_note": "the probe is slow"}, {}),
        ({"kv_bytes": {"int8_kv,impl=torch": 60 << 20}}, {"weights": "random"}),
        ({}, {"request": request(quality=None)}),
        ({"step_us": FASTER}, {"request": request(protocol=SEQUENTIAL)}),
        ({}, {"cells": ((Scope.STEP, Mode.EAGER), (Scope.ATTENTION, Mode.EAGER))}),
    ],
)
def test_every_result_of_a_run_is_the_same_to_the_byte(ledger, settings, changes):
    run(ledger, FakeWorkers(**settings), **changes)
    found = recompute(ledger)
    assert len(found.results) == len(results(ledger)) > 3
    assert [each for each in found.results if each.outcome is not Outcome.SAME] == []
    assert found.exit_code == Exit.DONE


def swept(ledger: Ledger, workers: FakeWorkers) -> None:
    """A run of two contexts at two batches, of which the largest does not fit."""
    places = [
        plan(request=request(batch=batch), context=context, cache_bytes=6000 * context * batch)
        for context in (512, 1024)
        for batch in (1, 4)
    ]
    found = Sweeper(places, ledger, NoteTaker(), run=workers).conduct()
    for result in sweep_results(SweepPlan(tuple(places), (), places[1]), found):
        ledger.append(Kind.RESULT, msgspec.to_builtins(result), cites=found.cites)


def test_every_result_of_several_places_is_the_same_to_the_byte(ledger):
    unfit = ArmFailure(type="DoesNotFit", message="no room", hint="less", during="set-up")
    swept(ledger, FakeWorkers(step_us=FASTER, unfit={(1, 1024): unfit}))
    found = recompute(ledger)
    assert {(r.body["cell"]["context"], r.body["cell"]["batch"]) for r in results(ledger)} == {
        (512, 1), (512, 4), (1024, 1), (1024, 4),
    }  # fmt: skip
    assert [each for each in found.results if each.outcome is not Outcome.SAME] == []


def test_a_figure_of_another_place_breaks_the_ledger(ledger):
    swept(ledger, FakeWorkers(step_us=FASTER))
    honest = next(r for r in results(ledger) if r.body["arm"] == "int8_kv,impl=torch")
    forged = worded(ledger, honest, captured_share=0.9)
    found = {each.id: each.outcome for each in recompute(ledger).results}
    assert (found[honest.id], found[forged.id]) == (Outcome.SAME, Outcome.DIFFERS)


def test_figures_of_a_place_that_was_never_measured_break_the_ledger(ledger):
    unfit = ArmFailure(type="DoesNotFit", message="no room", hint="less", during="set-up")
    swept(ledger, FakeWorkers(unfit={("pilot", 1024): unfit}))
    lost = next(r for r in results(ledger) if r.body["cell"]["context"] == 1024)
    figures = {"median": 0.5, "mean": 0.5, "min": 0.5, "max": 0.5}
    forged = worded(ledger, lost, latency_ms=figures)
    found = {each.id: each.outcome for each in recompute(ledger).results}
    assert (found[lost.id], found[forged.id]) == (Outcome.SAME, Outcome.DIFFERS)


def test_a_calibrations_findings_are_the_same_to_the_byte(ledger):
    calibrated = Calibrator(
        plan_calibration(REQUEST), ledger, NoteTaker(), run=calibration_workers()
    )
    calibrated.calibrate()
    (found,) = recompute(ledger).results
    assert (found.outcome, found.differences) == (Outcome.SAME, ())


def test_an_order_effect_is_the_same_to_the_byte(ledger):
    asked = msgspec.structs.replace(REQUEST, order_effect=True)
    Calibrator(plan_calibration(asked), ledger, NoteTaker(), run=FakeWorkers()).calibrate()
    (found,) = recompute(ledger).results
    assert (found.outcome, found.differences) == (Outcome.SAME, ())


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("ratio", {"estimate": 1.5, "low": 1.4, "high": 1.6, "level": 0.95}),
        ("latency_ms", {"median": 0.5, "mean": 0.5, "min": 0.5, "max": 0.5}),
        ("captured_share", 0.9),
        ("witness", {"kept_share": 0.5}),
        ("memory", {"reachable_bytes": 1}),
        ("source_sha256", "f" * 64),
    ],
)
def test_a_figure_that_its_samples_do_not_give_breaks_the_ledger(ledger, member, value):
    run(ledger, FakeWorkers(step_us=FASTER))
    honest = next(r for r in results(ledger) if r.body["arm"] == "int8_kv,impl=torch")
    forged = worded(ledger, honest, **{member: value})
    found = {each.id: each for each in recompute(ledger).results}
    assert found[forged.id].outcome is Outcome.DIFFERS
    assert {each.member.split(".")[0] for each in found[forged.id].differences} == {member}
    assert found[honest.id].outcome is Outcome.SAME
    assert recompute(ledger).exit_code == Exit.LEDGER_BROKEN


def test_a_verdict_that_its_samples_do_not_give_is_told_with_both_words(ledger):
    run(ledger, FakeWorkers())
    honest = next(r for r in results(ledger) if r.body["arm"] == "int8_kv,impl=torch")
    verdict = {**honest.body["verdict"], "latency": "FASTER", "quality": "KILL"}
    forged = worded(ledger, honest, verdict=verdict)
    found = next(each for each in recompute(ledger).results if each.id == forged.id)
    told = {each.member: (each.recorded, each.rebuilt) for each in found.differences}
    assert told["verdict.latency"] == ('"FASTER"', '"EQUIVALENT"')
    assert told["verdict.quality"][0] == '"KILL"'


def test_samples_that_were_exchanged_for_others_show_in_what_was_made_of_them(ledger):
    run(ledger, FakeWorkers())
    first = results(ledger)[0]
    by_id = {record.id: record for record in ledger.records()}
    cites = []
    for id in first.cites:
        closed = by_id[id]
        sent = gzip.decompress(ledger.get_blob(closed.body["samples"]))
        slower = sent.replace(b'"steps_us":[1', b'"steps_us":[2')
        samples = ledger.put_blob(gzip.compress(slower, mtime=0))
        body = {**closed.body, "samples": samples}
        cites.append(ledger.append(Kind.SESSION, body, cites=closed.cites).id)
    for result in results(ledger):
        ledger.append(Kind.RESULT, dict(result.body), cites=cites)
    found = recompute(ledger).results
    half = len(found) // 2
    assert {each.outcome for each in found[:half]} == {Outcome.SAME}
    assert {each.outcome for each in found[half:]} == {Outcome.DIFFERS}


@pytest.mark.parametrize(
    ("commit", "code"),
    [
        (HERE, Exit.LEDGER_BROKEN),
        ("1" * 40, Exit.INCONCLUSIVE),
        (f"{HERE}-dirty", Exit.INCONCLUSIVE),
        (None, Exit.INCONCLUSIVE),
    ],
)
def test_only_a_record_of_this_very_source_proves_that_the_ledger_is_broken(
    ledger, monkeypatch, commit, code
):
    run(ledger, FakeWorkers())
    monkeypatch.setattr("attnbench.ledger.book.source_commit", lambda: commit)
    worded(ledger, results(ledger)[-1], captured_share=0.9)
    found = recompute(ledger)
    assert found.exit_code == code
    assert found.results[-1].outcome is Outcome.DIFFERS


def test_a_difference_is_settled_by_a_correction_or_a_retraction_and_still_listed(ledger):
    run(ledger, FakeWorkers())
    forged = worded(ledger, results(ledger)[-1], captured_share=0.9)
    remark = ledger.append(Kind.CONCERN, {"target": forged.id, "concern": "is it so?"})
    assert recompute(ledger).exit_code == Exit.LEDGER_BROKEN
    retraction = retract(ledger, forged.id, Reason.MEASUREMENT_ERROR, "mistyped")
    settled = recompute(ledger)
    assert settled.exit_code == Exit.DONE
    assert settled.results[-1].outcome is Outcome.DIFFERS
    assert settled.results[-1].settled_by == (retraction.id,)
    reinstate(ledger, forged.id, "it was not")
    assert recompute(ledger).exit_code == Exit.LEDGER_BROKEN
    correction = ledger.append(Kind.CORRECTION, {"target": forged.id, "note": "0.5"})
    assert recompute(ledger).results[-1].settled_by == (correction.id,)
    assert remark.id not in recompute(ledger).results[-1].settled_by
    assert recompute(ledger).exit_code == Exit.DONE


def test_a_result_without_its_sessions_or_from_samples_of_another_form_is_unreadable(ledger):
    run(ledger, FakeWorkers())
    honest = results(ledger)[0]
    lost = ledger.append(Kind.RESULT, dict(honest.body), cites=["f" * 64])
    odd = ledger.put_blob(gzip.compress(b'{"task":"session","minutes":3}', mtime=0))
    closing = next(r for r in ledger.records() if r.id == honest.cites[0])
    other = ledger.append(Kind.SESSION, {**closing.body, "samples": odd}, cites=closing.cites)
    unread = ledger.append(Kind.RESULT, dict(honest.body), cites=[other.id])
    raw = {**closing.body, "samples": ledger.put_blob(b"no archive")}
    third = ledger.append(Kind.SESSION, raw, cites=closing.cites)
    torn = ledger.append(Kind.RESULT, dict(honest.body), cites=[third.id])
    found = {each.id: each for each in recompute(ledger).results}
    assert "not in this ledger" in found[lost.id].why
    assert "another form" in found[unread.id].why
    assert "another form" in found[torn.id].why
    assert found[lost.id].outcome is found[unread.id].outcome is Outcome.UNREADABLE
    assert found[honest.id].outcome is Outcome.SAME


def test_a_run_at_a_time_is_read_and_never_all_records(ledger, monkeypatch):
    for _ in range(2):
        run(ledger, FakeWorkers())
    read = []
    real = Survey.records

    def counted(self, seqs):
        found = real(self, seqs)
        read.append(len(found))
        return found

    monkeypatch.setattr(Survey, "records", counted)
    monkeypatch.delattr(Ledger, "records")
    assert {each.outcome for each in recompute(ledger).results} == {Outcome.SAME}
    per_run = sum(1 for _ in ledger.path.open()) // 2
    assert 0 < max(read) < per_run


def test_nothing_is_recorded(ledger):
    run(ledger, FakeWorkers())
    before = ledger.path.read_bytes()
    recompute(ledger)
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize(
    ("recorded", "rebuilt", "outcome"),
    [
        ({"x": 1.0}, {"x": 1}, None),  # the same bytes
        ({"x": 1.5}, {"x": 1.5 * (1 + 1e-12)}, Outcome.ROUNDING),
        ({"x": 1.5}, {"x": 1.5 * (1 + 1e-8)}, Outcome.DIFFERS),
        ({"x": 0.0}, {"x": 1e-17}, Outcome.ROUNDING),
        ({"x": 1}, {"x": True}, Outcome.DIFFERS),
        ({"x": "1"}, {"x": 1}, Outcome.DIFFERS),
        ({"x": {"y": [1, 2]}}, {"x": {"y": [1, 3]}}, Outcome.DIFFERS),
        ({}, {"x": {"y": 1}}, Outcome.MORE),
        ({"x": {"y": 1}}, {}, Outcome.DIFFERS),
        ({"x": [{"y": 1}]}, {"x": [{"y": 1}, {"y": 2}]}, Outcome.MORE),
    ],
)
def test_what_counts_as_a_difference(recorded, rebuilt, outcome):
    found = [each.outcome for each in differences(recorded, rebuilt)]
    assert found == ([outcome] if outcome else [])


def test_differences_are_told_in_canonical_form():
    (found,) = differences({"x": {"y": 2e-6}}, {"x": {"y": 3e-6}})
    assert (found.member, found.recorded, found.rebuilt) == ("x.y", "0.000002", "0.000003")
    assert canonical_bytes(2e-6).decode() == found.recorded


def test_a_dirty_source_is_never_the_same_one(monkeypatch):
    made = Rechecked("a", 1, "x", module.TOOL, f"{HERE}-dirty", Outcome.DIFFERS)
    monkeypatch.setattr("attnbench.measure.recompute.source_commit", lambda: f"{HERE}-dirty")
    assert not made.is_own


def test_methods_of_this_package_are_known_by_the_names_of_their_files():
    assert set(names()) <= built_in_methods()


def promised(ledger: Ledger, registered: bool, *, exploratory: bool = False) -> None:
    """A run judged by bands of a protocol file, under which a cosine of 0.97 is good enough."""
    gates = "\n[gates.mean-cosine]\npass_from = 0.96\nkill_below = 0.5\n"
    source = read((SPEED + gates).encode(), "a test")
    promise = Promise(protocol=source.file.id, file_sha256=source.sha256, exploratory=exploratory)
    if registered:
        record = register(ledger, source).record
        promise = msgspec.structs.replace(promise, registration=record.id)
    asked = request(promise=promise, bands=source.file.bands())
    run(ledger, FakeWorkers(cosine={"int8_kv,impl=torch": 0.97}), request=asked)


def test_quality_is_judged_again_by_the_bands_that_a_protocol_registered(ledger):
    promised(ledger, registered=True)
    found = recompute(ledger)
    assert outcomes(found) == {Outcome.SAME}
    judged = next(r for r in results(ledger) if r.body["arm"] == "int8_kv,impl=torch")
    assert judged.body["verdict"]["quality_reason"] != "mean-cosine"


def test_quality_by_the_bands_of_a_file_that_is_not_in_the_ledger_cannot_be_judged_again(ledger):
    promised(ledger, registered=False)
    found = recompute(ledger)
    assert outcomes(found) == {Outcome.UNREADABLE}
    assert "protocol file" in found.results[0].why


def test_an_exploratory_run_whose_file_is_not_in_the_ledger_counts_nowhere_and_breaks_nothing(
    ledger,
):
    promised(ledger, registered=False, exploratory=True)
    found = recompute(ledger)
    assert outcomes(found) == {Outcome.UNPROMISED}
    assert found.exit_code is Exit.DONE
