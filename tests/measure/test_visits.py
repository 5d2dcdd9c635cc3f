from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest

from attnbench.errors import SessionLost, Unsupported
from attnbench.measure.arms import BrokenArm
from attnbench.measure.events import Doing
from attnbench.measure.phases import Phases
from attnbench.measure.tasks import StepCounts
from attnbench.measure.visits import LEAST_PATIENCE_S, Walk, Walker, visit_length
from attnbench.protocol.schedule import BlockSchedule, GroupSchedule, SessionSchedule, schedule
from attnbench.protocol.verdict import Reason
from tests.measure.simulated import (
    Log,
    Muted,
    SimulatedArm,
    SimulatedClock,
    SimulatedGuard,
    SimulatedInputs,
    SimulatedProbe,
)

STEPS = StepCounts(warmup_steps=16, untimed_steps=2, timed_steps=3, min_visit_ms=0.0)
TWO_GROUPS = SessionSchedule(
    session=0,
    seed=1,
    groups=(
        GroupSchedule(("a", "b"), (BlockSchedule(("b", "a")), BlockSchedule(("a", "b")))),
        GroupSchedule(("b", "a"), (BlockSchedule(("a", "b")),)),
    ),
)


class Stage:
    """A walker over simulated arms, and the log of what it did."""

    def __init__(self, steps: StepCounts = STEPS, **step_us: float) -> None:
        self.log = Log()
        self.clock = SimulatedClock(self.log)
        self.step_us = step_us or {"a": 1000.0, "b": 2000.0}
        self.faults: dict[str, dict[int, Exception]] = {}
        self.refuses: dict[str, Exception] = {}
        self.lost: Exception | None = None
        self.talk = Muted()
        self.guard = SimulatedGuard()
        self.drawn = 0
        self.walker = Walker(
            arms={label: self.setup(label) for label in self.step_us},
            clock=self.clock,
            probe=SimulatedProbe(self.log),
            steps=steps,
            reclaim=self.reclaim,
            inputs=SimulatedInputs(self.log),
            guard=self.guard,
            talk=self.talk,
            draw=lambda below: self.drawn % below,
            phases=Phases(),
            title="a cell",
        )

    def reclaim(self) -> None:
        self.log.add("reclaim")
        if self.lost is not None:
            raise self.lost

    def setup(self, label: str):
        def build() -> SimulatedArm:
            self.log.add(f"set up {label}")
            if label in self.refuses:
                raise self.refuses[label]
            faults = self.faults.get(label, {})
            return SimulatedArm(label, self.log, self.step_us[label], faults)

        return build

    def walk(self, plan: SessionSchedule = TWO_GROUPS) -> Walk:
        return self.walker.walk(plan)


def test_everything_runs_in_exactly_the_order_of_the_schedule():
    stage = Stage()
    stage.walk()
    vary = "vary 0"
    visit_a = [vary, "probe", "time a x2", "time a x3", "probe", "inspect a"]
    visit_b = [vary, "probe", "time b x2", "time b x3", "probe", "inspect b"]
    fresh = ["freshen 0"]
    warm_a = [vary, "time a x16", "inspect a"]
    warm_b = [vary, "time b x16", "inspect b"]
    first = [vary, "set up a", vary, "set up b", *warm_a, *warm_b]
    later_b = [vary, "time b x2", "inspect b"]
    later = [vary, "set up b", vary, "set up a", *later_b, vary, "time a x2", "inspect a"]
    assert stage.log.entries == [
        *first, *fresh, *visit_b, *visit_a, *fresh, *visit_a, *visit_b,
        "inspect a", "inspect b", "reclaim",
        *later, *fresh, *visit_a, *visit_b, "inspect b", "inspect a", "reclaim",
    ]  # fmt: skip


def test_how_long_a_visit_is_and_what_comes_before_it_is_drawn_when_it_begins():
    stage = Stage(msgspec.structs.replace(STEPS, timed_steps=8))
    stage.drawn = 1
    walk = stage.walk()
    assert {len(visit.steps_us) for visit in walk.visits} == {9}
    assert {visit.untimed_steps for visit in walk.visits} == {3}
    assert walk.timed_steps == {"a": 8, "b": 8}


