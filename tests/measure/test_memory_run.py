"""`attnbench memory`: what is planned, what a run records, and what it prints."""

from __future__ import annotations

import json

import msgspec
import pytest

from attnbench.errors import AttnbenchError, DoesNotFit, UsageError
from attnbench.ledger import Kind, Ledger, verify
from attnbench.ledger.lookup import is_of_an_arm
from attnbench.measure import plan as planning
from attnbench.measure.answers import Fit, FitResult, FitTrial, PartFailure, SweepResult
from attnbench.measure.memory_plan import MemoryRequest, bytes_of, plan_memory
from attnbench.measure.memory_run import measure_memory
from attnbench.measure.tasks import FitTask, MemoryTask, SweepTask
from attnbench.report.memory_table import memory_plan_json, memory_plan_table, memory_table
from tests.measure.fake_workers import FakeWorkers, NoteTaker, broke
from tests.measure.planned import CPU
from tests.report.runs import printed

INT8, GIB = "int8_kv,impl=torch", 1 << 30


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(planning, "has_gpu", lambda: False)
    monkeypatch.setattr(planning, "device_facts", lambda kind: CPU)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def request(**changes) -> MemoryRequest:
    asked = {"model": "embedded", "methods": ("int8_kv",), **changes}
    return MemoryRequest(**asked)


def fits(task: FitTask) -> FitResult:
    found = Fit(
        context=9000,
        fails_at=9050,
        predicted=10_000,
        bytes_a_token=6144.0,
        fixed_bytes=0.0,
        keeps_exact_cache=True,
        trials=(FitTrial(context=9050, why="no memory"),),
    )
    arms = {arm.label: found for arm in task.bench.arms if arm.label != INT8}
    return FitResult(
        arms=arms,
        failures={INT8: broke("fit")},
        free_before_bytes=8 * GIB,
        free_after_bytes=7 * GIB,
    )


class Answering(FakeWorkers):
    """Fits, and memory as the other fakes have it."""

    def _result(self, task):
        return fits(task) if isinstance(task, FitTask) else super()._result(task)

    def __call__(self, task, on_event, silence_s):
        self.tasks["memory"] = task
        return self._result(task)


def test_four_figures_of_every_arm_are_recorded_and_compared_with_the_exact_one(ledger):
    workers = Answering(kv_bytes={INT8: 30 << 20})
    result = measure_memory(plan_memory(request()), ledger, NoteTaker(), run=workers)
    task = workers.tasks["memory"]
    assert isinstance(task, MemoryTask)
    assert [layer.kv_heads for layer in task.layers] == [2] * 6
    (place,) = result.places
    assert place.verdicts == {INT8: "SMALLER"}
    assert place.figures["sdpa"]["reachable_bytes"] == 100 << 20
    assert "reserved_bytes" not in place.figures["sdpa"]
    assert verify(ledger.path).exit_code == 0
    _, closed, recorded = ledger.records()
    assert recorded.cites == (closed.id,)
    assert msgspec.convert(recorded.body, type(result)) == result
    assert (recorded.kind, is_of_an_arm(recorded)) == (Kind.RESULT, False)
    text = "\n".join(printed(memory_table(result), 160))
    for said in ("1024 tokens, MiB", "100.0", "30.0", "SMALLER", "No weights are loaded"):
        assert said in text


def test_the_largest_contexts_of_several_batches_come_from_one_worker(ledger):
    workers = Answering()
    plan = plan_memory(request(fit=True, batches=(1, 4), limit_bytes=2 * GIB))
    result = measure_memory(plan, ledger, NoteTaker(), run=workers)
    task = workers.tasks["memory"]
    assert isinstance(task, SweepTask)
    assert [part.bench.batch for part in task.parts] == [1, 4]
    assert {part.limit_bytes for part in task.parts} == {2 * GIB}
    assert task.parts[0].weight_bytes == plan.plans[0].weight_bytes > 0
    assert result.places[1].fits["sdpa"].context == 9000
    assert result.places[1].failures == {INT8: "IndexError: row 7 is out of range"}
    text = "\n".join(printed(memory_table(result), 160))
    for said in ("within 2.00 GiB", "9,000", "9,050", "0.900", "free before the trials 8.00 GiB"):
        assert said in text


def test_a_part_that_failed_is_an_error_with_its_reason(ledger):
    class Failing(Answering):
        def __call__(self, task, on_event, silence_s):
            why = PartFailure(why=broke("set-up"))
            return SweepResult(parts=(why, why))

    plan = plan_memory(request(fit=True, batches=(1, 4)))
    with pytest.raises(AttnbenchError, match="row 7"):
        measure_memory(plan, ledger, NoteTaker(), run=Failing())


def test_the_exact_arm_comes_first_and_others_only_where_they_are_asked_for():
    assert [arm.label for arm in plan_memory(request()).arms] == ["sdpa", INT8]
    bare = [arm.label for arm in plan_memory(request(methods=())).arms]
    assert bare[0] == "sdpa"
    assert INT8 in bare
    assert not {"zero_cost", "sdpa,backend=math", "sdpa,backend=flash"} & set(bare)


def test_on_a_cpu_trials_may_use_a_part_of_what_is_free_unless_they_are_told():
    assert plan_memory(request(fit=True)).limit_bytes == int(0.7 * CPU.memory_free_bytes)
    assert plan_memory(request(fit=True, limit_bytes=GIB)).limit_bytes == GIB


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"fit": True, "limit_bytes": 64 * GIB}, DoesNotFit, "more than the"),
        ({"fit": True, "limit_bytes": 0}, UsageError, "room for nothing"),
        ({"fit": True, "limit_bytes": 1 << 20}, DoesNotFit, "the weights of embedded"),
        ({"batches": (100_000,)}, DoesNotFit, "are free on A processor"),
        ({"contexts": (10_000_000,)}, UsageError, "beyond embedded"),
        ({"methods": ("int8_kw",)}, UsageError, "int8_kw"),
    ],
)
def test_what_cannot_be_is_refused_before_a_worker_starts(changes, kind, said):
    with pytest.raises(kind, match=said):
        plan_memory(request(**changes))


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * GIB), ("8 gb", 8 * GIB), ("500M", 500 << 20), ("1e9", 10**9), ("1.5g", 3 << 29)],
)
def test_a_size_is_read_as_people_write_it(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "many", "8 GiB of it", "-3GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="is no size"):
        bytes_of(text)


def test_a_plan_names_arms_caches_and_the_limit():
    fit = plan_memory(request(fit=True, limit_bytes=GIB, batches=(1, 2)))
    text = "\n".join(printed(memory_plan_table(fit), 120))
    assert "limit for weights and caches: 1.00 GiB" in text
    data = json.loads(memory_plan_json(fit))
    assert data["arms"] == ["sdpa", INT8]
    one, two = data["places"]
    assert one["context"] == pytest.approx(2 * two["context"], abs=1)
    cell = plan_memory(request(contexts=(256, 512)))
    assert [p["context"] for p in json.loads(memory_plan_json(cell))["places"]] == [256, 512]
    assert "0.02" in "\n".join(printed(memory_plan_table(cell), 120))
