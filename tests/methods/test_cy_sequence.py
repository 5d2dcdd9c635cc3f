"""CY-Sieve's mathematics against published figures, and against the definition another way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnbench.methods.cy_sequence import (
    S15,
    S20,
    LogSeries,
    bias,
    effective_context,
    geometric_slopes,
    tau_ladder,
)
from attnbench.protocol.recomputed import s20

# Published first terms.
TERMS = {
    S20: (1, 3, 55, 1155, 29751, 852753, 26097499, 840454275, 28064517175, 964417304253,
          33903837716805, 1214258225057265, 44166395275424475, 1627604857066000725,
          60654810749855283555),
    S15: (1, 3, 31, 399, 5871, 93753, 1577479, 27556623, 495001327, 9085988613),
}  # fmt: skip


@pytest.mark.parametrize("sequence", TERMS, ids=lambda sequence: sequence.name)
def test_terms_are_the_published_ones_by_definition_and_by_recurrence(sequence):
    published = TERMS[sequence]
    assert tuple(s20.direct(n, sequence.power) for n in range(len(published))) == published
    assert tuple(sequence.terms(len(published))) == published


@pytest.mark.parametrize("sequence", TERMS, ids=lambda sequence: sequence.name)
def test_the_recurrence_leaves_no_residual_for_120_terms(sequence):
    assert sequence.terms(120) == [s20.direct(n, sequence.power) for n in range(120)]


@pytest.mark.parametrize("sequence", TERMS, ids=lambda sequence: sequence.name)
def test_growth_power_and_constant_are_those_of_the_terms_themselves(sequence):
    growth = s20.log_growth_by_polynomial(sequence.power)
    assert sequence.log_growth == pytest.approx(growth, abs=1e-10)
    log = dict(enumerate(sequence.logarithms(800)))
    betas = [(n * growth - (log[2 * n] - log[n])) / math.log(2) for n in (200, 400)]
    assert 2 * betas[1] - betas[0] == pytest.approx(sequence.exponent, abs=1e-4)
    rest = {n: log[n] - n * growth + sequence.exponent * math.log(n) for n in (400, 800)}
    assert 2 * rest[800] - rest[400] == pytest.approx(sequence.log_constant, abs=1e-5)


def test_the_figures_of_s20_are_the_published_ones():
    assert S20.log_growth == pytest.approx(3.762230484005691814, abs=1e-12)
    assert math.exp(S20.log_constant) == pytest.approx(0.1672003175, abs=1e-9)
    assert S20.joining_constant() == pytest.approx(-1.845456381928, abs=1e-11)
    assert S20.terms(18)[17] == 3311529972822006548243925
    assert (S20.int64_window(), S15.int64_window()) == (13, 16)


def test_the_fixed_point_table_holds_the_distances_that_fit_in_64_bits():
    table = S20.fixed_point_table()
    assert len(table) == 14
    assert (table[0], table[1], table[13]) == (2**62, 2**62 // 3, 2**62 // 1627604857066000725)


@pytest.mark.parametrize(
    ("distance", "value"), [(0, 0.0), (1, -0.0549306), (2, -0.2003666), (3, -0.3525928)]
)
def test_the_bias_is_the_published_one(distance, value):
    assert bias(distance, 20) == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(
    ("distance", "error"), [(14, 8.9e-5), (25, 3.19e-4), (100, 1.36e-4), (200, 7.2e-5)]
)
def test_the_tail_errs_as_published(distance, error):
    exact = math.log(s20.direct(distance))
    assert abs(LogSeries().at(distance) - exact) / exact == pytest.approx(error, rel=0.02)


def test_the_true_constant_errs_less_far_out_and_more_at_the_join():
    true, joined = LogSeries(constant="true"), LogSeries()
    error = {
        (d, series.constant): abs(series.at(d) - math.log(s20.direct(d)))
        for d in (14, 400)
        for series in (true, joined)
    }
    assert error[400, "true"] < 0.05 * error[400, "continuity"]
    assert error[14, "true"] > error[14, "continuity"]


def test_the_ladder_falls_far_out_as_alibi_does():
    ladder = tau_ladder(8)
    published = (7.524, 15.049, 30.098, 60.196, 120.391, 240.783, 481.566, 963.131)
    assert ladder == pytest.approx(published, abs=6e-4)
    for tau, slope in zip(ladder, geometric_slopes(8), strict=True):
        step = bias(100_000, tau) - bias(100_001, tau)
        assert step == pytest.approx(slope, rel=1e-5)


def test_the_effective_context_is_the_published_one():
    flat = {1: 2, 10: 14, 20: 26, 40: 51, 128: 159, 512: 630}
    assert {tau: effective_context(tau) for tau in flat} == flat
    ladder = [effective_context(tau) for tau in tau_ladder(8)]
    assert ladder == [10, 20, 39, 76, 150, 298, 593, 1183]


def test_at_a_tau_of_one_the_weight_is_below_float16_from_distance_six_on():
    least = float(np.finfo(np.float16).smallest_subnormal)
    assert math.exp(bias(5, 1)) > least > math.exp(bias(6, 1))
    assert np.float16(math.exp(bias(7, 1))) == 0


@pytest.mark.parametrize("sequence", TERMS, ids=lambda sequence: sequence.name)
@pytest.mark.parametrize("modulus", [251, 97])
def test_the_recurrence_modulo_a_prime_agrees_with_pascals_rows(sequence, modulus):
    expected = s20.modulo(260, modulus, sequence.power)
    np.testing.assert_array_equal(sequence.modulo(260, modulus), expected)


def test_where_the_leading_polynomial_vanishes_the_term_is_taken_from_the_definition():
    assert [n - s20.ORDER for n in S20.reseeded(256)] == [176, 247, 248]
    assert len(S20.reseeded(4 + 2 * 251)) == 6


def test_the_sieve_keeps_the_distances_that_were_recomputed():
    assert list(np.flatnonzero(S20.kept_by_sieve(512))) == [125, 226, 376, 477]
    assert not S20.kept_by_sieve(3).any()


@pytest.mark.parametrize("sequence", TERMS, ids=lambda sequence: sequence.name)
@pytest.mark.parametrize("modulus", [251, 7])
def test_the_sieve_by_digits_agrees_with_pascals_rows_beyond_the_prime(sequence, modulus):
    expected = s20.modulo(700, modulus, sequence.power) == 0
    np.testing.assert_array_equal(sequence.kept_by_sieve(700, modulus), expected)
