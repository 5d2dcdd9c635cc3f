"""What a run says of a protocol's claim, on both sides of its bound and beside its control."""

from __future__ import annotations

import msgspec
import pytest

from attnbench.protocol.appraisal import ArmQuality
from attnbench.protocol.calibration_result import ORDER_EFFECT, Bias, CalibrationResult
from attnbench.protocol.cell import Role
from attnbench.protocol.claim import ClaimReason, Outcome
from attnbench.protocol.judgement import (
    judge,
    order_seen,
    published,
    quality_seen,
    seen_in,
)
from attnbench.protocol.result import Interval
from tests.protocol.results import CELL, interval, result
from tests.protocol.texts import ORDER, QUALITY, SPEED, file_of
from tests.report import ledgers

INT8, SINK = "int8_kv,impl=torch", "sink_window,window=64,impl=torch"
LABELS = {"int8_kv": INT8, "sink_window,window=64": SINK}
CELL_1 = SPEED[SPEED.index("[[cell]]") : SPEED.index("[control]")]
TWO_CELLS = ("[control]", CELL_1.replace("1024", "512") + "[control]")
EVERY = ("[publish]", '[decision]\nrule = "every-cell"\n[publish]')
BYTES = [
    ('"at-least"\nbound = 1.4', '"at-most"\nquantity = "kv-bytes"\nbound = 0.5'),
    ("bound = 1.1", "bound = 0.99"),
]


def arm(label: str, speed_up: float = 1.0, kv_bytes: int = 100, **changes):
    made = result(speed_up=speed_up, **changes)
    return msgspec.structs.replace(
        made, arm=label, method=label, memory={"reachable_bytes": kv_bytes}
    )


def cell(speed_up=1.6, control=1.3, kv_bytes=40, control_bytes=100, **changes):
    """A cell's results: the baseline, the claim's arm, the control's."""
    return [
        arm("sdpa", role=Role.BASELINE),
        arm("sdpa", role=Role.BASELINE_AGAIN),
        arm(INT8, speed_up, kv_bytes, **changes),
        arm(SINK, control, control_bytes),
    ]


def outcome(file, *cells):
    judgement = judge(file, [seen_in(file, results, LABELS) for results in cells])
    return judgement.verdict.outcome, judgement.verdict.reason


@pytest.mark.parametrize(
    ("speed_up", "said"),
    [
        (1.411, (Outcome.SUPPORTED, ClaimReason.BOUND_HELD)),
        (1.405, (Outcome.INCONCLUSIVE, ClaimReason.BOUND_NOT_RESOLVED)),
        (1.395, (Outcome.INCONCLUSIVE, ClaimReason.BOUND_NOT_RESOLVED)),
        (1.389, (Outcome.FALSIFIED, ClaimReason.BOUND_MISSED)),
    ],
)
def test_the_claim_is_decided_on_either_side_of_its_bound_and_open_between(speed_up, said):
    assert outcome(file_of(), cell(speed_up)) == said


@pytest.mark.parametrize("speed_up", [1.6, 1.2])
@pytest.mark.parametrize("control", [1.1, 0.9])
def test_a_run_that_does_not_find_the_known_effect_says_nothing(speed_up, control):
    found = outcome(file_of(), cell(speed_up, control))
    assert found == (Outcome.VOID, ClaimReason.CONTROL_NOT_FOUND)


def test_a_control_that_is_void_or_was_not_measured_was_not_found():
    void = cell()
    void[3] = arm(SINK, 1.3, latency="VOID")
    missing = cell()
    missing[3] = msgspec.structs.replace(
        missing[3], ratio=msgspec.UNSET, robust_ratio=msgspec.UNSET
    )
    for results in (void, missing):
        assert outcome(file_of(), results)[1] is ClaimReason.CONTROL_NOT_FOUND


def test_what_voids_the_claims_own_numbers_is_said_before_the_control():
    found = outcome(file_of(), cell(control=0.9, latency="VOID"))
    assert found == (Outcome.VOID, ClaimReason.EVIDENCE_VOID)


def test_the_verdict_says_what_the_control_was():
    file = file_of()
    seen = judge(file, [seen_in(file, cell(control=0.9), LABELS)])
    assert "speed-up of sink_window,window=64 is 0.89 to 0.91" in seen.verdict.next_step
    control = seen.decisive.control
    assert (control.found, control.least, control.greatest) == (False, 1.1, None)


