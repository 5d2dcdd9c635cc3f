"""What a median hides is said under the table."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from attnbench.protocol.beside import beside
from attnbench.protocol.cell import SessionSamples, Visit
from attnbench.protocol.result import Beside
from attnbench.report.beside_notes import beside_notes
from tests.measure.fake_workers import FakeWorkers
from tests.measure.planned import INT8
from tests.report.runs import results

EVEN = [1000.0] * 30
KEEPS_HOUSE = [1000.0] * 14 + [30_000.0] + [1000.0] * 15
PLAIN = Beside(
    slowest_ms=1.1,
    slow_steps=0,
    timed_steps=1200,
    recurring_share=0.0,
    set_up_ms=5.0,
    steps_a_set_up=105,
)


def session(number: int, steps_us: Mapping[str, list[float]]) -> SessionSamples:
    """Two groups of three visits an arm, each of these steps and five untimed ones."""
    visits = tuple(
        Visit(
            arm=arm,
            group=block // 3,
            block=block,
            position=0,
            steps_us=tuple(steps),
            wall_us=sum(steps),
            gpu={},
            untimed_steps=5,
        )
        for block in range(6)
        for arm, steps in steps_us.items()
    )
    return SessionSamples(
        session=number,
        seed=0,
        warmup_us={},
        visits=visits,
        bandwidth_gb_s=1.0,
        witness={},
        environment={},
    )


def of(arm: list[float], base: list[float], calm: int = 0) -> Beside:
    """Of three sessions, the last `calm` of which see nothing of it."""
    sessions = [session(n, {"B": arm if n < 3 - calm else EVEN, "A": base}) for n in range(3)]
    found = beside(sessions, [{"B": (8000.0, 2000.0)}, {"B": (4000.0,)}, {}], "B", "A")
    assert found is not None
    return found


def test_work_that_recurs_shows_in_a_share_and_in_the_slowest_step_and_not_in_the_median():
    found = of(KEEPS_HOUSE, EVEN)
    assert (found.slowest_ms, found.slow_steps, found.timed_steps) == (30.0, 18, 540)
    assert found.recurring_share == pytest.approx(30 / 59)
    assert (found.set_up_ms, found.steps_a_set_up) == (4.0, 105)


@pytest.mark.parametrize(("base", "calm"), [(KEEPS_HOUSE, 0), (EVEN, 1), (EVEN, 3)])
def test_what_slows_the_baseline_too_or_one_session_alone_does_not_recur(base, calm):
    assert of(KEEPS_HOUSE, base, calm).recurring_share == 0


def test_an_arm_without_steps_has_nothing_beside_them():
    assert beside([session(0, {"A": EVEN})], [{}], "B", "A") is None


@pytest.fixture(scope="module")
def rated():
    return results(FakeWorkers({INT8.label: 800.0}))


def noted(rated, **changed) -> list[str]:
    """The notes where A took 5 ms to set up, and one candidate is as said."""
    others = (
        replace(r, beside=replace(PLAIN, **changed) if r.arm == INT8.label else PLAIN)
        for r in rated
    )
    return list(beside_notes(list(others), absolute=True))


def test_a_plain_arm_is_not_remarked_on(rated):
    assert noted(rated) == []
    assert noted(rated, set_up_ms=20.0) == []  # twenty steps
    assert list(beside_notes(rated, absolute=True)) == []


def test_slow_steps_that_recur_are(rated):
    (said,) = noted(rated, slow_steps=18, slowest_ms=30.0, recurring_share=0.5)
    assert said.startswith(
        f"{INT8.label}: 18 of 1,200 timed steps take 5 times the median and more"
    )
    assert "the slowest 30 ms, in every session, and 50% of its time beyond A's" in said


def test_so_is_a_set_up_that_takes_many_steps_to_earn_back(rated):
    (said,) = noted(rated, set_up_ms=1205.0)
    assert "takes 1,205 ms, 241.0 times A's: as long as 1,5" in said
    assert "earned back after 6," in said or "earned back after 5," in said
    assert said.endswith("less often than every 105 steps may be in no timed step")


def test_an_arm_that_saves_nothing_never_earns_it_back():
    slow = results(FakeWorkers({INT8.label: 1250.0}))
    (said,) = noted(slow, set_up_ms=1205.0)
    assert "earned back" not in said
