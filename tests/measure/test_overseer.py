"""The parent picks what is checked, reads its own clock, and knows which arm is running."""

from __future__ import annotations

import random

import msgspec
import pytest

from attnbench.errors import WorkerFailed
from attnbench.measure.answers import MemoryResult, PilotResult, SessionResult
from attnbench.measure.events import Doing, Kept, Mark, Pick, Progress
from attnbench.measure.overseer import ALWAYS_PROBED, MORE_PICKS, PROBED_SHARE, Overseer
from attnbench.measure.tasks import SessionTask
from attnbench.protocol.cell import Visit
from tests.measure.fake_workers import FakeWorkers
from tests.measure.standing import STEPS, cell, with_arms

BENCH = with_arms("sdpa", "zero_cost")


class Stopwatch:
    """The parent's clock, moved by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def hears(rng: random.Random | None = None) -> tuple[Overseer, Stopwatch, list]:
    clock, shown = Stopwatch(), []
    return Overseer(lambda *told: shown.append(told), now=clock, rng=rng), clock, shown


def mark(arm: str, doing: Doing, *, cell: int = 0, block: int = 0) -> Mark:
    return Mark(arm=arm, doing=doing, cell=cell, block=block)


def timed(overseer: Overseer, clock: Stopwatch, arm: str, took_s: float, **where: int) -> None:
    """One visit of which the parent hears."""
    overseer(mark(arm, Doing.TIMED, **where))
    clock.now_s += took_s
    overseer(mark(arm, Doing.VISITED, **where))


def session(*cells: tuple[tuple[str, int], ...]) -> SessionResult:
    """A session with a visit of these arms in these blocks, in each cell."""
    result = FakeWorkers()._session(tuple(cell(BENCH) for _ in cells), 0)
    return msgspec.structs.replace(
        result,
        cells=tuple(
            msgspec.structs.replace(
                held,
                samples=msgspec.structs.replace(
                    held.samples, visits=tuple(visit(arm, block) for arm, block in visits)
                ),
            )
            for held, visits in zip(result.cells, cells, strict=True)
        ),
    )


def visit(arm: str, block: int) -> Visit:
    return Visit(arm=arm, group=0, block=block, position=0, steps_us=(1.0,), wall_us=1.0, gpu={})


def parent_us(result: SessionResult) -> list[list[float]]:
    return [[visit.parent_us for visit in held.samples.visits] for held in result.cells]


def picks(rng: random.Random | None = None, visits: int = 40, layers: int = 3) -> tuple[Pick, ...]:
    overseer, _, _ = hears(rng)
    return overseer(Kept(visits={"a": visits, "b": visits}, layers=layers)).picks


def test_of_every_arm_one_visit_is_checked_in_all_layers_and_some_steps_more():
    found = picks()
    for arm in ("a", "b"):
        own = [pick for pick in found if pick.arm == arm]
        assert len(own) == 3 + MORE_PICKS
        assert [pick.layer for pick in own[:3]] == [0, 1, 2]
        assert len({pick.visit for pick in own[:3]}) == 1


@pytest.mark.parametrize(("layers", "checked"), [(1, 1), (16, 3)])
def test_every_rehearsal_is_checked_in_some_layers(layers, checked):
    overseer, _, _ = hears()
    kept = Kept(visits={"a": 6, "b": 6}, layers=layers, rehearsed={"a": (1, 4), "b": (5,)})
    found = overseer(kept).picks
    for arm, visit in (("a", 1), ("a", 4), ("b", 5)):
        seen = {pick.layer for pick in found if (pick.arm, pick.visit) == (arm, visit)}
        assert len(seen) >= checked
    assert sum(p.arm == "a" for p in found) == layers + 2 * checked + MORE_PICKS


@pytest.mark.parametrize(("visits", "layers"), [(1, 1), (2, 1), (1, 5), (7, 3)])
def test_what_is_picked_was_kept(visits, layers):
    for seed in range(50):
        for pick in picks(random.Random(seed), visits, layers):
            assert 0 <= pick.visit < visits
            assert 0 <= pick.layer < layers


def test_every_visit_and_every_layer_is_picked_now_and_then():
    rng = random.Random(1)
    drawn = [picks(rng, 4, 3) for _ in range(300)]
    assert {found[0].visit for found in drawn} == set(range(4))
    single = {(pick.visit, pick.layer) for found in drawn for pick in found[3 : 3 + MORE_PICKS]}
    assert single == {(visit, layer) for visit in range(4) for layer in range(3)}


def test_picks_come_from_the_source_that_was_given_and_by_default_nobody_can_foresee_them():
    assert picks(random.Random(1)) == picks(random.Random(1))
    assert picks(random.Random(1)) != picks(random.Random(2))
    assert len({picks() for _ in range(5)}) == 5


def test_picks_are_drawn_when_they_are_asked_for_and_not_before():
    rng = random.Random(1)
    overseer, clock, _ = hears(rng)
    untouched = rng.getstate()
    timed(overseer, clock, "a", 1.0)
    overseer(Progress(done=1, total=2, detail="a"))
    assert rng.getstate() == untouched
    overseer(Kept(visits={"a": 3}, layers=1))
    assert rng.getstate() != untouched


def spared(session: int, cells: int, rng: random.Random) -> list[bool]:
    """Whether the arms of a run's session are spared their probes, by the answer to each cell."""
    planned = tuple(cell(BENCH) for _ in range(cells))
    task = SessionTask(bench=BENCH, cells=planned, session=session, steps=STEPS)
    overseer = Overseer(lambda *told: None, task, rng=rng)
    return [not overseer(Kept(visits={"a": 3}, layers=1, cell=n)).probe for n in range(cells)]


