"""A saving counts when what is reachable and what was allocated agree."""

import pytest

from attnbench.protocol.memory import (
    NEXT_STEP,
    MemoryOutcome,
    MemoryReason,
    memory_verdict,
    not_measured,
)

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("baseline", "reachable", "allocated", "outcome"),
    [
        (GIB, GIB // 2, GIB // 2, MemoryOutcome.SMALLER),
        (GIB, GIB // 2, GIB // 2 - 20 * MIB, MemoryOutcome.SMALLER),  # within 2 %
        (GIB, -GIB // 2, -GIB // 2, MemoryOutcome.LARGER),
        (GIB, 0, -5 * MIB, MemoryOutcome.EQUIVALENT),
        (4 * MIB, 2 * MIB, MIB, MemoryOutcome.SMALLER),  # within 1 MiB
        (GIB, GIB // 4, GIB // 2, MemoryOutcome.INCONCLUSIVE),  # names what it does not hold
        (GIB, GIB // 2, GIB // 4, MemoryOutcome.VOID),
        (GIB, GIB // 2, 0, MemoryOutcome.VOID),  # kept outside tensors()
        (GIB, 0, -GIB // 4, MemoryOutcome.VOID),
        (4 * MIB, MIB // 2, -MIB // 4, MemoryOutcome.INCONCLUSIVE),  # agree, on nothing
        (0, 0, 0, MemoryOutcome.VOID),
    ],
)
def test_a_saving_counts_when_both_figures_show_it(baseline, reachable, allocated, outcome):
    found = memory_verdict(
        baseline_bytes=baseline, reachable_saving=reachable, allocated_saving=allocated
    )
    assert found.verdict is outcome
    assert found.next_step == NEXT_STEP[found.reason]


def test_the_smaller_of_two_savings_is_reported():
    found = memory_verdict(
        baseline_bytes=GIB, reachable_saving=GIB // 2, allocated_saving=GIB // 2 - 10 * MIB
    )
    assert found.saving == pytest.approx(0.5 - 10 / 1024)


def test_without_figures_there_is_no_verdict():
    assert not_measured().verdict is MemoryOutcome.VOID
    assert not_measured().reason is MemoryReason.NOT_MEASURED


def test_every_reason_says_what_to_do_next():
    assert set(NEXT_STEP) == set(MemoryReason)


@pytest.mark.parametrize(
    ("host_bytes", "hidden"), [(0, False), (25 * MIB, False), (40 * MIB, True)]
)
def test_state_in_host_memory_that_is_no_tensors_is_hidden(host_bytes, hidden):
    found = memory_verdict(
        baseline_bytes=GIB,
        reachable_saving=GIB // 2,
        allocated_saving=GIB // 2,
        host_bytes=host_bytes,
    )
    assert (found.reason is MemoryReason.HIDDEN_STATE) == hidden