@pytest.mark.parametrize(("kv_bytes", "said"), [(50, Outcome.SUPPORTED), (51, Outcome.FALSIFIED)])
def test_bytes_are_counted_against_the_baselines(kv_bytes, said):
    assert outcome(file_of(SPEED, *BYTES), cell(kv_bytes=kv_bytes))[0] is said


def test_bytes_are_void_where_the_allocator_disagrees_or_the_control_shrinks():
    file = file_of(SPEED, *BYTES)
    assert outcome(file, cell(memory="VOID")) == (Outcome.VOID, ClaimReason.EVIDENCE_VOID)
    assert outcome(file, cell(control_bytes=98))[1] is ClaimReason.CONTROL_NOT_FOUND


def test_an_arm_that_is_itself_the_baseline_has_no_speed_up():
    results = cell()
    results[0] = arm(INT8, role=Role.BASELINE)
    results[0] = msgspec.structs.replace(
        results[0], ratio=msgspec.UNSET, robust_ratio=msgspec.UNSET
    )
    del results[2]
    assert outcome(file_of(), results)[1] is ClaimReason.NOT_MEASURED


@pytest.mark.parametrize(
    ("rules", "second", "said"),
    [
        ((), 1.2, Outcome.SUPPORTED),
        ((EVERY,), 1.6, Outcome.SUPPORTED),
        ((EVERY,), 1.4, Outcome.INCONCLUSIVE),
        ((EVERY,), 1.2, Outcome.FALSIFIED),
    ],
)
def test_the_first_cell_decides_or_every_one_by_the_files_rule(rules, second, said):
    file = file_of(SPEED, TWO_CELLS, *rules)
    assert outcome(file, cell(1.6), cell(second))[0] is said


def test_of_two_cells_a_void_one_leaves_the_claim_open_and_a_failed_one_does_not():
    file = file_of(SPEED, TWO_CELLS, EVERY)
    assert outcome(file, cell(1.6), cell(1.6, control=1.0))[0] is Outcome.VOID
    assert outcome(file, cell(1.2), cell(1.6, control=1.0))[0] is Outcome.FALSIFIED


def test_a_claim_of_one_gpu_says_nothing_on_another():
    file = file_of(
        SPEED, ('"this-model"', '"this-gpu"'), ('"cpu"', '"cuda"\ngpu = "NVIDIA H100 80GB HBM3"')
    )
    assert outcome(file, cell(1.6)) == (Outcome.UNTESTABLE, ClaimReason.SCOPE)


def order(first_over_second, in_blocks, half_width=0.001):
    def of(how, value):
        found = interval(value, half_width)
        return Bias(how=how, processes=3, each=(value,) * 3, ratio=found, of_medians=found)

    return CalibrationResult(
        calibration=ORDER_EFFECT,
        run="r",
        cell=CELL,
        arms={},
        protocol={},
        environment={},
        sources={},
        order_effect=(of("sequential", first_over_second), of("blocks", in_blocks)),
    )


@pytest.mark.parametrize(
    ("sequential", "blocks", "said"),
    [
        (1.0002, 1.0, (Outcome.FALSIFIED, ClaimReason.BOUND_MISSED)),
        (1.085, 1.0, (Outcome.INCONCLUSIVE, ClaimReason.ONE_PLACE)),
        (1.12, 1.0, (Outcome.FALSIFIED, ClaimReason.BOUND_MISSED)),
        (1.085, 1.02, (Outcome.VOID, ClaimReason.CONTROL_NOT_FOUND)),
    ],
)
def test_an_order_effect_is_judged_with_blocks_as_its_control(sequential, blocks, said):
    judgement = judge(file_of(ORDER), [order_seen(order(sequential, blocks))])
    assert (judgement.verdict.outcome, judgement.verdict.reason) == said


def test_an_order_effect_without_figures_is_void():
    bare = msgspec.structs.replace(order(1.0, 1.0), order_effect=msgspec.UNSET)
    assert judge(file_of(ORDER), [order_seen(bare)]).verdict.outcome is Outcome.VOID


def test_the_text_that_was_written_beforehand_is_published_and_none_for_an_open_claim():
    file = file_of()

    def text(speed_up):
        return published(file, judge(file, [seen_in(file, cell(speed_up), LABELS)]).verdict)

    assert text(1.6) == "It is faster."
    assert text(1.2) == "It is not faster."
    assert text(1.4).startswith("Nothing is said of this claim: INCONCLUSIVE (bound-not-resolved).")


