"""The conformance suite passes an honest method and finds what is wrong with the others."""

from __future__ import annotations

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods.conformance import (
    COVERING,
    FULL,
    GROUPS,
    HEAD_DIMS,
    TOKENS,
    Check,
    Outcome,
    conform,
    relative_error,
)
from tests.methods.mutants import Mutant

CPU = torch.device("cpu")
PARITY_AND_MORE = {"parity", "full budget is exact attention"}
FAULTS = {
    "LeavesOutTheNewest": PARITY_AND_MORE,
    "ReadsOneRowTooMany": PARITY_AND_MORE | {"rows after the newest are not read"},
    "AttendsBeforeItAppends": PARITY_AND_MORE,
    "UsesTheDefaultScale": PARITY_AND_MORE,
    "IgnoresTheGroups": PARITY_AND_MORE,
    "DropsOneHead": PARITY_AND_MORE,
    "ComputesInHalf": PARITY_AND_MORE,
    "SkipsEarlyTokens": PARITY_AND_MORE | {"attended tokens as declared", "order of cached tokens"},
    "UnderstatesItsBytes": {"bytes read as declared"},
    "OverstatesItsShare": {"attended tokens as declared"},
    "KeepsAHiddenCopy": {"state as declared"},
    "MaintainsTooMuch": {"upkeep changes no output"},
    "ForgetsToReset": {"reset restores"},
    "ChangesItsQuery": {"inputs and cached rows untouched"},
    "CountsItsCalls": {"same input, same output"},
    "OverflowsOnLargeScores": {"large scores stay finite"},
}


def failures(checks: list[Check]) -> set[str]:
    """Names of failed checks; parity on whatever shape counts as one."""
    failed = (check.name for check in checks if check.outcome is Outcome.FAILED)
    return {"parity" if name.startswith("parity") else name for name in failed}


def test_an_honest_method_passes_every_check_that_runs_on_a_cpu():
    checks = conform(Mutant(), CPU)
    assert failures(checks) == set()
    skipped = {check.name for check in checks if check.outcome is Outcome.SKIPPED}
    assert skipped == {
        "launch configurations",
        "upkeep changes no output",
        "CUDA graph",
        "growth in a CUDA graph",
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_the_checks_that_are_meant_to_find_it(fault):
    checks = conform(Mutant(layer_name=fault), CPU, dtypes=(torch.float32,))
    assert failures(checks) >= FAULTS[fault]


def test_a_fault_in_bookkeeping_alone_does_not_fail_parity():
    for fault in ("UnderstatesItsBytes", "OverstatesItsShare", "KeepsAHiddenCopy"):
        checks = conform(Mutant(layer_name=fault), CPU, dtypes=(torch.float32,))
        assert failures(checks) == FAULTS[fault]


def test_the_quick_shapes_cover_every_length_head_dimension_and_group():
    assert {case.tokens for case in COVERING} == set(TOKENS)
    assert {case.head_dim for case in COVERING} == set(HEAD_DIMS)
    assert {case.group for case in COVERING} == set(GROUPS)
    assert len(FULL) == len(TOKENS) * len(HEAD_DIMS) * len(GROUPS)


def test_a_method_that_refuses_is_skipped_with_its_reason_and_never_passes():
    class Refuses(Mutant):
        def check(self, shape):
            raise Unsupported("it needs a left-handed GPU")

    checks = conform(Refuses(), CPU)
    assert {check.outcome for check in checks} == {Outcome.SKIPPED}
    assert not any(check.passed for check in checks)
    assert "it needs a left-handed GPU" in {check.detail for check in checks}


def test_a_method_that_crashes_fails_with_the_error_in_the_detail():
    class Crashes(Mutant):
        def layer(self, shape):
            raise KeyError("no such head")

    checks = conform(Crashes(), CPU, dtypes=(torch.float32,))
    assert "parity" in failures(checks)
    assert all("KeyError" in check.detail for check in checks if check.outcome is Outcome.FAILED)


def test_progress_counts_every_check():
    told = []
    checks = conform(Mutant(), CPU, progress=lambda done, total, name: told.append((done, total)))
    assert told == [(done, len(checks)) for done in range(len(checks))]


def test_the_error_is_the_worst_head_and_nan_is_infinitely_wrong():
    expected = torch.ones(1, 4, 1, 8)
    wrong = expected.clone()
    wrong[0, 2] *= 1.5
    assert relative_error(wrong, expected) == pytest.approx(0.5)
    wrong[0, 0, 0, 0] = float("nan")
    assert relative_error(wrong, expected) == float("inf")
    with pytest.raises(ValueError, match="expected"):
        relative_error(expected[:, :1], expected)


def test_a_figure_that_is_nan_fails_its_check():
    assert Check.measured("", float("nan"), 1.0).outcome is Outcome.FAILED
