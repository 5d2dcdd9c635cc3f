"""An arm's steps are run on and on, so that what they do seldom shows; by a clock of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec
import pytest

from attnbench.measure import growth
from attnbench.measure.clock import Timing
from attnbench.measure.growth import growth_of
from attnbench.protocol.growth import looks_untimed
from tests.measure.broken import Broken, GoodLayer
from tests.measure.standing import CPU, arm, standing, with_arms

TOKENS = 200
BENCH = msgspec.structs.replace(with_arms("sdpa", bench=CPU), context=TOKENS)
STEP_US, UPKEEP_US = 100.0, 3200.0


class Work:
    """What layers did since the clock was last read, in µs of no machine."""

    us: ClassVar[float] = 0.0
    lengths: ClassVar[list[int]] = []


class WorkClock:
    def time(self, step: Callable[[], object], count: int) -> Timing:
        steps_us = []
        for _ in range(count):
            Work.us = 0.0
            step()
            steps_us.append(Work.us)
        return Timing(tuple(steps_us), sum(steps_us))


class CountingLayer(GoodLayer):
    steps = 0

    def due(self) -> bool:
        return False

    def decode(self, q, k, v):
        self.steps += 1
        Work.us += STEP_US + (UPKEEP_US if self.due() else 0.0)
        Work.lengths.append(self.cache.length.tokens)
        return super().decode(q, k, v)


class Plain(Broken):
    class spoilt(CountingLayer):  # noqa: N801
        pass


class InEvery64(Broken):
    class spoilt(CountingLayer):  # noqa: N801
        def due(self) -> bool:
            return self.steps % 64 == 0


class InEvery16(Broken):
    class spoilt(CountingLayer):  # noqa: N801
        def due(self) -> bool:
            return self.steps % 16 == 0


class AtFullPages(Broken):
    class spoilt(CountingLayer):  # noqa: N801
        def due(self) -> bool:
            return self.visible % 32 == 0

    @property
    def period(self) -> int:
        return 1


class PagesOnPaper(AtFullPages):
    @property
    def period(self) -> int:
        return 32


class PagesInTime(PagesOnPaper):
    class spoilt(AtFullPages.spoilt):  # noqa: N801
        def maintain(self) -> None:
            Work.us += UPKEEP_US


@pytest.fixture(scope="module")
def bench():
    with standing(BENCH) as stands:
        yield stands


@pytest.fixture(autouse=True)
def clocked(monkeypatch):
    monkeypatch.setattr(growth, "device_clock", lambda device: WorkClock())
    monkeypatch.setattr(growth, "STEPS", 400)
    monkeypatch.setattr(growth, "MOST_ROUNDS", growth.ROUNDS)  # this clock has no pauses
    Work.lengths.clear()


@pytest.fixture
def found_of(bench):
    def grown(name: str, visit_steps: int = 40, *, captured: bool = False):
        spec = f"tests.measure.test_growth:{name}"
        return growth_of(bench, arm(spec, "x"), visit_steps, captured=captured)

    return grown


def test_a_layer_decodes_half_its_context_and_goes_on_where_it_is_timed(found_of):
    found = found_of("Plain")
    assert (found.grown.steps, found.stood.steps, found.timed.steps) == (100, 300, 40)
    assert (found.grown.slow, found.stood.slow, found.timed.slow) == (0, 0, 0)
    long_runs = [n for n in range(len(Work.lengths)) if Work.lengths[n : n + 1] == [TOKENS // 2]]
    assert len(long_runs) == 3  # the first look, and two rounds
    begin = long_runs[1]
    run = Work.lengths[begin : begin + 401]
    assert run == [*range(100, 200), *[200] * 301]


@pytest.mark.parametrize(
    ("name", "visit_steps", "untimed"),
    [
        ("Plain", 40, False),
        ("InEvery64", 40, True),
        ("InEvery64", 200, False),  # each visit holds it
        ("InEvery16", 40, False),
        ("AtFullPages", 40, True),
        ("PagesOnPaper", 64, True),
        ("PagesInTime", 64, False),
    ],
)
def test_what_recurs_is_untimed_where_a_visit_does_not_hold_it(
    found_of, name, visit_steps, untimed
):
    assert looks_untimed(found_of(name, visit_steps)) is untimed


def test_what_python_counts_is_in_no_replay_of_a_captured_step(found_of):
    assert looks_untimed(found_of("InEvery16", captured=True))
    assert not looks_untimed(found_of("PagesInTime", 64, captured=True))


def test_more_rounds_are_taken_where_something_recurs_and_pauses_of_a_machine_drop_out(
    found_of, monkeypatch
):
    pauses = iter(range(10_000))

    class Disturbed(WorkClock):
        def time(self, step, count):
            seen = super().time(step, count)
            at = next(pauses)
            steps_us = [us + 9e4 * (n % 7 == at % 7) for n, us in enumerate(seen.steps_us)]
            return Timing(tuple(steps_us), sum(steps_us))

    monkeypatch.setattr(growth, "device_clock", lambda device: Disturbed())
    monkeypatch.setattr(growth, "MOST_ROUNDS", 4)
    assert not looks_untimed(found_of("Plain"))
    assert looks_untimed(found_of("InEvery64"))


def test_a_method_that_takes_seconds_for_every_length_or_does_not_run_is_not_looked_at(
    found_of, bench, monkeypatch
):
    monkeypatch.setattr(growth, "LONGEST_STEP_S", STEP_US / 2e6)
    assert found_of("Plain") is None
    assert growth_of(bench, arm("sdpa_varlen", "x"), 40, captured=False) is None
