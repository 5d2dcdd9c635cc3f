"""The exit code of a run is that of its gravest candidate."""

import pytest

from attnbench.errors import Exit
from attnbench.protocol.cell import Role
from attnbench.protocol.exit import gravest, run_exit
from tests.protocol.results import result


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ({}, Exit.DONE),
        ({"latency": "SLOWER"}, Exit.DONE),
        ({"latency": "EQUIVALENT", "quality": "NOT_EVALUATED"}, Exit.DONE),
        ({"quality": "MARGINAL"}, Exit.DONE),
        ({"memory": "LARGER"}, Exit.DONE),
        ({"quality": "KILL"}, Exit.FALSIFIED),
        ({"latency": "INCONCLUSIVE"}, Exit.INCONCLUSIVE),
        ({"memory": "INCONCLUSIVE"}, Exit.INCONCLUSIVE),
        ({"latency": "VOID"}, Exit.VOID),
        ({"quality": "KILL", "latency": "INCONCLUSIVE"}, Exit.FALSIFIED),
        ({"quality": "KILL", "latency": "VOID"}, Exit.VOID),
    ],
)
def test_each_candidate_counts_by_its_gravest_verdict(verdicts, code):
    assert run_exit([result(), result(**verdicts), result()]) is code


@pytest.mark.parametrize("role", [Role.CONTROL, Role.BASELINE, Role.BASELINE_AGAIN])
def test_of_controls_and_the_baseline_pair_no_latency_and_no_memory_counts(role):
    assert run_exit([result("VOID", "PASS", "INCONCLUSIVE", role=role)]) is Exit.DONE
    assert run_exit([result("SLOWER", role=role)], slower_allowed=-1.0) is Exit.DONE


@pytest.mark.parametrize("role", [Role.BASELINE, Role.BASELINE_AGAIN])
def test_a_baseline_that_ruins_the_model_counts(role):
    killed = result("", "KILL", "", role=role)
    assert run_exit([killed, result()]) is Exit.FALSIFIED
    assert run_exit([killed, result("VOID")]) is Exit.VOID


def test_a_control_is_meant_to_be_killed():
    assert run_exit([result("", "KILL", "", role=Role.CONTROL)]) is Exit.DONE


@pytest.mark.parametrize(
    ("speed_up", "allowed", "code"),
    [
        (0.5, None, Exit.DONE),
        (0.5, 0.1, Exit.FALSIFIED),
        (0.95, 0.1, Exit.DONE),
        (0.905, 0.1, Exit.DONE),  # its interval still reaches what is allowed
    ],
)
def test_slower_fails_a_run_only_when_slower_than_allowed(speed_up, allowed, code):
    slower = result(latency="SLOWER", speed_up=speed_up)
    assert run_exit([slower], slower_allowed=allowed) is code


def test_a_run_without_candidates_is_done():
    assert run_exit([]) is Exit.DONE


def test_a_broken_ledger_is_graver_than_anything_else():
    codes = [Exit.DONE, Exit.INCONCLUSIVE, Exit.FALSIFIED, Exit.VOID, Exit.LEDGER_BROKEN]
    assert [gravest(codes[:n]) for n in range(1, 6)] == codes
