"""A claim's verdict starts at INCONCLUSIVE and earns everything else."""

import msgspec
import pytest

from attnbench.errors import Exit, UsageError
from attnbench.protocol.claim import (
    NEXT_STEP,
    Claim,
    ClaimReason,
    Direction,
    Observation,
    Outcome,
    Reach,
    claim_verdict,
)
from attnbench.protocol.exit import OF_CLAIM, claims_exit
from tests.protocol.results import CELL, interval, result

replace = msgspec.structs.replace
CLAIM = Claim(
    statement="at least 1.2 times as fast as the strongest exact arm",
    bound=1.2,
    direction=Direction.AT_LEAST,
    reach=Reach.THIS_GPU,
    gpu=CELL.device,
    model=CELL.model,
)


def seen(*speed_ups, **changes):
    intervals = tuple(interval(speed_up) for speed_up in speed_ups or (1.3,))
    bare = replace(Observation.of_speed(result()), intervals=intervals)
    return replace(bare, **changes)


def outcome(claim, observation):
    found = claim_verdict(claim, observation)
    return found.outcome, found.reason


HELD = (Outcome.SUPPORTED, ClaimReason.BOUND_HELD)
MISSED = (Outcome.FALSIFIED, ClaimReason.BOUND_MISSED)
OPEN = (Outcome.INCONCLUSIVE, ClaimReason.BOUND_NOT_RESOLVED)


@pytest.mark.parametrize(
    ("direction", "speed_up", "expected"),
    [
        (Direction.AT_LEAST, 1.3, HELD),
        (Direction.AT_LEAST, 1.205, OPEN),
        (Direction.AT_LEAST, 1.195, OPEN),
        (Direction.AT_LEAST, 1.1, MISSED),
        (Direction.AT_MOST, 1.3, MISSED),
        (Direction.AT_MOST, 1.205, OPEN),
        (Direction.AT_MOST, 1.1, HELD),
        (Direction.ABOUT, 1.2, HELD),
        (Direction.ABOUT, 1.23, HELD),
        (Direction.ABOUT, 1.26, OPEN),
        (Direction.ABOUT, 1.14, OPEN),
        (Direction.ABOUT, 1.3, MISSED),
        (Direction.ABOUT, 1.1, MISSED),
    ],
)
def test_the_whole_interval_must_lie_on_one_side_of_the_bound(direction, speed_up, expected):
    tolerance = 0.05 if direction is Direction.ABOUT else 0.0
    claim = replace(CLAIM, direction=direction, tolerance=tolerance)
    assert outcome(claim, seen(speed_up)) == expected


@pytest.mark.parametrize("centres", [(1.3, 1.2), (1.2, 1.3), (1.1, 1.3), (1.1, 1.2)])
def test_one_centre_alone_neither_supports_nor_falsifies(centres):
    assert outcome(CLAIM, seen(*centres)) == OPEN


def test_both_centres_of_a_result_are_looked_at():
    found = Observation.of_speed(replace(result(speed_up=1.3), robust_ratio=interval(1.2)))
    assert outcome(CLAIM, found) == OPEN
    assert (found.gpu, found.model) == (CELL.device, CELL.model)


def test_a_bound_below_zero_has_a_tolerance_as_well():
    claim = replace(CLAIM, bound=-2.0, direction=Direction.ABOUT, tolerance=0.1)
    assert claim.limits() == pytest.approx((-2.2, -1.8))
    assert outcome(claim, seen(-2.0)) == HELD


def test_a_claim_starts_inconclusive():
    unmeasured = Observation(intervals=(), gpu=CELL.device, model=CELL.model)
    assert outcome(CLAIM, unmeasured) == (Outcome.INCONCLUSIVE, ClaimReason.NOT_MEASURED)


@pytest.mark.parametrize("speed_up", [1.3, 1.1])
def test_a_void_latency_voids_the_claim_whatever_its_interval_and_says_why(speed_up):
    found = claim_verdict(CLAIM, seen(speed_up, latency="VOID", next_step="cool the GPU"))
    assert (found.outcome, found.reason) == (Outcome.VOID, ClaimReason.EVIDENCE_VOID)
    assert "cool the GPU" in found.next_step


@pytest.mark.parametrize("reason", ["too-few-sessions", "heavy-tail", "anything-new"])
@pytest.mark.parametrize("speed_up", [1.3, 1.1])
def test_what_is_open_for_such_a_reason_decides_no_claim(reason, speed_up):
    found = outcome(CLAIM, seen(speed_up, latency="INCONCLUSIVE", latency_reason=reason))
    assert found == (Outcome.INCONCLUSIVE, ClaimReason.EVIDENCE_OPEN)


@pytest.mark.parametrize("reason", ["not-strongest", "holm"])
def test_a_speed_up_that_others_share_supports_nothing_and_can_falsify(reason):
    about = {"latency": "INCONCLUSIVE", "latency_reason": reason}
    assert outcome(CLAIM, seen(1.3, **about))[1] is ClaimReason.EVIDENCE_OPEN
    assert outcome(CLAIM, seen(1.1, **about)) == MISSED