def test_a_universal_claim_that_held_is_published_of_the_one_place():
    file = file_of(ORDER)
    text = published(file, judge(file, [order_seen(order(1.085, 1.0))]).verdict)
    assert text == "In one place, which cannot support it everywhere: There is such an effect."


def test_every_interval_has_to_clear_the_bound():
    results = cell(1.6)
    low = Interval(estimate=1.3, low=1.2, high=1.5, level=0.95)
    results[2] = msgspec.structs.replace(results[2], robust_ratio=low)
    assert outcome(file_of(), results)[0] is Outcome.INCONCLUSIVE


def gated(label: str, **figures: float | tuple[float, float]) -> ArmQuality:
    """What the gates say of an arm: figures, or their intervals."""
    made = msgspec.convert(ledgers.appraisal("q1", label), ArmQuality)
    found = {}
    for name, value in figures.items():
        low, high = value if isinstance(value, tuple) else (value, value)
        found[name.replace("_", "-")] = Interval(
            estimate=(low + high) / 2, low=low, high=high, level=0.95
        )
    return msgspec.structs.replace(made, quantities=found)


def by_gates(cosine=(0.991, 0.995), control=0.5, share=1.0, **changes):
    file = file_of(QUALITY)
    if changes:
        part = msgspec.structs.replace(file.cell[0], **changes)
        file = msgspec.structs.replace(file, cell=(part,))
    results = (gated(INT8, cosine=cosine, kept_share=share), gated(SINK, cosine=control))
    return judge(file, [quality_seen(file, file.cell[0], results, LABELS)])


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({}, (Outcome.SUPPORTED, ClaimReason.BOUND_HELD)),
        ({"cosine": (0.98, 0.989)}, (Outcome.FALSIFIED, ClaimReason.BOUND_MISSED)),
        ({"cosine": (0.98, 0.991)}, (Outcome.INCONCLUSIVE, ClaimReason.BOUND_NOT_RESOLVED)),
        ({"control": 0.95}, (Outcome.VOID, ClaimReason.CONTROL_NOT_FOUND)),
        ({"share": 0.5}, (Outcome.VOID, ClaimReason.REQUIREMENT_MISSED)),
        (
            {"share": 0.5, "cosine": (0.98, 0.989)},
            (Outcome.VOID, ClaimReason.REQUIREMENT_MISSED),
        ),
    ],
)
def test_a_figure_of_the_gates_decides_where_what_is_required_of_the_arm_is_so(seen, said):
    judgement = by_gates(**seen)
    assert (judgement.verdict.outcome, judgement.verdict.reason) == said
    (required,) = judgement.decisive.required
    assert required.found == ("share" not in seen)


def test_an_arm_without_samples_decides_nothing():
    file = file_of(QUALITY)
    bare = msgspec.structs.replace(gated(INT8), quantities={})
    seen = quality_seen(file, file.cell[0], (bare, gated(SINK, cosine=0.5)), LABELS)
    assert judge(file, [seen]).verdict.outcome is Outcome.VOID  # what is required was not seen
    open_file = msgspec.structs.replace(file, require=())
    seen = msgspec.structs.replace(bare)
    seen = quality_seen(open_file, file.cell[0], (seen, gated(SINK, cosine=0.5)), LABELS)
    verdict = judge(open_file, [seen]).verdict
    assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, ClaimReason.NOT_MEASURED)


def test_a_value_is_held_against_the_bound_as_a_share_of_what_is_claimed_for_its_cell():
    assert by_gates(claimed=2.0).verdict.outcome is Outcome.FALSIFIED
    assert by_gates(claimed=2.0).decisive.value == pytest.approx(0.993 / 2)
    two = file_of(SPEED, TWO_CELLS, EVERY, ("bound = 1.4", "bound = 1.0"))
    parts = tuple(
        msgspec.structs.replace(part, claimed=claimed)
        for part, claimed in zip(two.cell, (1.5, 4.2), strict=True)
    )
    two = msgspec.structs.replace(two, cell=parts)
    assert outcome(two, cell(1.6), cell(4.5))[0] is Outcome.SUPPORTED
    assert outcome(two, cell(1.6), cell(3.0))[0] is Outcome.FALSIFIED
