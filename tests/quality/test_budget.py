"""How much more an arm may keep where it is judged than where it was timed."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.quality.budget import OTHER_BUDGET, at_timed_budget
from attnbench.quality.gates import Quality, QualityVerdict
from tests.quality.test_gates import perfect


def verdict(kept: float, timed: float | None, context: int = 1000, stood: str = "PASS"):
    """Of an arm that kept so much after 1000 tokens."""
    arrays = perfect()
    samples = perfect(kept_share=np.full_like(arrays.kept_share, kept)).pack()
    said = QualityVerdict(
        verdict=Quality(stood), reason="", next_step="", counts=True, context=1000
    )
    return at_timed_budget(said, samples, timed, context)


@pytest.mark.parametrize(("kept", "other"), [(0.134, False), (0.136, True)])
def test_a_quarter_more_and_a_hundredth_of_the_tokens_are_let_pass(kept, other):
    found = verdict(kept, timed=0.1)
    assert (found.reason == OTHER_BUDGET) is other
    assert found.verdict is (Quality.NOT_EVALUATED if other else Quality.PASS)


def test_the_same_window_is_a_larger_share_of_a_shorter_text():
    assert verdict(0.25, timed=0.1, context=2000).verdict is Quality.PASS
    assert verdict(0.27, timed=0.1, context=2000).reason == OTHER_BUDGET


def test_what_is_killed_stays_so_and_what_was_not_timed_is_held_against_nothing():
    assert verdict(0.9, timed=0.1, stood="KILL").verdict is Quality.KILL
    assert verdict(0.9, timed=None).verdict is Quality.PASS