def test_the_parent_is_told_before_and_after_the_timed_steps_of_every_visit():
    stage = Stage()
    walk = stage.walk()
    timed = [(m.arm, m.block) for m in stage.talk.marks if m.doing is Doing.VISITED]
    assert timed == [(visit.arm, visit.block) for visit in walk.visits]
    assert all(
        mark.patience_s == LEAST_PATIENCE_S
        for mark in stage.talk.marks
        if mark.doing is Doing.VISITED
    )


def test_an_arm_that_changes_the_process_is_dropped_with_what_it_changed():
    stage = Stage()
    stage.guard.faults = {5: BrokenArm("threads from 1 to 2", reason=Reason.GLOBAL_STATE)}
    walk = stage.walk()
    assert set(walk.failures) == {"b"}  # its first visit is the fifth thing that is looked at
    assert walk.failures["b"].reason == Reason.GLOBAL_STATE
    assert {visit.arm for visit in walk.visits} == {"a"}
    assert set(walk.kept) == {"a"}


def test_what_an_arm_changed_before_it_raised_is_told_in_place_of_what_it_raised():
    stage = Stage()
    stage.refuses = {"a": IndexError("row 7")}
    stage.guard.faults = {1: BrokenArm("it replaced time.time", reason=Reason.PATCHED)}
    walk = stage.walk()
    assert walk.failures["a"].reason == Reason.PATCHED


REHEARSED = msgspec.structs.replace(STEPS, timed_steps=8, rehearsals=2)


def test_a_rehearsal_is_like_a_visit_ends_earlier_and_is_kept_but_not_timed():
    stage = Stage(REHEARSED)
    walk = stage.walk()
    # With every draw 0 all rehearse in the first block of their group, before its visits, one step.
    rehearsal_b = ["vary 0", "probe", "time b x2", "time b x1", "probe", "inspect b"]
    rehearsal_a = ["vary 0", "probe", "time a x2", "time a x1", "probe", "inspect a"]
    visit_b = ["vary 0", "probe", "time b x2", "time b x8", "probe", "inspect b"]
    first = stage.log.entries.index("probe") - 1
    assert stage.log.entries[first : first + 18] == [*rehearsal_b, *rehearsal_a, *visit_b]
    assert {label: len(kept) for label, kept in walk.kept.items()} == {"a": 5, "b": 5}
    assert walk.rehearsed == {"a": [0, 3], "b": [0, 3]}
    assert len(walk.visits) == 6
    assert {len(visit.steps_us) for visit in walk.visits} == {8}


def test_a_rehearsal_ends_at_any_step_of_the_longest_visit_and_comes_at_any_moment():
    rng = random.Random(5)
    ends, moments = set(), set()
    for _ in range(150):
        stage = Stage(REHEARSED)
        stage.walker = replace(stage.walker, draw=rng.randrange)
        stage.walk()
        timed = [entry for entry in stage.log.entries if entry.startswith("time a x")]
        counts = [int(entry.removeprefix("time a x")) for entry in timed]
        visits = [after for before, after in pairwise(counts) if before in (2, 3) and after != 16]
        ends |= {count for count in visits if count not in (2, 3)}
        moments.add(tuple(count >= 8 for count in visits))
    assert ends >= {1, 4, 5, 6, 7, 8, 9, 10}
    assert len(moments) > 2


def test_an_arm_whose_visits_are_long_beside_the_others_rehearses_less_often():
    rng = random.Random(7)
    plan = schedule(("a", "b", "slow"), sessions=1, blocks=4, groups=2, seed=3).sessions[0]
    found = {"a": 0, "b": 0, "slow": 0}
    for _ in range(60):
        stage = Stage(REHEARSED, a=1000.0, b=1000.0, slow=10_000.0)
        stage.walker = replace(stage.walker, draw=rng.randrange)
        for label, which in stage.walk(plan).rehearsed.items():
            found[label] += len(which)
    assert found["a"] == found["b"] == 120
    assert 3 <= found["slow"] <= 30  # one of ten, of 120


