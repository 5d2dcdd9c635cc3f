"""One result for every arm and cell, whatever became of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import msgspec
import pytest
from msgspec import UNSET

from attnbench.errors import AttnbenchError
from attnbench.ledger import Kind, Ledger
from attnbench.measure import verdicts
from attnbench.measure.conductor import Conductor
from attnbench.measure.plan import Plan
from attnbench.measure.tasks import ArmFailure
from attnbench.measure.verdicts import _Found, _under_two_error_rates, arm_results
from attnbench.protocol.cell import Mode, Role, Scope
from attnbench.protocol.integrity import Influence, Replay, StepCheck
from attnbench.protocol.presets import QUICK
from attnbench.protocol.result import ArmResult
from attnbench.protocol.verdict import LatencyVerdict, Reason, Verdict
from attnbench.report.decode_notes import notes
from tests.measure.fake_workers import (
    KV_BYTES,
    READ_BYTES,
    UNSUPPORTED,
    FakeWorkers,
    NoteTaker,
    broke,
)
from tests.measure.planned import INT8, SDPA, SINK, ZERO, plan, request

NAMES = {"int8": INT8.label, "sink": SINK.label, "zero": ZERO.label, "sdpa": SDPA.label}


@pytest.fixture
def results(tmp_path):
    """The results of a run of these workers, by arm."""

    def run(workers: FakeWorkers | None = None, described: Plan | None = None):
        ledger = Ledger(tmp_path / "ledger.jsonl")
        run = workers or FakeWorkers()
        conductor = Conductor(described or plan(), ledger, NoteTaker(), run=run)
        return {result.arm: result for result in arm_results(conductor.conduct())}

    return run


@pytest.mark.parametrize(
    ("step_us", "verdict", "ratio"),
    [(800.0, "FASTER", 1.25), (1250.0, "SLOWER", 0.8), (1000.0, "EQUIVALENT", 1.0)],
)
def test_an_arms_verdict_and_interval_are_those_of_its_true_speed(results, step_us, verdict, ratio):
    found = results(FakeWorkers({INT8.label: step_us}))[INT8.label]
    assert found.verdict.latency == verdict
    assert found.ratio.low < ratio < found.ratio.high
    assert found.ratio.level == 0.95
    assert found.robust_ratio.estimate == pytest.approx(ratio, rel=1e-3)
    assert found.latency_ms["median"] == pytest.approx(step_us / 1e3, rel=0.02)
    assert found.baseline == "sdpa"


def test_the_baseline_has_no_verdict_on_itself_and_its_twin_shows_the_control(results):
    found = results()
    first, again = found["sdpa"], found["sdpa#2"]
    assert (first.role, again.role) == (Role.BASELINE, Role.BASELINE_AGAIN)
    assert first.ratio is UNSET
    assert again.ratio.low < 1 < again.ratio.high
    assert again.method == first.method == "sdpa"
    for result in (first, again):
        assert (result.verdict.latency, result.verdict.next_step) == ("", "")
        assert result.verdict.quality == "MARGINAL"


def test_the_record_of_the_baseline_names_what_it_launches(results):
    found = results()
    assert found["sdpa"].launched == {"kernel of sdpa": 6}
    assert {result.launched for label, result in found.items() if label != "sdpa"} == {UNSET}


def test_a_kernel_configuration_from_a_table_is_recorded_as_such(results):
    launch = {"block_n": 64, "splits": 4, "num_warps": 4, "num_stages": 3, "ring": 0}
    workers = FakeWorkers(
        launches={"sdpa": (launch,), SINK.label: (launch,)}, sources={"sdpa": "a table"}
    )
    found = results(workers)
    assert (found["sdpa"].kernel, found["sdpa"].kernel_source) == (launch, "a table")
    assert (found[SINK.label].kernel, found[SINK.label].kernel_source) == (launch, UNSET)


def test_faster_must_hold_against_an_exact_arm_that_the_pilot_took_for_slow(results):
    workers = FakeWorkers(
        {INT8.label: 800.0, "eager_repeat_kv": 800.0}, pilot_us={"eager_repeat_kv": 2000.0}
    )
    found = results(workers)
    assert found[INT8.label].baseline == "sdpa"
    verdict = found[INT8.label].verdict
    assert (verdict.latency, verdict.latency_reason) == ("INCONCLUSIVE", "not-strongest")
    assert "eager_repeat_kv" in verdict.next_step


def test_the_candidates_alone_share_an_error_rate(results, monkeypatch):
    shared = []

    def doubted(found, *, level):
        shared.extend(verdict.arm for verdict in found)
        reason = Reason.HOLM
        return [msgspec.structs.replace(each, reason=reason) for each in found]

    monkeypatch.setattr(verdicts, "adjusted", doubted)
    found = results()
    assert sorted(shared) == ["eager_repeat_kv", INT8.label, SINK.label]
    by_holm = {arm for arm, each in found.items() if each.verdict.latency_reason == "holm"}
    assert by_holm == set(shared)


def test_one_session_earns_no_verdict(results):
    found = results(FakeWorkers({INT8.label: 500.0}), plan(request=request(protocol=QUICK)))
    verdict = found[INT8.label].verdict
    assert (verdict.latency, verdict.latency_reason) == ("INCONCLUSIVE", "too-few-sessions")
    assert "three sessions" in verdict.next_step


@pytest.mark.parametrize("session", [0, 1, 2])
def test_an_arm_that_fails_in_one_session_is_void_with_its_reason_and_others_stand(
    results, session
):
    workers = FakeWorkers({SINK.label: 800.0}, breaks={(session, INT8.label): broke("visit")})
    found = results(workers)
    verdict = found[INT8.label].verdict
    assert (verdict.latency, verdict.latency_reason) == ("VOID", "not-measured")
    assert found[INT8.label].failure == "IndexError: row 7 is out of range"
    assert found[SINK.label].verdict.latency == "FASTER"
    assert found[SINK.label].failure is UNSET


def test_a_baseline_that_fails_in_a_session_takes_every_verdict_with_it(results):
    found = results(FakeWorkers(breaks={(1, "sdpa#2"): broke("visit")}))
    judged = [result for result in found.values() if result.verdict.latency]
    assert {result.verdict.latency for result in judged} == {"VOID"}
    assert found["sdpa#2"].failure == "IndexError: row 7 is out of range"


def test_an_arm_that_was_asked_for_and_never_ran_is_a_void_row(results):
    found = results(FakeWorkers(not_here={SINK.label: UNSUPPORTED}))[SINK.label]
    verdict = found.verdict
    assert (verdict.latency, verdict.latency_reason) == ("VOID", "not-measured")
    assert (verdict.quality, verdict.memory) == ("NOT_EVALUATED", "VOID")
    assert found.failure == "Unsupported: no kernel"
    assert verdict.next_step == "a GPU"
    assert (found.latency_ms, found.ratio, found.memory) == (UNSET, UNSET, UNSET)


def test_a_default_arm_that_does_not_exist_here_has_no_row_and_one_that_broke_has(results):
    found = results(FakeWorkers(not_here={INT8.label: UNSUPPORTED, ZERO.label: broke("pilot")}))
    assert INT8.label not in found
    assert found[ZERO.label].verdict.latency == "VOID"
    assert found[ZERO.label].role is Role.CONTROL


def test_an_arm_of_the_pilot_alone_has_no_row(results):
    assert "sdpa,backend=math" not in results()


def test_every_cell_has_its_rows_against_its_own_baseline(tmp_path):
    cells = ((Scope.STEP, Mode.EAGER), (Scope.ATTENTION, Mode.EAGER))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    evidence = Conductor(plan(cells=cells), ledger, NoteTaker(), run=FakeWorkers()).conduct()
    found = arm_results(evidence)
    by_scope = {scope: [r.arm for r in found if r.cell.scope is scope] for scope in Scope}
    assert by_scope[Scope.STEP] == by_scope[Scope.ATTENTION]
    assert len(found) == 2 * 6


def test_the_verdict_on_quality_is_that_of_the_gates(results):
    workers = FakeWorkers(cosine={INT8.label: 0.97, SINK.label: 0.5})
    found = results(workers)
    said = {name: found[label].verdict for name, label in NAMES.items()}
    assert (said["int8"].quality, said["int8"].quality_reason) == (
        "MARGINAL",
        "mean-cosine",
    )
    assert (said["sink"].quality, said["sink"].quality_reason) == ("KILL", "mean-cosine")
    body = found[INT8.label].quality
    assert body["cosine_mean"] == pytest.approx(0.97)
    assert (body["text"], body["windows"], body["steps"], body["context"]) == (
        "a text",
        2,
        4,
        1024,
    )
    assert "needle" in body["gates_not_run"]


def test_an_arm_that_is_judged_at_more_than_was_timed_has_no_verdict_on_quality(results):
    found = results(FakeWorkers(timed_share={INT8.label: 0.0625, SINK.label: 0.85}))
    said = found[INT8.label]
    assert (said.verdict.quality, said.verdict.quality_reason) == ("NOT_EVALUATED", "other-budget")
    assert (said.quality["judged_share"], said.quality["timed_share"]) == (1.0, 0.0625)
    (noted,) = (note for note in notes(list(found.values())) if "judged" in note)
    assert noted == (
        f"{INT8.label}: quality NOT_EVALUATED (other-budget): it attended to 100.0% of the tokens "
        "where its outputs were judged, and to 6.2% in the steps that were timed"
    )
    assert found[SINK.label].verdict.quality == "MARGINAL"


@pytest.mark.parametrize(
    ("described", "faults", "reason"),
    [
        (plan(weights="random"), {}, "random-weights"),
        (plan(request=request(quality=None)), {}, "not-asked"),
        (plan(), {"quality": AttnbenchError("no text")}, "not-measured"),
    ],
)
def test_quality_that_was_not_judged_says_why(results, described, faults, reason):
    for result in results(FakeWorkers(faults=faults), described).values():
        assert result.verdict.quality == "NOT_EVALUATED"
        assert result.verdict.quality_reason == reason
        assert result.quality is UNSET
        assert result.verdict.memory == "EQUIVALENT"


def test_the_floor_is_the_bytes_over_the_bandwidth_of_the_same_sessions(results):
    floor = results()["sdpa"].floor
    assert (floor.read_bytes, floor.bandwidth_gb_s) == (READ_BYTES, 2000.0)
    assert floor.ms == pytest.approx(0.25)


def test_a_time_below_the_byte_floor_is_void(results):
    workers = FakeWorkers({INT8.label: 500.0}, read_bytes={INT8.label: 4 * READ_BYTES})
    verdict = results(workers)[INT8.label].verdict
    assert (verdict.latency, verdict.latency_reason) == ("VOID", "below-floor")


def test_the_captured_share_is_the_part_of_the_way_to_the_ceiling(results):
    found = results(FakeWorkers({INT8.label: 800.0, SINK.label: 1100.0, ZERO.label: 600.0}))
    assert found[INT8.label].captured_share == pytest.approx(0.5, abs=0.01)
    assert found[SINK.label].captured_share == pytest.approx(-0.25, abs=0.01)
    assert found[ZERO.label].captured_share == pytest.approx(1.0)
    assert found["sdpa"].captured_share is UNSET
    interval = found[INT8.label].captured_interval
    assert interval.low < found[INT8.label].captured_share < interval.high
    assert interval.high - interval.low < 0.05


def test_every_result_has_its_floor_in_parts_its_ceiling_and_its_rate(results):
    found = results(FakeWorkers({ZERO.label: 500.0}), plan(request=request(batch=4, quality=None)))
    for label, result in found.items():
        assert result.floor.weight_bytes + result.floor.kv_bytes == result.floor.read_bytes, label
        assert result.floor.weight_bytes == 1
        assert result.ceiling.ms == pytest.approx(0.5, rel=0.01)
        assert result.ceiling.speed_up.estimate == pytest.approx(2, rel=0.01)
        assert result.tokens_per_s == pytest.approx(4e3 / result.latency_ms["median"])
        assert result.primary


def test_attention_alone_reads_no_weights_and_yields_no_tokens(results):
    found = results(FakeWorkers(), plan(cells=((Scope.ATTENTION, Mode.EAGER),)))
    assert found["sdpa"].floor.weight_bytes == 0
    assert found["sdpa"].tokens_per_s is UNSET


def test_the_baselines_step_is_broken_down_and_nobody_elses(results):
    class Alone(FakeWorkers):
        def _cell(self, cell, number):
            held = super()._cell(cell, number)
            return msgspec.structs.replace(held, attention_us=(300.0 + number,) * 3)

    found = results(Alone())
    broken_down = {label for label, result in found.items() if result.breakdown is not UNSET}
    assert broken_down == {"sdpa"}
    parts = found["sdpa"].breakdown
    assert parts.attention_ms == pytest.approx(0.301)
    assert parts.other_ms == pytest.approx(parts.step_ms - 0.301)
    assert parts.attention_share.low < 0.301 < parts.attention_share.high


def test_an_arm_that_the_others_leave_no_room_for_is_void_with_figures_and_stays_out(results):
    gib = 1 << 30
    own = {"sdpa": gib, SINK.label: 8 * gib, "eager_repeat_kv": 4 * gib, INT8.label: 7 * gib}
    workers = FakeWorkers(room_bytes=20 * gib, own_bytes=own)
    found = results(workers)
    crowded = found[INT8.label]
    assert (crowded.verdict.latency, crowded.verdict.latency_reason) == ("VOID", "does-not-fit")
    assert "7.00 GiB of its own, and the other arms leave 5.00 GiB" in crowded.failure
    assert "fewer arms" in crowded.verdict.next_step
    assert found[SINK.label].failure is UNSET  # asked for, so it comes first
    assert INT8.label not in {arm.label for arm in workers.tasks[0].bench.arms}


def test_where_room_cannot_be_told_nobody_is_left_out(results):
    found = results(FakeWorkers(own_bytes={INT8.label: 1 << 50}))
    assert found[INT8.label].failure is UNSET


def test_an_arm_for_which_there_is_no_memory_is_void_for_that_reason(results):
    full = ArmFailure(type="DoesNotFit", message="no room", hint="less", during="visit")
    found = results(FakeWorkers(breaks={(1, INT8.label): full}))[INT8.label]
    assert (found.verdict.latency, found.verdict.latency_reason) == ("VOID", "does-not-fit")
    assert found.failure == "DoesNotFit: no room"


def test_nothing_is_captured_of_a_way_that_does_not_exist(results):
    found = results(FakeWorkers({INT8.label: 800.0, ZERO.label: 1200.0}))
    assert found[INT8.label].captured_share is UNSET


@pytest.mark.parametrize(
    ("reachable", "allocated", "verdict"),
    [
        (KV_BYTES // 2, KV_BYTES // 2, "SMALLER"),
        (KV_BYTES * 2, KV_BYTES * 2, "LARGER"),
        (KV_BYTES, KV_BYTES, "EQUIVALENT"),
        (KV_BYTES // 2, KV_BYTES, "VOID"),
        (KV_BYTES, KV_BYTES // 2, "INCONCLUSIVE"),
    ],
)
def test_memory_counts_where_both_figures_agree(results, reachable, allocated, verdict):
    workers = FakeWorkers(kv_bytes={INT8.label: reachable}, allocated_bytes={INT8.label: allocated})
    found = results(workers)[INT8.label]
    assert found.verdict.memory == verdict
    assert found.memory["reachable_bytes"] == reachable
    assert "process_bytes" not in found.memory


def test_savings_are_against_the_baselines_own_figure_of_each_kind(results):
    """What the baseline allocates beside its tensors counts for it, and for the arm too."""
    workers = FakeWorkers(
        kv_bytes={INT8.label: KV_BYTES // 2},
        allocated_bytes={"sdpa": 2 * KV_BYTES, INT8.label: KV_BYTES + KV_BYTES // 2},
    )
    assert results(workers)[INT8.label].verdict.memory == "SMALLER"


def test_memory_that_failed_is_void_and_latency_and_quality_stand(results):
    workers = FakeWorkers({INT8.label: 800.0}, faults={"memory": AttnbenchError("killed")})
    found = results(workers)[INT8.label]
    assert (found.verdict.memory, found.verdict.memory_reason) == ("VOID", "not-measured")
    assert (found.verdict.latency, found.verdict.quality) == ("FASTER", "MARGINAL")


def test_a_result_says_where_and_with_what_it_was_measured(results):
    launch = {"block_n": 64, "splits": 4, "num_warps": 4, "num_stages": 2}
    found = results(FakeWorkers(launches={INT8.label: (launch,)}))[INT8.label]
    assert found.kernel == launch
    assert found.source_sha256 == INT8.source_sha256  # as planned, not as the file is by now
    assert found.witness == {"kept_share": 1.0}
    assert found.protocol["name"] == "canonical"
    assert (
        found.environment.items()
        >= {
            "device": "A processor",
            "threads": 1,
            "fill": "prefilled",
            "weights": "trained",
            "model_identity": "ab" * 32,
            "cache_sha256": "cd" * 32,
        }.items()
    )


def test_what_the_ledger_holds_reads_back_as_the_same_results(tmp_path, results):
    found = results(FakeWorkers({INT8.label: 800.0}, not_here={SINK.label: broke("pilot")}))
    ledger = Ledger(tmp_path / "another.jsonl")
    for result in found.values():
        ledger.append(Kind.RESULT, msgspec.to_builtins(result))
    bodies = [json.loads(line)["body"] for line in ledger.path.read_text().splitlines()]
    assert [msgspec.convert(body, ArmResult) for body in bodies] == list(found.values())


def test_verdicts_are_a_function_of_the_evidence_alone(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    evidence = Conductor(plan(), ledger, NoteTaker(), run=FakeWorkers()).conduct()
    assert arm_results(evidence) == arm_results(evidence)
    assert all(math.isfinite(r.ratio.high) for r in arm_results(evidence) if r.ratio is not UNSET)


def test_a_doubtful_bandwidth_probe_voids_every_latency(results):
    workers = FakeWorkers({INT8.label: 800.0}, probe_note="the probe read 900 GB/s, 27 %")
    for arm in results(workers).values():
        if arm.role not in (Role.BASELINE, Role.BASELINE_AGAIN):
            assert (arm.verdict.latency, arm.verdict.latency_reason) == ("VOID", "probe-doubtful")
            assert "900 GB/s" in arm.verdict.next_step


def test_what_a_verdict_rests_on_is_in_its_result(results):
    found = results(FakeWorkers({INT8.label: 800.0}))[INT8.label]
    rests_on = found.statistics
    assert rests_on.sessions == 3
    assert rests_on.blocks_used == 36
    assert rests_on.blocks_dropped == 0
    assert rests_on.p_value < 0.05
    assert rests_on.aa.low < 1 < rests_on.aa.high
    assert rests_on.session_sd >= 0


def test_the_primary_cell_has_an_error_rate_of_its_own_and_all_others_share_one():
    alone = LatencyVerdict(
        arm="x", verdict=Verdict.FASTER, reason=Reason.INTERVAL_CLEAR, next_step="", p_value=0.03
    )
    one = _Found({"x": alone}, ("x",))

    def said(*is_primary: bool) -> list[Verdict]:
        judged = _under_two_error_rates([one] * len(is_primary), is_primary, 0.95)
        return [cell["x"].verdict for cell in judged]

    assert said(True) == [Verdict.FASTER]
    assert said(True, False) == [Verdict.FASTER] * 2
    assert said(False, True, False) == [
        Verdict.INCONCLUSIVE,
        Verdict.FASTER,
        Verdict.INCONCLUSIVE,
    ]


@dataclass
class Watched(FakeWorkers):
    """Workers that see arms do something in the second session; all by label.

    `after`: why arms fail once all cells are timed.
    """

    checks: dict[str, StepCheck] = field(default_factory=dict)
    surprises: dict[str, StepCheck] = field(default_factory=dict)
    influence: dict[str, Influence] = field(default_factory=dict)
    replays: dict[str, Replay] = field(default_factory=dict)
    after: dict[str, ArmFailure] = field(default_factory=dict)

    def _session(self, cells, number):
        result = super()._session(cells, number)
        if number != 1:
            return result
        checks = {label: (check,) for label, check in self.checks.items()}
        return msgspec.structs.replace(
            result,
            cells=tuple(msgspec.structs.replace(cell, checks=checks) for cell in result.cells),
            surprises={label: (check,) for label, check in self.surprises.items()},
            influence=self.influence,
            replays=self.replays,
            failures=self.after,
        )


def failed(reason: str) -> ArmFailure:
    return ArmFailure(
        type="BrokenArm", message="it did that", hint="", during="visit", reason=reason
    )


def wrong(error: float = 0.3) -> StepCheck:
    return StepCheck(visit=0, layer=0, error=error, worst_head=error)


def seen(counted: float, declared: float, least: float = 1.0) -> Influence:
    return Influence(planted=1000, counted=counted, least=least, declared=declared)


def replay(held_us: float) -> Replay:
    return Replay(fresh_us=(100.0,), held_us=(held_us,), moving_us=(100.0,))


def said_of(found, arm: str) -> tuple[str, str]:
    return found[arm].verdict.latency, found[arm].verdict.latency_reason


@pytest.mark.parametrize("reason", ["patched", "hung", "cache-changed", "global-state"])
def test_a_failure_with_a_reason_is_void_for_that_reason(results, reason):
    found = results(FakeWorkers({SINK.label: 800.0}, breaks={(1, INT8.label): failed(reason)}))
    assert said_of(found, INT8.label) == ("VOID", reason)
    assert found[INT8.label].verdict.next_step.startswith("it did that; ")
    assert found[INT8.label].failure == "BrokenArm: it did that"
    assert said_of(found, SINK.label)[0] == "FASTER"


def test_a_failure_with_a_reason_in_the_pilot_is_void_for_that_reason(results):
    found = results(FakeWorkers(not_here={INT8.label: failed("left-running")}))
    assert said_of(found, INT8.label) == ("VOID", "left-running")


def test_what_an_arm_does_after_its_cells_voids_what_it_did_in_them(results):
    found = results(Watched({INT8.label: 800.0}, after={INT8.label: failed("output-type")}))
    assert said_of(found, INT8.label) == ("VOID", "output-type")
    assert said_of(found, SINK.label)[0] == "EQUIVALENT"


def test_a_control_that_failed_for_a_reason_is_void_too(results):
    found = results(FakeWorkers(breaks={(1, ZERO.label): failed("patched")}))
    assert said_of(found, ZERO.label) == ("VOID", "patched")


SEEN = {
    "wrong-output": {"checks": {INT8.label: wrong()}},
    "false-witness": {"influence": {INT8.label: seen(1.0, 0.2)}},
    "cached": {"replays": {INT8.label: replay(10.0), "sdpa": replay(100.0)}},
}


@pytest.mark.parametrize("reason", SEEN)
def test_what_a_session_saw_of_an_arm_makes_it_void_and_no_other(results, reason):
    found = results(Watched({INT8.label: 800.0, SINK.label: 800.0}, **SEEN[reason]))
    assert said_of(found, INT8.label) == ("VOID", reason)
    assert found[INT8.label].ratio.estimate > 1.2  # the figures stay, the verdict does not
    assert said_of(found, SINK.label)[0] == "FASTER"


def test_a_wrong_step_whose_input_came_late_is_as_wrong_as_a_timed_one(results):
    found = results(Watched({INT8.label: 800.0}, surprises={INT8.label: wrong()}))
    assert said_of(found, INT8.label) == ("VOID", "wrong-output")


@pytest.mark.parametrize(
    ("reason", "saw"),
    [
        ("context-skipped", {"influence": {"eager_repeat_kv": seen(1.0, 1.0, least=0.5)}}),
        ("precision", {"checks": {"eager_repeat_kv": wrong(4e-5)}}),
        ("precision", {"read_bytes": {"eager_repeat_kv": READ_BYTES // 2}}),
    ],
)
def test_an_exact_arm_is_held_to_being_exact_and_an_approximate_one_is_not(results, reason, saw):
    found = results(Watched(**saw))
    assert said_of(found, "eager_repeat_kv") == ("VOID", reason)
    same = {name: {INT8.label: figures["eager_repeat_kv"]} for name, figures in saw.items()}
    assert said_of(results(Watched(**same)), INT8.label)[0] == "EQUIVALENT"


def test_a_control_is_not_judged_by_what_it_computes(results):
    saw = {"checks": {ZERO.label: wrong()}, "influence": {ZERO.label: seen(1.0, 0.0)}}
    assert said_of(results(Watched(**saw)), ZERO.label)[0] == "FASTER"


@pytest.mark.parametrize("label", ["sdpa", "sdpa#2"])
def test_a_baseline_that_is_not_honest_voids_all_that_is_compared_with_it(results, label):
    found = results(Watched({INT8.label: 800.0}, checks={label: wrong()}))
    judged = {arm: said_of(found, arm) for arm in found if found[arm].verdict.latency}
    assert set(judged.values()) == {("VOID", "wrong-output")}
    assert len(judged) == 4
    assert f"{label}: 1 of 1 timed steps" in found[INT8.label].verdict.next_step


def test_honest_figures_of_a_session_change_no_verdict(results):
    labels = ("sdpa", "sdpa#2", "eager_repeat_kv", INT8.label, SINK.label, ZERO.label)
    honest = Watched(
        {INT8.label: 800.0},
        checks=dict.fromkeys(labels, wrong(1e-6)),
        surprises=dict.fromkeys(labels, wrong(1e-6)),
        influence=dict.fromkeys(labels, seen(1.0, 1.0)),
        replays=dict.fromkeys(labels, replay(100.0)),
    )
    plain = results(FakeWorkers({INT8.label: 800.0}))
    found = results(honest)
    assert {arm: said_of(found, arm) for arm in found} == {
        arm: said_of(plain, arm) for arm in plain
    }
