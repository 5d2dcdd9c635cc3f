"""A method is judged at the budget that was timed, or not at all."""

from __future__ import annotations

from functools import cache

import msgspec
import pytest

from attnbench.measure.judging import run_judging
from attnbench.measure.tasks import QualityTask
from attnbench.protocol.cell import Arm, Role
from attnbench.quality.budget import OTHER_BUDGET, at_timed_budget
from attnbench.quality.gates import Quality, QualityVerdict
from attnbench.quality.levels import QualityCounts
from tests.evil.court import BASELINE, CPU, Court
from tests.measure.simulated import Muted

CHEAT = "tests.evil.two_budgets:FewWhereTheCacheEnds"
HONEST = ("tests.evil.two_budgets:FixedWindow", "sink_window,window=128", "oracle_topk", BASELINE)
SMALL = msgspec.structs.replace(CPU, context=192)


@cache
def timed():
    """What the steps of a session say of themselves, and whether they are right."""
    court = Court(SMALL)
    found = court._session((BASELINE, CHEAT, *HONEST[:-1]))
    return court, found


@cache
def judged(context: int):
    """Samples of the gates after so many tokens."""
    arms = tuple(Arm(label=s, method=s, role=Role.CANDIDATE) for s in (CHEAT, *HONEST))
    bench = msgspec.structs.replace(SMALL, batch=1, arms=arms)
    counts = QualityCounts(context=context, windows=1, steps=4, logit_steps=0)
    return run_judging(QualityTask(bench=bench, counts=counts), Muted()).arms


def verdict(label: str, context: int) -> QualityVerdict:
    share = timed()[1].cells[0].samples.witness[label]["kept_share"]
    passed = QualityVerdict(
        verdict=Quality.PASS, reason="", next_step="", counts=True, context=context
    )
    return at_timed_budget(passed, judged(context)[label], share, SMALL.context)


def test_nothing_in_its_timed_steps_tells_the_cheat():
    court, found = timed()
    assert court._reason([found], CHEAT) == ""


@pytest.mark.parametrize("context", [SMALL.context, 160])
def test_a_method_with_another_budget_where_it_is_judged_is_not_evaluated(context):
    found = verdict(CHEAT, context)
    assert (found.verdict, found.reason) == (Quality.NOT_EVALUATED, OTHER_BUDGET)
    assert "100.0% of the tokens where its outputs were judged" in found.next_step
    assert "16.6% in the steps that were timed" in found.next_step


@pytest.mark.parametrize("context", [SMALL.context, 160])
@pytest.mark.parametrize("label", HONEST)
def test_one_whose_budget_hangs_on_the_length_alone_is(label, context):
    assert verdict(label, context).verdict is Quality.PASS
