"""How long a run will take is guessed well enough to decide whether to wait for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnbench.measure import plan as planning
from attnbench.measure.appraising import QualityRequest, plan_quality
from attnbench.measure.estimate import in_words, minutes
from attnbench.measure.plan import plan_decode
from attnbench.protocol.presets import CANONICAL, QUICK, RIGOROUS, SEQUENTIAL
from tests.measure.planned import CPU, MATH, SDPA, plan, request


@pytest.mark.parametrize(("protocol", "took_s"), [(QUICK, 41.0), (CANONICAL, 124.0)])
def test_a_bare_run_on_a_cpu_takes_what_it_took_within_a_factor_of_two(
    monkeypatch, protocol, took_s
):
    monkeypatch.setattr(planning, "has_gpu", lambda: False)
    monkeypatch.setattr(planning, "device_facts", lambda kind: CPU)
    about_s = 60 * minutes(plan_decode(request(protocol=protocol)))
    assert took_s / 2 < about_s < took_s * 2


@pytest.mark.parametrize(("context", "took_s"), [(1024, 21.0), (4000, 40.0)])
def test_all_gates_on_a_cpu_take_what_they_took_within_a_factor_of_two(context, took_s):
    asked = QualityRequest(model="embedded", methods=("int8_kv",), context=context, device="cpu")
    assert took_s / 2 < 60 * plan_quality(asked).minutes < took_s * 2


def test_more_sessions_take_more_minutes():
    quick, canonical, rigorous = (
        minutes(plan(request=request(protocol=protocol)))
        for protocol in (QUICK, CANONICAL, RIGOROUS)
    )
    assert 0 < quick < canonical < rigorous
    assert minutes(plan(request=request(protocol=SEQUENTIAL))) == rigorous  # at the most


def test_an_arm_of_the_pilot_alone_costs_little_and_quality_nothing_where_it_is_not_judged():
    one, more = plan(arms=(SDPA,)), plan(arms=(SDPA, MATH))
    asked = plan(arms=(SDPA, replace(MATH, pilot_only=False)))
    assert minutes(one) < minutes(more) < minutes(asked)
    unjudged = plan(arms=(SDPA,), request=request(quality=None))
    assert minutes(unjudged) < minutes(one)
    assert minutes(plan(arms=(SDPA,), weights="random")) == minutes(unjudged)


@pytest.mark.parametrize(
    ("about", "said"),
    [(0.0, "about 1 s"), (0.6, "about 36 s"), (1.0, "about 1 min"), (2.4, "about 2 min")],
)
def test_below_one_minute_it_is_said_in_seconds(about, said):
    assert in_words(about) == said