def test_a_rehearsal_is_not_told_as_a_block_and_its_failure_is_its_arms_alone():
    stage = Stage(REHEARSED)
    stage.faults = {"a": {2: BrokenArm("wrong")}}
    walk = stage.walk()
    assert {mark.block for mark in stage.talk.marks if mark.doing is Doing.VISITED} >= {-1, 0}
    assert set(walk.failures) == {"a"}
    assert "a" not in walk.rehearsed
    assert {visit.arm for visit in walk.visits} == {"b"}


def test_what_the_last_timed_step_of_every_visit_left_is_kept():
    walk = Stage().walk()
    assert walk.kept == {"a": ["a"] * 3, "b": ["b"] * 3}


def test_kernels_are_asked_of_every_arm_and_why_they_are_not_told(monkeypatch):
    names = {"a": ("kernel", "kernel"), "b": ()}
    monkeypatch.setattr(SimulatedArm, "kernels", lambda arm: names[arm.label])
    monkeypatch.setattr(SimulatedArm, "unnamed", lambda arm: "no driver" * (arm.label == "b"))
    walk = Stage().walk()
    assert walk.kernels == names
    assert walk.unnamed == {"a": "", "b": "no driver"}


def test_visits_carry_their_place_and_blocks_are_numbered_through_the_session():
    walk = Stage().walk()
    places = [(visit.arm, visit.group, visit.block, visit.position) for visit in walk.visits]
    assert places == [
        ("b", 0, 0, 0), ("a", 0, 0, 1),
        ("a", 0, 1, 0), ("b", 0, 1, 1),
        ("a", 1, 2, 0), ("b", 1, 2, 1),
    ]  # fmt: skip


def test_the_gpu_state_stands_in_a_visit_as_it_was_before_and_after():
    first, second, *_ = Stage().walk().visits
    assert first.gpu == {"before_temperature_c": 1, "temperature_c": 2}
    assert second.gpu == {"before_temperature_c": 3, "temperature_c": 4}


def test_every_visit_of_an_arm_has_the_same_number_of_steps_and_lasts_long_enough():
    steps = StepCounts(warmup_steps=16, untimed_steps=2, timed_steps=3, min_visit_ms=20.0)
    walk = Stage(steps, fast=300.0, slow=9000.0).walk(
        schedule(("fast", "slow"), sessions=1, blocks=4, groups=2, seed=3).sessions[0]
    )
    assert walk.timed_steps == {"fast": 67, "slow": 3}
    assert {len(visit.steps_us) for visit in walk.visits if visit.arm == "fast"} == {67}
    assert {len(visit.steps_us) for visit in walk.visits if visit.arm == "slow"} == {3}
    assert all(visit.wall_us >= 20_000 for visit in walk.visits)


def test_warm_up_steps_are_kept_and_taken_once_a_session():
    walk = Stage().walk()
    assert walk.warmup_us == {"a": (1000.0,) * 16, "b": (2000.0,) * 16}


def test_a_warm_up_that_is_still_changing_is_extended_once():
    stage = Stage()
    slowing = iter(range(1000, 100_000, 100))
    stage.walker.arms["a"] = lambda: Slowing("a", stage.log, slowing)
    walk = stage.walk()
    assert len(walk.warmup_us["a"]) == 32
    assert len(walk.warmup_us["b"]) == 16


class Slowing(SimulatedArm):
    def __init__(self, label, log, times) -> None:
        super().__init__(label, log)
        self.times = times

    def step(self) -> float:
        return float(next(self.times))


def test_the_length_of_visits_ignores_the_slow_start_of_the_warm_up():
    steps = StepCounts(warmup_steps=4, untimed_steps=0, timed_steps=1, min_visit_ms=1.0)
    assert visit_length((50_000.0, 40_000.0, 100.0, 100.0), steps) == 10


def test_an_arm_that_cannot_be_set_up_is_named_and_the_others_go_on():
    stage = Stage()
    stage.refuses["a"] = Unsupported("no head dimension 48", hint="use 64")
    walk = stage.walk()
    failure = walk.failures["a"]
    assert (failure.type, failure.message, failure.hint) == (
        "Unsupported", "no head dimension 48", "use 64",
    )  # fmt: skip
    assert failure.during == "set-up"
    assert [visit.arm for visit in walk.visits] == ["b", "b", "b"]
    assert stage.log.entries.count("set up a") == 1  # not tried again in the second group


