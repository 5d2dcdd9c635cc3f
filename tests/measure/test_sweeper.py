"""A run of several places: one worker for all of them, and each its own verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import UNSET

from attnbench.errors import AttnbenchError, DoesNotFit, UsageError
from attnbench.ledger import Ledger, verify
from attnbench.measure import plan as planning
from attnbench.measure.conductor import Sweeper, Swept
from attnbench.measure.lost import arms_of_pilots, sweep_results
from attnbench.measure.sweep_plan import SweepPlan, plan_sweep
from attnbench.measure.tasks import ArmFailure, SweepTask
from attnbench.models.info import ModelInfo
from attnbench.models.sources import inspect
from attnbench.protocol.exit import run_exit
from attnbench.protocol.presets import SEQUENTIAL
from tests.measure.fake_workers import UNSUPPORTED, FakeWorkers, NoteTaker
from tests.measure.planned import CPU, EAGER, INT8, MATH, SDPA, SINK, ZERO, plan, request

FULL = ArmFailure(type="DoesNotFit", message="no room for it", hint="less", during="set-up")
FAR_APART = {INT8.label: 800.0, SINK.label: 700.0}
NAMES = ["pilot", 0, 1, 2, "memory", "quality"]


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def place(context: int, batch: int = 1, **changes):
    return plan(
        request=request(batch=batch, **changes), context=context, cache_bytes=6000 * context * batch
    )


def sweep(*plans, unfit=()) -> SweepPlan:
    return SweepPlan(plans, tuple((each, FULL) for each in unfit), plans[-1])


def conducted(ledger, workers, *plans, told=None) -> Swept:
    return Sweeper(plans, ledger, told or NoteTaker(), run=workers).conduct()


def test_every_worker_does_all_places_and_they_are_sessions_as_those_of_one_place_are(ledger):
    workers = FakeWorkers()
    swept = conducted(ledger, workers, place(512), place(1024), place(1024, 4))
    assert list(workers.tasks)[:4] == NAMES[:4]
    assert set(workers.tasks) == set(NAMES)
    for name in NAMES[:-1]:
        assert isinstance(workers.tasks[name], SweepTask)
        at = {(part.bench.context, part.bench.batch) for part in workers.tasks[name].parts}
        assert at == {(512, 1), (1024, 1), (1024, 4)}
    assert [found.plan.context for found in swept.evidences] == [512, 1024, 1024]
    assert verify(ledger.path).exit_code == 0
    assert len(swept.cites) == len(NAMES)


def test_quality_is_judged_once_for_each_context(ledger):
    workers = FakeWorkers(cosine={INT8.label: 0.97})
    swept = conducted(ledger, workers, place(512), place(512, 4), place(1024))
    parts = workers.tasks["quality"].parts
    assert [(part.bench.context, part.bench.batch) for part in parts] == [(512, 1), (1024, 1)]
    assert all(found.quality is not None for found in swept.evidences)


def test_no_two_cells_share_an_order_and_sessions_go_through_the_places_in_their_own(ledger):
    workers = FakeWorkers()
    conducted(ledger, workers, *(place(context) for context in (256, 512, 1024, 2048)))
    tasks = [workers.tasks[number] for number in range(3)]
    orders = [part.cells[0].schedule.groups for part in tasks[0].parts]
    assert all(orders.count(order) == 1 for order in orders)
    assert len({tuple(part.bench.context for part in task.parts) for task in tasks}) > 1


def test_a_place_that_does_not_fit_is_void_with_its_reason_and_the_others_stand(ledger):
    told = NoteTaker()
    workers = FakeWorkers(FAR_APART, unfit={("pilot", 1024): FULL})
    places = (place(512), place(1024))
    swept = conducted(ledger, workers, *places, told=told)
    results = sweep_results(sweep(*places), swept)
    assert "left out: 1024 tokens × 1: no room for it" in told.notes
    lost = [result for result in results if result.cell.context == 1024]
    assert {r.arm for r in lost} == {arm.label for arm in (SDPA, EAGER, INT8, SINK, ZERO)}
    for result in lost:
        assert (result.verdict.latency, result.verdict.latency_reason) == ("VOID", "does-not-fit")
        assert result.failure == "DoesNotFit: no room for it"
        assert result.latency_ms is UNSET
        assert result.primary
    stands = {r.arm: r.verdict.latency for r in results if r.cell.context == 512}
    assert stands[INT8.label] == "FASTER"
    assert run_exit(results) == 12
    for number in range(3):
        assert [part.bench.context for part in workers.tasks[number].parts] == [512]


@pytest.mark.parametrize("session", [0, 2])
def test_a_place_that_runs_out_of_memory_in_a_session_is_lost_from_there_on(ledger, session):
    workers = FakeWorkers(unfit={(session, 1024): FULL})
    swept = conducted(ledger, workers, place(512), place(1024))
    assert [found.plan.context for found in swept.evidences] == [512]
    assert [lost.context for lost, _ in swept.lost] == [1024]
    assert len(swept.evidences[0].sessions) == 3


def test_memory_that_fails_at_one_place_leaves_its_latencies_and_says_so(ledger):
    workers = FakeWorkers(unfit={("memory", 1024): FULL})
    swept = conducted(ledger, workers, place(512), place(1024))
    assert [found.memory is None for found in swept.evidences] == [False, True]
    assert [error.message for error in swept.failed] == ["no room for it"]


def test_where_no_place_is_left_the_run_fails_with_the_reason(ledger):
    workers = FakeWorkers(unfit={("pilot", context): FULL for context in (512, 1024)})
    with pytest.raises(DoesNotFit, match="no room for it"):
        conducted(ledger, workers, place(512), place(1024))


def test_a_place_without_a_baseline_is_lost_alone(ledger):
    class Blind(FakeWorkers):
        def _pilot(self, task):
            missing = {arm.label: UNSUPPORTED for arm in (SDPA, MATH, EAGER)}
            self.not_here = missing if task.bench.context == 1024 else {}
            return super()._pilot(task)

    swept = conducted(ledger, Blind(), place(512), place(1024))
    ((lost, why),) = swept.lost
    assert (lost.context, why.type) == (1024, "Unsupported")


def test_the_primary_cell_is_judged_alone_and_all_others_together(ledger, monkeypatch):
    families = []

    def noting(verdicts, *, level):
        families.append(len(verdicts))
        return list(verdicts)

    monkeypatch.setattr("attnbench.measure.verdicts.adjusted", noting)
    places = (place(512), place(1024), place(1024, 4))
    results = sweep_results(sweep(*places), conducted(ledger, FakeWorkers(), *places))
    assert families == [3, 6]
    primary = {(r.cell.context, r.cell.batch) for r in results if r.primary}
    assert primary == {(1024, 4)}


def test_a_planned_look_needs_every_place_to_be_settled(ledger):
    looking = replace(request(), protocol=SEQUENTIAL)
    told = NoteTaker()
    places = [replace(place(c), request=looking) for c in (512, 1024)]
    swept = conducted(ledger, FakeWorkers(FAR_APART), *places, told=told)
    assert {len(found.sessions) for found in swept.evidences} == {3}
    assert "planned look after 3 sessions: every candidate is settled" in told.notes


def test_every_place_names_the_arms_of_its_pilot(ledger):
    swept = conducted(ledger, FakeWorkers(), place(512), place(1024))
    alone = arms_of_pilots(swept)
    assert [arm.label for arms in alone.values() for arm in arms] == [MATH.label] * 2


def test_a_part_of_another_kind_is_an_error(ledger):
    class Confused(FakeWorkers):
        def _part(self, part):
            return self._quality(part) if part.bench.context == 512 else super()._part(part)

    with pytest.raises(AttnbenchError, match="QualityResult, not a PilotResult"):
        conducted(ledger, Confused(), place(512), place(1024))


@pytest.fixture
def on(monkeypatch):
    """Plans on a machine of this kind with so much memory."""

    def machine(kind: str, free_bytes: int) -> None:
        import msgspec

        facts = msgspec.structs.replace(
            CPU, kind=kind, name="A GPU", memory_free_bytes=free_bytes, memory_clock_mhz=2619,
            bus_bits=5120,
        )  # fmt: skip
        monkeypatch.setattr(planning, "has_gpu", lambda: kind == "cuda")
        monkeypatch.setattr(planning, "device_facts", lambda asked: facts)

    return machine


def test_places_that_do_not_fit_are_told_before_anything_runs_and_the_largest_other_is_primary(on):
    on("cpu", 8 << 30)
    found = plan_sweep(request(), [(c, b) for b in (1, 3000) for c in (256, 512, 1500)])
    assert [(p.context, p.request.batch) for p in found.plans] == [
        (256, 1), (512, 1), (1500, 1), (256, 3000),
    ]  # fmt: skip
    assert (found.primary.context, found.primary.request.batch) == (256, 3000)
    (unfit, why), _ = found.unfit
    assert (unfit.context, unfit.request.batch) == (512, 3000)
    assert "GiB" in why.message
    assert "8.0 GiB are free" in why.message
    assert found.minutes > 0


def test_a_primary_cell_is_declared_even_where_it_does_not_fit_and_must_be_one_of_them(on):
    on("cpu", 8 << 30)
    places = [(256, 1), (1500, 3000)]
    assert plan_sweep(request(), places, (1500, 3000)).primary.request.batch == 3000
    with pytest.raises(UsageError, match="none of the run's cells") as refusal:
        plan_sweep(request(), places, (256, 3000))
    assert "256x1, 1500x3000" in refusal.value.hint


def test_where_nothing_fits_the_plan_is_refused_with_what_would(on):
    on("cpu", 2 << 30)
    with pytest.raises(DoesNotFit) as refusal:
        plan_sweep(request(), [(512, 3000), (1500, 3000)])
    assert "the largest batch for this context is 297" in refusal.value.hint


def test_places_share_processes_and_the_model_so_that_they_take_less_together(on):
    on("cpu", 8 << 30)
    alone = [plan_sweep(request(), [(c, 1)]) for c in (256, 512)]
    assert not alone[0].is_sweep
    together = plan_sweep(request(), [(256, 1), (512, 1)])
    assert together.is_sweep
    assert together.minutes < sum(each.minutes for each in alone)


def test_the_model_is_looked_at_once(on, monkeypatch):
    on("cpu", 8 << 30)
    seen: list[ModelInfo] = []
    monkeypatch.setattr(
        "attnbench.measure.plan.inspect", lambda spec: seen.append(inspect(spec)) or seen[-1]
    )
    plan_sweep(request(), [(256, 1), (512, 1), (512, 2)])
    assert len(seen) == 1


def test_eight_billion_parameters_with_a_full_context_fit_a_card_of_80_gb_and_twice_does_not(on):
    on("cuda", 79 << 30)
    found = plan_sweep(
        request(model="preset:llama-3.1-8b"), [(131072, batch) for batch in (1, 2, 4)]
    )
    assert [plan.request.batch for plan in found.plans] == [1, 2]
    one = found.plans[0]
    assert one.weight_bytes == pytest.approx(16.06e9, rel=1e-3)
    assert one.cache_bytes == pytest.approx(17.19e9, rel=1e-3)
    assert one.dtype == "bfloat16"
    assert "beyond" not in "".join(one.remarks)
