"""Work that recurs in a long run of steps must recur in the steps that are timed."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from attnbench.protocol.growth import UNTIMED_SHARE, Growth, looks_untimed, stretch_of
from attnbench.protocol.integrity import Conduct, misconduct
from attnbench.protocol.verdict import Reason

HONEST = Conduct("float32", False, [], [], [], 0, 0)


def steps(count: int, every: int = 0, extra: float = 0.0) -> list[float]:
    """Steps of 100 µs; in every so many one that takes `extra` more."""
    return [100.0 + (extra if every and n % every == 0 else 0.0) for n in range(1, count + 1)]


def growth(grown: list[float], timed: list[float], stood: list[float] | None = None) -> Growth:
    stood = steps(1000) if stood is None else stood
    return Growth(grown=stretch_of(grown), stood=stretch_of(stood), timed=stretch_of(timed))


def test_a_run_of_steps_tells_what_is_slow_how_much_it_takes_and_how_rarely_it_comes():
    found = stretch_of(steps(1000, every=64, extra=900.0))
    assert (found.slow, found.excess_us, found.rarest) == (15, 15 * 900.0, 64)
    assert found.share == pytest.approx(15 * 900 / (1000 * 100))
    rare = stretch_of(steps(4160, every=4096, extra=1e5))
    assert (rare.slow, rare.rarest) == (1, 4096)


def test_even_steps_and_steps_that_grow_as_the_cache_does_have_nothing_that_recurs():
    for even in (steps(300), [100.0 + n for n in range(3000)], [100.0 + n % 2 for n in range(99)]):
        found = stretch_of(even)
        assert (found.slow, found.share, found.rarest) == (0, 0.0, 0)
    assert stretch_of([]).share == 0.0


@pytest.mark.parametrize("every", [64, 256])
def test_what_recurs_and_is_in_no_visit_is_void(every):
    seen = growth(steps(1024, every, 100.0 * every), steps(36))
    found = misconduct(replace(HONEST, growth=[seen]))
    assert found.reason is Reason.UNTIMED_WORK
    assert f"{1024 // every} of 1,024 steps of a growing cache" in found.detail
    assert f"up to {every} apart: 100.0% on top of the others' time; in the 36" in found.detail


def test_what_comes_later_than_the_cache_grows_is_void_too():
    late = growth(steps(1024), steps(36), stood=steps(3136, 3072, 1e5))
    found = misconduct(replace(HONEST, growth=[late]))
    assert found.reason is Reason.UNTIMED_WORK
    assert "1 of 3,136 steps in a row" in found.detail


def test_what_recurs_in_a_visit_as_it_does_in_a_long_run_is_timed_and_no_offence():
    often = growth(steps(1024, 16, 800.0), steps(31, 16, 800.0))
    declared = growth(steps(1024, 64, 6400.0), steps(128, 64, 6400.0))
    by_steps = growth(steps(1024), steps(128, 64, 6400.0))
    for seen in (often, declared, by_steps):
        assert misconduct(replace(HONEST, growth=[seen])) is None


def test_the_limit_is_a_share_of_time():
    little, more = (
        growth(steps(1000, 100, extra), steps(36))
        for extra in (10_000 * UNTIMED_SHARE * 0.99, 10_000 * UNTIMED_SHARE * 1.01)
    )
    assert not looks_untimed(little)
    assert looks_untimed(more)


def test_a_visit_may_hold_half_of_what_recurs_according_to_where_it_begins():
    """A hundredth of the time is spared beside it."""
    run = growth(steps(1000, 100, 1000.0), steps(20, 20, 100.0))
    half, less = (
        msgspec.structs.replace(run, timed=stretch_of(steps(count, count, 1000.0)))
        for count in (200, 230)
    )
    assert run.worse.share == pytest.approx(0.1)
    assert half.timed.share == pytest.approx(0.05)
    assert not looks_untimed(half)
    assert looks_untimed(less)


def test_a_session_from_before_there_was_such_a_run_has_none():
    from attnbench.measure.answers import SessionResult

    field = next(f for f in msgspec.structs.fields(SessionResult) if f.name == "growth")
    assert not field.required
