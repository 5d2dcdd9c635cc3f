"""Where the seconds of a worker go."""

from __future__ import annotations

from contextlib import suppress

from attnbench.measure.phases import Phases


class Stopwatch:
    now_s = 10.0

    def __call__(self) -> float:
        return self.now_s


def test_seconds_of_a_phase_add_up_and_the_total_holds_what_is_between_them():
    clock = Stopwatch()
    phases = Phases(clock)
    for seconds in (1.0, 2.0):
        with phases("timed") as took:
            clock.now_s += seconds
        assert took.seconds == seconds
        clock.now_s += 0.5
    with phases("checks"):
        clock.now_s += 4
    assert phases.seconds() == {"timed": 3.0, "checks": 4.0, "total": 8.0}


def test_what_an_arm_raised_has_cost_its_seconds_too():
    clock = Stopwatch()
    phases = Phases(clock)
    with suppress(IndexError), phases("set-up"):
        clock.now_s += 3
        raise IndexError
    assert phases.seconds()["set-up"] == 3
