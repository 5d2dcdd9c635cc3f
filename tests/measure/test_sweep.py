"""Several places in one worker: the model is loaded once, and a place that fails costs itself."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import dataclass, replace

import msgspec
import pytest

from attnbench.errors import DoesNotFit, SessionLost
from attnbench.measure import household, sweep
from attnbench.measure.answers import MemoryResult, PartFailure, SessionResult, SweepResult
from attnbench.measure.events import Doing, Kept, Mark
from attnbench.measure.footprint import living_storage_bytes
from attnbench.measure.overseer import Overseer
from attnbench.measure.sweep import PartTalk, run_sweep, swept
from attnbench.measure.tasks import CellPlan, SessionTask, StepCounts, SweepTask
from attnbench.measure.workbench import Workbench
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.schedule import schedule
from tests.measure.simulated import Muted
from tests.measure.standing import STEPS, Words, arm, cell, with_arms
from tests.models.tiny import loaded

EMPTY = MemoryResult(arms={}, failures={})
BENCH = with_arms("sdpa", "zero_cost")
FEW = StepCounts(warmup_steps=8, untimed_steps=0, timed_steps=1, min_visit_ms=0.0)
NUMBERED = {"a": 3}


def part(context: int, batch: int = 2, cells: int = 1) -> SessionTask:
    bench = msgspec.structs.replace(BENCH, context=context, batch=batch)
    plans = tuple(msgspec.structs.replace(cell(bench), baseline="sdpa") for _ in range(cells))
    return SessionTask(bench=bench, session=0, cells=plans, steps=STEPS)


def task(*parts: SessionTask) -> SweepTask:
    return SweepTask(parts=parts)


def test_cells_are_numbered_over_all_places_and_what_is_shown_names_the_place():
    asked = []

    class Answering(Muted):
        def ask(self, kept):
            asked.append(kept.cell)
            return super().ask(kept)

    talk = Answering()

    def perform(part, said: PartTalk):
        said.progress(1, 2, "sdpa")
        said.mark(Mark(arm="sdpa", doing=Doing.TIMED, cell=1))
        said.ask(Kept(visits=NUMBERED, layers=1, cell=1))
        return EMPTY

    swept(task(part(24, cells=2), part(48, batch=4, cells=2)), talk, perform)
    assert [mark.cell for mark in talk.marks] == asked == [1, 3]
    assert [detail for _, _, detail in talk.told] == ["24 × 2: sdpa", "48 × 4: sdpa"]


def test_a_place_that_does_not_fit_costs_itself_alone():
    def perform(part, said):
        if part.bench.context == 48:
            raise DoesNotFit("no room for 48 tokens", hint="take fewer")
        return EMPTY

    found = swept(task(part(24), part(48), part(96)), Muted(), perform).parts
    assert (found[0], found[2]) == (EMPTY, EMPTY)
    assert (found[1].why.type, found[1].why.message) == ("DoesNotFit", "no room for 48 tokens")
    again = msgspec.json.decode(msgspec.json.encode(SweepResult(parts=found)), type=SweepResult)
    assert again.parts == found


def test_a_process_that_is_lost_is_lost_for_every_place():
    def perform(part, said):
        raise SessionLost("it changed the model's weights")

    with pytest.raises(SessionLost):
        swept(task(part(24), part(48)), Muted(), perform)


class Spares(Muted):
    """Nothing is probed: other tests see to that."""

    def ask(self, kept):
        return msgspec.structs.replace(super().ask(kept), probe=False)


@dataclass
class Walked:
    """Two places in one process: how often the model was loaded, and what was held after each."""

    here: SessionResult
    there: SessionResult
    loads: list[str]
    held: list[tuple[int, list[Workbench | None]]]


@pytest.fixture(scope="module")
def walked():
    """At the second place int8_kv finds no memory, and the baseline cannot be set up alone."""
    loads, benches, held = [], [], []
    set_up = Workbench.set_up

    def load(bench):
        loads.append(bench.model)
        return replace(loaded("llama"), tokenizer=Words())

    class Noted(Workbench):
        def __init__(self, *args):
            super().__init__(*args)
            benches.append(weakref.ref(self))

        def set_up(self, arm, scope, mode, **more):
            if self.bench.context == 60 and arm.label == "int8_kv":
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
            if self.bench.context == 60 and scope is Scope.ATTENTION:
                raise IndexError("block 7 is out of range")
            return set_up(self, arm, scope, mode, **more)

    def noting(device):
        gc.collect()
        held.append((living_storage_bytes(), [bench() for bench in benches]))

    def brief(context, batch):
        bench = msgspec.structs.replace(
            BENCH, context=context, batch=batch, arms=(*BENCH.arms, arm("int8_kv"))
        )
        labels = [each.label for each in bench.arms]
        order = schedule(labels, sessions=1, blocks=2, groups=1, seed=1).sessions[0]
        plan = CellPlan(scope=Scope.STEP, mode=Mode.EAGER, schedule=order, baseline="sdpa")
        return SessionTask(bench=bench, session=0, cells=(plan,), steps=FEW)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(household, "loaded_model", load)
        patch.setattr("attnbench.measure.workbench.Workbench", Noted)
        patch.setattr("attnbench.measure.bandwidth.CPU_BUFFER_BYTES", 1 << 20)
        patch.setattr(sweep, "give_back", noting)
        here, there = run_sweep(task(brief(24, 2), brief(60, 3)), Spares()).parts
    return Walked(here, there, loads, held)


def test_one_process_loads_the_model_once_and_keeps_nothing_of_a_place_it_has_left(walked):
    assert walked.loads == ["tiny"]
    assert walked.here.cache_sha256 != walked.there.cache_sha256
    assert walked.here.model_identity == walked.there.model_identity
    assert [alive for _, alive in walked.held] == [[None], [None, None]]
    assert abs(walked.held[1][0] - walked.held[0][0]) < 64 << 10


def test_the_baselines_attention_is_timed_alone_after_everything_that_counts(walked):
    (cell,) = walked.here.cells
    assert cell.failures == {}
    assert len(cell.attention_us) == cell.timed_steps["sdpa"]
    assert min(cell.attention_us) > 0
    assert "breakdown_missing" not in cell.samples.environment


def test_a_baseline_that_cannot_be_set_up_alone_keeps_its_place_and_says_why(walked):
    (cell,) = walked.there.cells
    assert cell.attention_us == ()
    assert len([visit for visit in cell.samples.visits if visit.arm == "sdpa"]) == 2
    assert "block 7" in cell.samples.environment["breakdown_missing"]


def test_an_arm_that_runs_out_of_memory_at_one_place_is_measured_at_the_others(walked):
    here, there = walked.here.cells[0], walked.there.cells[0]
    assert {visit.arm for visit in here.samples.visits} == {"sdpa", "zero_cost", "int8_kv"}
    assert {visit.arm for visit in there.samples.visits} == {"sdpa", "zero_cost"}
    assert there.failures["int8_kv"].type == "DoesNotFit"


def test_each_place_is_probed_or_spared_by_a_draw_of_its_own():
    late = tuple(msgspec.structs.replace(part(c, cells=2), session=9) for c in (24, 48))
    answers, rng = set(), random.Random(2)
    for _ in range(200):
        overseer = Overseer(lambda *told: None, task(*late), rng=rng)
        said = [overseer(Kept(visits=NUMBERED, layers=1, cell=n)).probe for n in range(4)]
        assert (said[0], said[2]) == (True, True)
        answers.add((said[1], said[3]))
    assert answers == {(True, True), (True, False), (False, True), (False, False)}


def test_the_parents_clock_knows_the_cells_of_every_place_and_skips_a_place_that_failed():
    from tests.measure.test_overseer import hears, parent_us, session, timed

    overseer, clock, _ = hears()
    overseer._cells = [1, 1, 1]
    timed(overseer, clock, "sdpa", 1.0, cell=0)
    timed(overseer, clock, "sdpa", 3.0, cell=2)
    lost = PartFailure(why=swept(task(part(1)), Muted(), _refuses).parts[0].why)
    result = SweepResult(parts=(session((("sdpa", 0),)), lost, session((("sdpa", 0),))))
    first, failed, last = overseer.timed(result).parts
    assert failed is lost
    assert parent_us(first) == [pytest.approx([1e6])]
    assert parent_us(last) == [pytest.approx([3e6])]


def _refuses(part, said):
    raise DoesNotFit("no room")
