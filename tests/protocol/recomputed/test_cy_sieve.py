"""CY-Sieve's claims, against figures that were published or had another way."""

from __future__ import annotations

import math

import pytest

from attnbench.protocol.recomputed import cy_sieve, s20
from tests.protocol.claims import HELD, MISSED, VOID, verdict

FIRST_TERMS = (1, 3, 55, 1155, 29751, 852753, 26097499, 840454275, 28064517175)  # published


def test_the_sequence_is_the_published_one_by_definition_and_by_recurrence():
    assert tuple(map(s20.direct, range(9))) == FIRST_TERMS
    assert s20.by_recurrence(15)[14] == 60654810749855283555
    assert s20.by_recurrence(3) == [1, 3, 55]


@pytest.mark.parametrize("modulus", [2, 251])
def test_terms_modulo_a_number_are_those_of_the_whole_terms(modulus):
    assert list(s20.modulo(40, modulus)) == [s20.direct(n) % modulus for n in range(40)]


def test_the_recurrence_leaves_no_residual_and_one_wrong_digit_shows():
    assert verdict("CY-01", cy_sieve.recurrence_residuals()) == HELD
    (first, *others), *rest = s20.RECURRENCE
    wrong = ((first + 1, *others), *rest)
    seen = cy_sieve.recurrence_residuals(last=20, recurrence=wrong)
    assert seen.low == 21
    assert verdict("CY-01", seen) == MISSED


def test_the_growth_rate_is_the_published_one_both_ways(monkeypatch):
    seen = cy_sieve.log_growth()
    assert seen.low == pytest.approx(3.762230484005691814, abs=1e-12)
    assert seen.high == pytest.approx(3.762230484005691814, abs=1e-12)
    assert verdict("CY-02", seen) == HELD
    first, *others = s20.RECURRENCE
    monkeypatch.setattr(s20, "RECURRENCE", ((*first[:-1], 2 * first[-1]), *others))
    assert verdict("CY-02", cy_sieve.log_growth()) == VOID


def test_a_sequence_of_another_growth_has_another_rate(monkeypatch):
    for way in ("log_growth_by_polynomial", "log_growth_by_saddle"):
        monkeypatch.setattr(s20, way, lambda: 3.7616)
    assert verdict("CY-02", cy_sieve.log_growth()) == HELD  # within half of the last digit
    for way in ("log_growth_by_polynomial", "log_growth_by_saddle"):
        monkeypatch.setattr(s20, way, lambda: 3.7614)
    assert verdict("CY-02", cy_sieve.log_growth()) == MISSED


def test_the_power_is_two_and_that_of_a_plain_binomial_is_not(monkeypatch):
    seen = cy_sieve.growth_exponent()
    assert seen.low == pytest.approx(1.9973, abs=1e-4)  # published for n = 200
    assert verdict("CY-03", seen) == HELD
    monkeypatch.setattr(s20, "direct", lambda n: math.comb(2 * n, n))  # 4^n n^(-1/2)
    monkeypatch.setattr(s20, "log_growth_by_saddle", lambda: math.log(4))
    seen = cy_sieve.growth_exponent()
    assert seen.high == pytest.approx(0.5, abs=1e-3)
    assert verdict("CY-03", seen) == MISSED


def test_the_table_is_8192_times_the_vector_in_these_dtypes_only():
    seen = cy_sieve.bias_table_ratio()
    assert "536870912 and 65536 bytes" in seen.note
    assert verdict("CY-04", seen) == HELD
    assert verdict("CY-04", cy_sieve.bias_table_ratio(table_dtype="float32")) == MISSED


def test_the_sieve_keeps_125_so_226_is_not_the_nearest():
    seen = cy_sieve.nearest_kept_distance()
    assert seen.low == 125
    assert seen.note.endswith("125, 226, 376, 477")
    assert verdict("CY-12", seen) == MISSED
    assert verdict("CY-12", cy_sieve.nearest_kept_distance(length=120)) == MISSED
    assert s20.direct(125) % 251 == 0 == s20.direct(226) % 251
    assert verdict("CY-12", cy_sieve.nearest_kept_distance(modulus=10**6 + 3)) == HELD


def test_the_tail_is_worst_at_25_and_a_tail_joined_too_early_leaves_the_bound(monkeypatch):
    seen = cy_sieve.tail_error()
    assert seen.low == pytest.approx(3.19e-4, rel=1e-3)  # published
    assert seen.note == "greatest at distance 25"
    assert verdict("CY-13", seen) == HELD
    monkeypatch.setattr(s20, "log_growth_by_saddle", lambda: 3.5)
    assert verdict("CY-13", cy_sieve.tail_error(last=200)) == MISSED


def test_terms_that_leave_the_definition_void_the_tail(monkeypatch):
    first, *others = s20.RECURRENCE
    monkeypatch.setattr(s20, "RECURRENCE", ((first[0] - 1, *first[1:]), *others))
    assert verdict("CY-13", cy_sieve.tail_error(last=450)) == VOID


def test_holo_strided_keeps_what_recent_keeps_unless_a_weight_rises_with_distance(monkeypatch):
    assert verdict("CY-14", cy_sieve.differing_kept_sets()) == MISSED
    terms = s20.by_recurrence(301)
    terms[200] = terms[10]
    monkeypatch.setattr(s20, "by_recurrence", lambda _: terms)
    seen = cy_sieve.differing_kept_sets(contexts=(300,), budgets=(64,))
    assert verdict("CY-14", seen) == HELD