def test_no_difference_seen_can_settle_a_claim_about_another_bound():
    about = {"latency": "INCONCLUSIVE", "latency_reason": "not-resolved"}
    assert outcome(CLAIM, seen(1.0, **about)) == MISSED
    assert outcome(replace(CLAIM, bound=0.9), seen(1.0, **about)) == HELD


HARMLESS = replace(CLAIM, keeps_quality=True)


@pytest.mark.parametrize("speed_up", [1.3, 1.1])
def test_a_killed_quality_falsifies_a_claim_that_says_without_hurting_it(speed_up):
    killed = seen(speed_up, quality="KILL")
    assert outcome(HARMLESS, killed) == (Outcome.FALSIFIED, ClaimReason.QUALITY_KILL)
    assert outcome(CLAIM, killed)[1] is not ClaimReason.QUALITY_KILL


@pytest.mark.parametrize("quality", ["MARGINAL", "NOT_EVALUATED", ""])
def test_quality_that_was_not_shown_supports_no_such_claim_and_a_missed_bound_falsifies_it(quality):
    found = outcome(HARMLESS, seen(1.3, quality=quality))
    assert found == (Outcome.INCONCLUSIVE, ClaimReason.QUALITY_NOT_SHOWN)
    assert outcome(HARMLESS, seen(1.1, quality=quality)) == MISSED
    assert outcome(HARMLESS, seen(1.3, quality="PASS")) == HELD


ELSEWHERE = [{"gpu": "NVIDIA L4"}, {"model": "meta-llama/Llama-3.2-1B"}]


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("change", [{}, {"latency": "VOID"}, {"quality": "KILL"}])
@pytest.mark.parametrize("speed_up", [1.3, 1.1])
def test_evidence_from_elsewhere_says_nothing_of_a_local_claim(place, change, speed_up):
    found = outcome(HARMLESS, seen(speed_up, **place, **change))
    assert found == (Outcome.UNTESTABLE, ClaimReason.SCOPE)


@pytest.mark.parametrize("place", [{}, *ELSEWHERE])
def test_a_universal_claim_is_falsified_anywhere_and_supported_nowhere(place):
    claim = replace(CLAIM, reach=Reach.UNIVERSAL)
    assert outcome(claim, seen(1.1, **place)) == MISSED
    assert outcome(claim, seen(1.3, **place)) == (Outcome.INCONCLUSIVE, ClaimReason.ONE_PLACE)


def test_a_claim_of_a_gpu_that_names_no_model_is_tested_with_any():
    claim = replace(CLAIM, model="")
    assert outcome(claim, seen(1.3, model="another")) == HELD


@pytest.mark.parametrize(
    "change",
    [
        {"direction": Direction.ABOUT},
        {"tolerance": 0.1},
        {"direction": Direction.ABOUT, "tolerance": 0.1, "bound": 0.0},
        {"gpu": ""},
        {"reach": Reach.THIS_MODEL, "model": ""},
    ],
)
def test_a_claim_that_cannot_be_tested_as_it_stands_is_refused(change):
    with pytest.raises(UsageError):
        replace(CLAIM, **change)


def test_every_reason_says_what_to_do_next_and_every_outcome_has_its_exit_code():
    assert set(NEXT_STEP) == set(ClaimReason)
    assert set(OF_CLAIM) == set(Outcome)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (["SUPPORTED", "SUPPORTED"], Exit.DONE),
        (["SUPPORTED", "UNTESTABLE"], Exit.INCONCLUSIVE),
        (["INCONCLUSIVE", "FALSIFIED"], Exit.FALSIFIED),
        (["FALSIFIED", "VOID"], Exit.VOID),
        ([], Exit.DONE),
    ],
)
def test_the_gravest_claim_gives_the_exit_code(outcomes, code):
    assert claims_exit(Outcome(name) for name in outcomes) is code


def test_claims_and_verdicts_survive_json():
    claim = replace(CLAIM, direction=Direction.ABOUT, tolerance=0.05)
    assert msgspec.json.decode(msgspec.json.encode(claim), type=Claim) == claim


def test_a_definition_is_settled_by_what_has_no_place_and_by_nothing_measured():
    by_definition = replace(CLAIM, reach=Reach.DEFINITION, gpu="", model="")
    computed = seen(1.3, gpu="", model="")
    assert outcome(by_definition, computed) == HELD
    assert outcome(by_definition, seen(1.1, gpu="", model="")) == MISSED
    assert outcome(by_definition, seen(1.1)) == (Outcome.UNTESTABLE, ClaimReason.SCOPE)


@pytest.mark.parametrize("named", [{"gpu": CELL.device, "model": ""}, {"gpu": ""}])
def test_a_definition_names_no_place(named):
    with pytest.raises(UsageError, match="has no place"):
        replace(CLAIM, reach=Reach.DEFINITION, **named)