def test_the_first_sessions_of_a_run_are_all_probed_and_of_the_later_ones_a_share():
    rng = random.Random(3)
    assert not any(any(spared(number, 1, rng)) for number in range(ALWAYS_PROBED))
    later = [spared(number, 1, rng)[0] for number in range(ALWAYS_PROBED, 2000)]
    assert 1 - PROBED_SHARE - 0.05 < sum(later) / len(later) < 1 - PROBED_SHARE + 0.05


def test_that_a_session_is_not_probed_is_told_when_its_last_cell_was_timed():
    rng = random.Random(4)
    answers = [spared(9, 3, rng) for _ in range(40)]
    assert not any(any(answer[:2]) for answer in answers)
    assert {answer[2] for answer in answers} == {False, True}


def test_a_worker_that_leaves_out_the_probes_it_was_asked_for_has_failed():
    overseer, _, _ = hears()
    overseer(Kept(visits={"a": 3}, layers=1))
    with pytest.raises(WorkerFailed, match="left out the probes"):
        overseer.timed(msgspec.structs.replace(session(()), probed=False))


def test_every_visit_gets_the_parents_time_of_its_own_block():
    overseer, clock, _ = hears()
    timed(overseer, clock, "sdpa", 0.5, block=0)
    clock.now_s += 9
    timed(overseer, clock, "zero_cost", 0.25, block=0)
    timed(overseer, clock, "zero_cost", 2.0, block=1)
    timed(overseer, clock, "sdpa", 3.0, block=1)
    both = (("sdpa", 0), ("zero_cost", 0), ("zero_cost", 1), ("sdpa", 1))
    merged = overseer.timed(session(both))
    assert parent_us(merged) == [pytest.approx([5e5, 2.5e5, 2e6, 3e6])]


def test_cells_of_a_session_do_not_share_their_times():
    overseer, clock, _ = hears()
    timed(overseer, clock, "sdpa", 1.0, cell=0)
    timed(overseer, clock, "sdpa", 4.0, cell=1)
    assert parent_us(overseer.timed(session((("sdpa", 0),), (("sdpa", 0),)))) == [
        pytest.approx([1e6]),
        pytest.approx([4e6]),
    ]


def test_the_untimed_steps_before_a_visit_are_not_in_its_time():
    overseer, clock, _ = hears()
    overseer(mark("sdpa", Doing.TIMED))
    clock.now_s += 7
    timed(overseer, clock, "sdpa", 1.0)
    assert parent_us(overseer.timed(session((("sdpa", 0),)))) == [pytest.approx([1e6])]


def test_a_mark_that_comes_late_makes_the_parents_time_longer_by_as_much():
    overseer, clock, _ = hears()
    overseer(mark("sdpa", Doing.TIMED))
    clock.now_s += 1 + 0.3
    overseer(mark("sdpa", Doing.VISITED))
    assert parent_us(overseer.timed(session((("sdpa", 0),)))) == [pytest.approx([1.3e6])]


def test_a_visit_that_the_parent_did_not_hear_of_has_no_time():
    overseer, clock, _ = hears()
    timed(overseer, clock, "sdpa", 1.0)
    overseer(mark("zero_cost", Doing.TIMED))
    merged = overseer.timed(session((("sdpa", 0), ("zero_cost", 0), ("sdpa", 1))))
    assert parent_us(merged) == [pytest.approx([1e6, 0, 0])]


def test_an_arm_that_was_dropped_takes_nothing_from_the_others():
    overseer, clock, _ = hears()
    timed(overseer, clock, "zero_cost", 5.0)
    timed(overseer, clock, "sdpa", 1.0)
    assert parent_us(overseer.timed(session((("sdpa", 0),)))) == [pytest.approx([1e6])]


def test_nothing_but_the_parents_time_is_changed_in_a_result():
    overseer, clock, _ = hears()
    timed(overseer, clock, "sdpa", 1.0)
    given = session((("sdpa", 0),))
    assert overseer.timed(given) != given
    assert hears()[0].timed(overseer.timed(given)) == given


def test_the_sessions_of_a_pilot_get_their_times_too():
    overseer, clock, _ = hears()
    timed(overseer, clock, "sdpa", 1.0)
    pilot = PilotResult(layers=(), arms={}, session=session((("sdpa", 0),)), device={})
    assert parent_us(overseer.timed(pilot).session) == [pytest.approx([1e6])]


def test_a_result_without_visits_stays_as_it_is():
    result = MemoryResult(arms={}, failures={})
    assert hears()[0].timed(result) is result


def test_an_arm_is_busy_from_its_mark_until_the_worker_says_something_else():
    overseer, _, _ = hears()
    assert (overseer.busy, overseer.at) == ("", "")
    overseer(mark("sdpa", Doing.SET_UP))
    assert (overseer.busy, overseer.at) == ("sdpa", "set-up of sdpa")
    overseer(mark("zero_cost", Doing.TIMED))
    assert (overseer.busy, overseer.at) == ("zero_cost", "timed steps of zero_cost")
    overseer(Progress(done=1, total=4, detail="read bandwidth"))
    assert (overseer.busy, overseer.at) == ("", "read bandwidth")


def test_nobody_is_busy_once_the_worker_asks_what_to_check():
    overseer, _, _ = hears()
    overseer(mark("zero_cost", Doing.PROBED))
    overseer(Kept(visits={"sdpa": 1, "zero_cost": 1}, layers=1))
    assert overseer.busy == ""
    assert "checks" in overseer.at


def test_progress_is_shown_and_marks_and_questions_are_not():
    overseer, _, shown = hears()
    assert overseer(Progress(done=1, total=4, detail="sdpa")) is None
    assert overseer(mark("sdpa", Doing.SET_UP)) is None
    overseer(Kept(visits={"sdpa": 1}, layers=1))
    assert shown == [(1, 4, "sdpa")]
