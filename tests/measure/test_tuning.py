"""Tuning finds the fastest configuration that is right, in the time there is, and says the rest.

Kernels are interpreted, so outputs are real; time is not: a clock says what each step took.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import pytest
import torch

from attnbench.errors import UsageError
from attnbench.measure import stand, tuning
from attnbench.measure.answers import TuneResult
from attnbench.measure.clock import Timing
from attnbench.measure.known import known_launches, place_of
from attnbench.measure.pilot import Trial
from attnbench.measure.plan import plan_decode
from attnbench.measure.tasks import KnownLaunch, TuneTask, TuningCell
from attnbench.measure.tuned import TuneRequest, Tuning, cells_of, entries_of, plan_tuning, summary
from attnbench.measure.tuning import contenders, run_tuning
from attnbench.measure.world import World
from attnbench.methods import flash_decode, registry, split_kv
from attnbench.methods.kernel_table import BUILT_IN, KernelTable, read_table, write_entries
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.presets import CANONICAL
from tests.measure import planned
from tests.measure.simulated import Muted
from tests.measure.standing import arm, standing, with_arms

CELL = TuningCell(context=40, batch=1, kv_heads=1, group=2, head_dim=32)
PLAIN = "tests.measure.broken:Tuned"  # a method with configurations, and without a kernel
GPU = msgspec.structs.replace(
    planned.CPU, kind="cuda", name="A GPU", compute_capability="8.9", driver="1.2"
)


def quiet(*_: object) -> None:
    return None


def task(*cells: TuningCell, method: str = "flash_decode", **changes) -> TuneTask:
    asked = TuneTask(
        method=method, against=(), cells=cells or (CELL,), dtype="float32", device="cpu", seed=3
    )
    return msgspec.structs.replace(asked, **changes)


@dataclass
class Saying:
    """Runs nothing, and says that each step took what `says` makes of its first layer."""

    says: Callable[[object], float]
    now: float = 0.0

    def time(self, step, count):
        us = self.says(step.layers[0])
        self.now += 1.0
        return Timing((us,) * count, us * count)

    def read(self) -> float:
        return self.now


def by_stages(layer: object) -> float:
    """SDPA takes 100 µs, a configuration with four stages 90, any other 104."""
    if not hasattr(layer, "config"):
        return 100.0
    return 90.0 if layer.config.num_stages == 4 else 104.0


def few_and_small(patch: pytest.MonkeyPatch) -> None:
    """Little to interpret."""
    patch.setattr(stand, "memory_of", lambda device: (0, 8 << 30))
    patch.setattr(stand, "FEWEST_LAYERS", 1)
    patch.setattr(tuning, "ROUNDS", 3)
    patch.setattr(flash_decode, "MOST_CONFIGURATIONS", 3)
    patch.setattr(split_kv, "INT8_CANDIDATES", split_kv.INT8_CANDIDATES[:2])


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    few_and_small(monkeypatch)


@pytest.fixture(scope="module")
def tuned() -> TuneResult:
    with pytest.MonkeyPatch.context() as patch:
        few_and_small(patch)
        asked = task(against=("sdpa", "sdpa,backend=cudnn", "tests.measure.broken:SaysExact"))
        return run_tuning(asked, quiet, clock=Saying(by_stages))


def described() -> Tuning:
    return Tuning(task(), registry.parse("flash_decode"), GPU, {})


def test_every_configuration_is_timed_and_the_fastest_leads(tuned):
    (cell,) = tuned.cells
    shape = stand.shape_of(CELL, torch.float32, torch.device("cpu"))
    offered = registry.parse("flash_decode").configurations(shape)
    assert len(cell.launches) == len(offered) == 3
    assert (cell.refused, cell.untried, cell.failure) == ((), 0, None)
    found = summary(described(), tuned.label, cell)
    assert found.launch["num_stages"] == 4
    assert found.method_us == 90.0
    assert found.layers == 1


def test_the_distance_to_the_fastest_other_arm_is_told_in_percent_and_microseconds(tuned):
    found = summary(described(), tuned.label, tuned.cells[0])
    assert (found.fastest, found.fastest_us) == ("sdpa", 100.0)
    assert found.behind_percent == pytest.approx(-10.0)
    assert found.behind_us == pytest.approx(-10.0)
    assert found.behind_percent_range == pytest.approx((-10.0, -10.0))
    assert found.gb_s == pytest.approx(41 * 2 * 32 * 4 / 90.0 / 1e3)
    assert {label: figure.rounds for label, figure in found.arms.items()} == {
        "flash_decode": 3,
        "sdpa": 3,
    }


def test_an_arm_that_is_wrong_or_does_not_run_has_no_time_and_says_why(tuned):
    failures = tuned.cells[0].failures
    assert failures["sdpa,backend=cudnn"].type == "Unsupported"
    wrong = next(failure for label, failure in failures.items() if "sdpa" not in label)
    assert wrong.type == "BrokenArm"
    assert "differs from its definition" in wrong.message
    assert set(tuned.cells[0].rounds) == {"flash_decode", "sdpa"}


def test_what_the_time_does_not_allow_is_counted_as_untried_and_later_cells_say_so():
    clock = Saying(by_stages)
    asked = task(CELL, CELL, CELL, method=PLAIN, within_s=3.0)
    # Each timing takes two seconds: one is more than a cell's share.
    first, *others = run_tuning(asked, quiet, clock=clock, now=clock.read).cells
    assert len(first.launches) == 1
    assert first.untried == 2
    assert first.rounds
    assert first.took_s > 1.0
    assert [cell.failure.type for cell in others] == ["OutOfTime", "OutOfTime"]
    assert "--within" in others[0].failure.hint


def test_a_configuration_that_does_not_run_is_refused_with_its_reason():
    (cell,) = run_tuning(task(method=PLAIN), quiet, clock=Saying(by_stages)).cells
    assert [timed.launch["splits"] for timed in cell.launches] == [1, 40]
    assert [refused.launch["splits"] for refused in cell.refused] == [7]
    assert "shared memory" in cell.refused[0].failure.message


def test_a_cell_that_does_not_fit_is_a_failure_of_its_own(monkeypatch):
    monkeypatch.setattr(stand, "memory_of", lambda device: (0, 200_000))
    large = msgspec.structs.replace(CELL, context=4000)
    asked = task(large, CELL, method=PLAIN)
    found = run_tuning(asked, quiet, clock=Saying(by_stages))
    assert found.cells[0].failure.type == "DoesNotFit"
    assert found.cells[1].launches
    assert "all" in summary(described(), found.label, found.cells[0]).failures


def test_an_approximate_method_is_compared_with_its_own_definition():
    asked = task(method="int8_kv,impl=triton", against=("sdpa",))
    (cell,) = run_tuning(asked, quiet, clock=Saying(by_stages)).cells
    assert cell.launches
    assert not cell.refused
    assert not cell.failures


@pytest.mark.parametrize(
    ("cache_bytes", "free_bytes", "layers"),
    [(0, 1 << 30, 4), (1 << 20, 1 << 30, 31), (1 << 20, 1 << 20, 1), (1 << 30, 1 << 40, 64)],
)
def test_layers_are_as_many_as_leave_the_last_level_cache_and_fit(
    monkeypatch, cache_bytes, free_bytes, layers
):
    monkeypatch.setattr(stand, "memory_of", lambda device: (cache_bytes, free_bytes))
    monkeypatch.setattr(stand, "FEWEST_LAYERS", 4)
    cell = msgspec.structs.replace(CELL, context=476)  # 135 KiB of a layer, spare rows included
    shape = stand.shape_of(cell, torch.float32, torch.device("cpu"))
    assert shape.capacity * shape.row_bytes == 135 << 10
    assert stand.layers_for(cell, shape) == layers


def test_arms_near_the_fastest_take_part_in_rounds_and_the_tuned_one_always():
    first_us = {"a": 100.0, "b": 114.0, "c": 116.0, "own": 300.0}
    assert contenders(first_us, "own") == ["a", "b", "own"]
    assert contenders({"a": 1.0}, "own") == ["a"]


def test_cells_are_all_combinations_the_smallest_first():
    request = TuneRequest("flash_decode", (64, 8), (4, 1), (128, 64))
    cells = [(cell.head_dim, cell.context * cell.batch) for cell in cells_of(request)]
    assert cells == [
        (64, 8),
        (64, 32),
        (64, 64),
        (64, 256),
        (128, 8),
        (128, 32),
        (128, 64),
        (128, 256),
    ]
    with pytest.raises(UsageError, match="below one"):
        cells_of(replace(request, batches=(0,)))
    with pytest.raises(UsageError, match="no dtype"):
        cells_of(replace(request, dtype="int4"))


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr("attnbench.measure.tuned.has_gpu", lambda: True)
    monkeypatch.setattr("attnbench.measure.tuned.device_facts", lambda kind: GPU)


@pytest.mark.usefixtures("a_gpu")
def test_against_exact_is_every_exact_arm_but_those_that_move_more_and_what_is_missing():
    request = TuneRequest("flash_decode", (64,), (1,), (64,), against=("exact", "sdpa_repeat_kv"))
    plan = plan_tuning(request)
    assert {"sdpa", "sdpa,backend=cudnn", "sdpa_varlen", "flex,impl=compiled"} <= set(
        plan.task.against
    )
    assert "sdpa_repeat_kv" in plan.task.against  # named, and so not left out
    assert "flash_decode" not in plan.task.against
    assert "several times the bytes" in plan.left_out["eager_repeat_kv"]
    assert ("flashinfer" in plan.left_out) is ("flashinfer" not in plan.task.against)


@pytest.mark.usefixtures("a_gpu")
def test_a_method_without_configurations_is_refused_before_a_worker_starts():
    with pytest.raises(UsageError, match="no kernel configurations"):
        plan_tuning(TuneRequest("sdpa", (64,), (1,), (64,)))


def test_winners_are_written_beside_what_a_table_holds_and_found_where_they_were_measured(
    tuned, tmp_path
):
    path = tmp_path / "table.json"
    plan = described()
    written = entries_of(plan, tuned)
    write_entries(path, written)
    other = msgspec.structs.replace(tuned.cells[0], cell=msgspec.structs.replace(CELL, context=48))
    write_entries(path, entries_of(plan, TuneResult(label=tuned.label, cells=(other,), device={})))
    table = write_entries(path, written)
    assert [entry.place.context for entry in read_table(path).entries] == [40, 48]
    assert read_table(path) == table
    model = replace(planned.MODEL, heads=2, kv_heads=1, head_dim=32)
    place = place_of(
        GPU, model, context=40, batch=1, dtype="float32", cells=((Scope.ATTENTION, Mode.GRAPH),)
    )
    known = known_launches(table, place, ["flash_decode", "sdpa"])
    assert set(known) == {"flash_decode"}
    assert known["flash_decode"].launch["num_stages"] == 4
    assert f"fastest of {written[0].measured.tried}" in known["flash_decode"].source
    for elsewhere in ({"context": 41}, {"gpu": "Another"}, {"scope": Scope.STEP}):
        assert not known_launches(
            table, msgspec.structs.replace(place, **elsewhere), ["flash_decode"]
        )


def test_attention_alone_is_the_same_place_in_mode_compiled_and_graph():
    def place(*cells):
        return place_of(GPU, planned.MODEL, context=9, batch=1, dtype="float16", cells=cells)

    both = place((Scope.STEP, Mode.COMPILED), (Scope.ATTENTION, Mode.GRAPH))
    assert both == place((Scope.ATTENTION, Mode.GRAPH))
    assert place((Scope.STEP, Mode.COMPILED)).mode is Mode.COMPILED


def test_the_projects_own_table_is_sound_and_every_entry_says_what_it_rests_on():
    table = read_table()
    assert table.entries
    assert len({entry.place for entry in table.entries}) == len(table.entries)
    for entry in table.entries:
        assert entry.measured.step_us > 0
        assert entry.measured.tried > 1
        assert entry.measured.commit
        assert entry.measured.step_us <= entry.measured.next_us


def test_what_is_no_table_is_refused_and_says_how_one_is_made(tmp_path):
    path = tmp_path / "table.json"
    for text in ("{", '[{"place": 3}]', "not json"):
        path.write_text(text)
        with pytest.raises(UsageError, match="is no table") as refusal:
            read_table(path)
        assert "methods tune" in refusal.value.hint
    entry = msgspec.json.decode(BUILT_IN.read_bytes())[0]
    entry["launch"]["tiles"] = 3
    path.write_bytes(msgspec.json.encode([entry]))
    with pytest.raises(UsageError, match="tiles"):
        read_table(path)


def test_a_run_looks_its_configurations_up_when_it_is_planned(tmp_path):
    request = planned.request(protocol=CANONICAL, quality=None)
    bare = plan_decode(request)
    assert bare.known == {}
    entry = read_table().entries[0]
    place = place_of(
        bare.facts,
        bare.info,
        context=bare.context,
        batch=1,
        dtype=bare.dtype,
        cells=bare.cells,
    )
    path = tmp_path / "table.json"
    place = msgspec.structs.replace(place, method="sdpa_packed")
    write_entries(path, [msgspec.structs.replace(entry, place=place)])
    found = plan_decode(replace(request, table=str(path))).known
    assert found["sdpa_packed"].launch == entry.launch
    assert str(path) in found["sdpa_packed"].source
    assert plan_decode(replace(request, table="none")).known == {}
    with pytest.raises(
        UsageError, match=r"missing.json cannot be read .*: No such file"
    ) as refusal:
        plan_decode(replace(request, table=str(tmp_path / "missing.json")))
    assert "check the path after --table" in refusal.value.hint
    assert "Errno" not in refusal.value.message


def test_the_pilot_tries_a_known_configuration_alone_and_the_others_only_where_it_does_not_run():
    launch = {"block_n": 16, "splits": 40, "num_warps": 4, "num_stages": 2, "ring": 0}
    broken = {**launch, "splits": 7}
    with standing(with_arms("Tuned")) as bench:
        world = World(bench.device).settle()

        def examined(launch):
            known = {"Tuned": KnownLaunch(launch=launch, source="a table")}
            return Trial(bench, Mode.EAGER, Muted(), world, known=known).examine(arm("Tuned"))

        found, fell_back = examined(launch), examined(broken)
    assert [timed.launch for timed in found.launches] == [launch]
    assert (found.fastest, found.source) == (launch, "a table")
    assert [timed.launch["splits"] for timed in fell_back.launches] == [1, 40]
    assert fell_back.refused[0].launch == broken
    assert fell_back.source == ""


def test_an_empty_table_knows_nothing():
    assert KernelTable("none", ()).find(read_table().entries[0].place) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_small_cell_is_tuned_on_a_gpu_against_every_exact_arm(monkeypatch):
    monkeypatch.undo()
    cuda = torch.device("cuda")
    exact = [method.resolved(cuda) for method in registry.exact_methods("cuda")]
    left_out = ("flash_decode", "flashinfer")
    against = tuple(method.label for method in exact if method.name not in left_out)
    cell = TuningCell(context=1000, batch=2, kv_heads=2, group=4, head_dim=64)
    asked = task(cell, device="cuda", dtype="bfloat16", against=against)
    (found,) = run_tuning(asked, quiet).cells
    assert found.failure is None
    assert found.launches
    assert not found.refused
    assert set(found.first_us) >= {"flash_decode", "sdpa", "flex,impl=compiled", "sdpa_varlen"}
    assert {failure.type for failure in found.failures.values()} <= {"Unsupported"}
