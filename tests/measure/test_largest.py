"""The edge is found wherever the guess lies, in few trials."""

from __future__ import annotations

import pytest

from attnbench.measure.largest import Largest, largest


def search(edge: int, guess: int, *, least: int = 64, most: int = 1 << 20):
    tried = []

    def holds(number: int) -> bool:
        tried.append(number)
        return number < edge

    return largest(holds, guess, least=least, most=most, resolution=0.01), tried


@pytest.mark.parametrize("edge", [65, 66, 1000, 47_975, 1 << 19])
@pytest.mark.parametrize("guess", [0, 64, 1000, 48_000, 1 << 22])
def test_the_edge_is_known_to_the_resolution_from_any_guess(edge, guess):
    found, tried = search(edge, guess)
    assert found.held < edge <= found.failed
    assert found.failed - found.held <= max(1, 0.01 * found.held)
    assert len(tried) <= 40
    assert all(64 <= number <= 1 << 20 for number in tried)


def test_a_guess_near_the_edge_takes_a_few_trials():
    assert len(search(48_000, 47_900)[1]) <= 3
    assert len(search(48_000, 48_100)[1]) <= 3


def test_where_nothing_or_everything_holds_the_search_ends_there():
    assert search(1, 500)[0] == Largest(held=0, failed=64)
    assert search(1 << 30, 500)[0] == Largest(held=1 << 20, failed=0)
