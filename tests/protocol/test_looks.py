"""Planned looks: when, at which level, and when there is nothing left to wait for."""

import msgspec
import pytest

from attnbench.errors import UsageError
from attnbench.protocol.cell import Role
from attnbench.protocol.looks import decided, looks_of, protocol_at
from attnbench.protocol.presets import CANONICAL, RIGOROUS, SEQUENTIAL, Protocol
from attnbench.protocol.verdict import Reason
from tests.protocol.results import result

replace = msgspec.structs.replace


@pytest.mark.parametrize("looks", [(3, 5), (3, 3, 8), (5, 3, 8), (2, 8), (0, 8), (3, 5, 9), (8, 3)])
def test_looks_that_cannot_be_are_refused(looks):
    with pytest.raises(UsageError, match="cannot look") as caught:
        replace(RIGOROUS, looks=looks)
    assert "ascend" in caught.value.hint


@pytest.mark.parametrize("looks", [(), (8,), (3, 8), tuple(range(3, 9))])
def test_looks_that_can_be_are_kept_and_survive_json(looks):
    planned = replace(RIGOROUS, looks=looks)
    again = msgspec.json.decode(msgspec.json.encode(planned), type=Protocol)
    assert again == planned


def test_a_protocol_without_looks_is_judged_at_its_end_as_it_stands():
    assert looks_of(CANONICAL) == (3,)
    assert protocol_at(CANONICAL, 3) == CANONICAL


def test_the_levels_of_all_looks_together_make_the_level_of_the_protocol():
    at = [protocol_at(SEQUENTIAL, sessions) for sessions in looks_of(SEQUENTIAL)]
    assert [protocol.sessions for protocol in at] == [3, 5, 8]
    errors = [1 - protocol.level for protocol in at]
    assert sum(errors) == pytest.approx(1 - SEQUENTIAL.level)
    assert errors == sorted(errors)
    assert errors[-1] > 0.6 * sum(errors)


def test_a_look_changes_the_level_and_the_count_and_nothing_else():
    look = protocol_at(SEQUENTIAL, 5)
    assert look.looks == ()
    assert replace(look, sessions=8, level=0.95, looks=(3, 5, 8)) == SEQUENTIAL


def test_the_protocol_of_a_look_is_judged_by_itself_as_it_stands():
    look = protocol_at(SEQUENTIAL, 5)
    assert protocol_at(look, 5) == look


@pytest.mark.parametrize("sessions", [0, 2, 4, 7, 9])
def test_nobody_looks_where_no_look_is_planned(sessions):
    with pytest.raises(UsageError, match="no look") as caught:
        protocol_at(SEQUENTIAL, sessions)
    assert "3, 5, 8" in caught.value.hint


def test_even_the_first_of_very_many_looks_has_a_level_that_can_be_tested():
    many = replace(RIGOROUS, sessions=300, looks=tuple(range(3, 301)))
    assert 0.95 < protocol_at(many, 3).level < 1


@pytest.mark.parametrize("verdict", ["FASTER", "SLOWER", "EQUIVALENT", "VOID"])
def test_a_run_is_decided_when_every_candidate_has_its_verdict(verdict):
    assert decided([result(verdict), result("FASTER")])


def test_a_run_with_an_open_candidate_is_not_decided():
    assert not decided([result("FASTER"), result("INCONCLUSIVE")])


def test_a_control_too_wide_so_far_is_no_decision_and_what_else_is_void_is():
    assert not decided([result("VOID", reason=Reason.AA_CONTROL.value)])
    assert decided([result("VOID", reason=Reason.THROTTLED.value)])


@pytest.mark.parametrize("role", [Role.CONTROL, Role.BASELINE, Role.BASELINE_AGAIN])
def test_nobody_waits_for_controls_or_the_baseline_pair(role):
    assert decided([result("INCONCLUSIVE", role=role), result("FASTER")])
    assert decided([])