def test_an_arm_that_fails_in_a_block_loses_its_samples_and_the_others_keep_theirs():
    stage = Stage()
    stage.faults["a"] = {3: ValueError("output is not finite")}  # warm-up, visit 1, visit 2
    walk = stage.walk()
    assert walk.failures["a"].type == "ValueError"
    assert walk.failures["a"].during == "block 1"
    assert [visit.arm for visit in walk.visits] == ["b", "b", "b"]
    assert set(walk.warmup_us) == set(walk.witness) == set(walk.timed_steps) == {"b"}


def test_memory_of_a_failed_arm_is_reclaimed_before_the_next_arm_runs():
    stage = Stage()
    stage.refuses["a"] = MemoryError("no room")
    walk = stage.walk()
    assert walk.failures["a"].type == "DoesNotFit"
    assert stage.log.entries[:5] == ["vary 0", "set up a", "reclaim", "vary 0", "set up b"]


def test_an_arm_that_breaks_the_device_ends_the_session_under_its_name():
    stage = Stage()
    stage.refuses["b"] = RuntimeError("illegal memory access")
    stage.lost = RuntimeError("illegal memory access")
    with pytest.raises(SessionLost, match="b made the device unusable"):
        stage.walk()


def test_what_an_arm_that_raised_left_for_good_ends_the_session():
    stage = Stage()
    stage.refuses["a"] = IndexError("block 7 is out of range")
    stage.guard.faults = {1: SessionLost("it left 1 thread(s) running", reason="left-running")}
    with pytest.raises(SessionLost, match="left 1 thread"):
        stage.walk()


def test_interruption_is_no_failure_of_an_arm():
    stage = Stage()
    stage.refuses["a"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stage.walk()


def test_progress_counts_up_to_the_whole_session():
    stage = Stage()
    stage.walk()
    assert list(dict.fromkeys(done for done, _, _ in stage.talk.told)) == list(range(1, 11))
    assert {total for _, total, _ in stage.talk.told} == {10}


def test_progress_reaches_the_end_when_an_arm_fails():
    stage = Stage()
    stage.refuses["a"] = Unsupported("no")
    stage.walk()
    assert stage.talk.told[-1][:2] == (10, 10)


def test_what_no_look_between_visits_saw_ends_the_session_and_is_no_arms_fault():
    first = Stage()
    first.walk()
    stage = Stage()
    last = first.guard.looks
    stage.guard.faults = {last: SessionLost("a kernel of cosh", reason=Reason.GLOBAL_STATE)}
    with pytest.raises(SessionLost, match="cosh"):
        stage.walk()
    assert stage.talk.said[-1] == "progress"


def test_the_whole_process_is_looked_at_at_the_end_of_each_group_and_quickly_before():
    stage = Stage()
    stage.walk()
    visits = [mark for mark in stage.talk.marks if mark.doing is Doing.TIMED and mark.block >= 0]
    assert stage.guard.thorough == len(TWO_GROUPS.groups)
    assert stage.guard.looks - stage.guard.thorough >= len(visits) / 2


@pytest.mark.parametrize(
    ("period", "least"), [(1, 30), (2, 30), (20, 40), (30, 60), (64, 128), (256, 512)]
)
def test_a_visit_times_whole_periods_and_two_at_the_least(period, least):
    steps = msgspec.structs.replace(STEPS, timed_steps=30, min_visit_ms=0.0)
    assert visit_length([10.0] * 8, steps, period) == least


def test_what_is_drawn_on_top_of_a_visit_is_whole_periods_too(monkeypatch):
    monkeypatch.setattr(SimulatedArm, "period", 8)
    for drawn in range(4):
        stage = Stage(msgspec.structs.replace(STEPS, timed_steps=30))
        stage.drawn = drawn
        counts = {len(visit.steps_us) for visit in stage.walk().visits}
        assert all(count >= 32 and count % 8 == 0 for count in counts)
