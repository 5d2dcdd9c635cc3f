"""A speed stands beside its interval, its quality verdict and its floor, at any width."""

from __future__ import annotations

import re

import msgspec
import pytest
from msgspec.structs import replace

from attnbench.measure.plan import PlannedArm
from attnbench.methods.base import Family
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.result import Energy, Interval
from attnbench.report.decode_notes import notes
from attnbench.report.decode_table import decode_table
from tests.measure.fake_workers import UNSUPPORTED, FakeWorkers, broke
from tests.measure.planned import ARMS, EAGER, INT8, MATH, SDPA, SINK, ZERO, plan
from tests.report.runs import alone, printed, results

WIDE, NARROW, WIDEST = 149, 100, 200
SPEEDS = {INT8.label: 800.0, ZERO.label: 600.0}


def row(lines: list[str], arm: str) -> str:
    """The line of the table that begins with this arm."""
    return next(line for line in lines if line.strip().startswith(f"{arm} "))


@pytest.fixture(scope="module")
def rated():
    return results(FakeWorkers(SPEEDS))


@pytest.fixture(scope="module")
def measured():
    return results(FakeWorkers(SPEEDS, cosine={INT8.label: 0.97, ZERO.label: 0.1}))


def test_a_row_holds_latency_floor_ratio_interval_verdict_quality_memory_and_share(measured):
    lines = printed(decode_table(measured), WIDE)
    result = next(result for result in measured if result.arm == INT8.label)
    cells = row(lines, INT8.label).split()
    assert cells == [
        INT8.label,
        f"{result.latency_ms['median']:.3f}",
        f"{result.latency_ms['median'] / 0.25:.2f}",
        f"{result.ratio.estimate:.3f}×",
        *f"{result.ratio.low:.3f} to {result.ratio.high:.3f}".split(),
        "FASTER",
        "MARGINAL",
        *["0.9700", "/", "0.970"],
        "100.0",
        "50%",
    ]


def test_every_figure_has_its_unit(measured):
    lines = printed(decode_table(measured), WIDE)
    header = row(lines, "arm")
    for unit in ("ms/step", "× floor", "speed-up", "95 % interval", "KV MiB", "cos mean / p1"):
        assert unit in header


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_no_speed_is_printed_without_a_quality_verdict_on_its_line(measured, width):
    lines = printed(decode_table(measured), width)
    with_speed = [line for line in lines if "×" in line and "floor" not in line]
    assert len(with_speed) == 5
    for line in with_speed:
        assert any(verdict in line for verdict in ("PASS", "MARGINAL", "KILL", "NOT_EVALUATED"))


@pytest.mark.parametrize("width", [NARROW, 120])
def test_a_narrow_terminal_gets_every_figure_and_no_line_too_long(measured, width):
    wide, narrow = (printed(decode_table(measured), w) for w in (WIDE, width))
    assert max(map(len, narrow)) <= width
    words = set(" ".join(narrow).replace(",", " ").split())
    assert set(row(wide, "eager_repeat_kv").split()) <= words
    assert set(row(wide, INT8.label).replace(",", " ").split()) <= words
    assert "impl=torch" in words


def test_the_baseline_pair_is_marked_and_the_ceiling_named(measured):
    lines = printed(decode_table(measured), WIDE)
    assert row(lines, "sdpa (A)")
    assert "×" in row(lines, "sdpa (A′)")
    assert "×" not in row(lines, "sdpa (A)")
    assert row(lines, "zero_cost").endswith("ceiling ")


def test_what_is_not_known_is_a_dash_and_not_a_number():
    found = results(FakeWorkers(not_here={SINK.label: broke("pilot")}))
    cells = row(printed(decode_table(found), WIDEST), SINK.label).split()
    assert cells == [
        SINK.label,
        *["–", "–", "–", "–", "VOID", "not-measured", "NOT_EVALUATED", "–", "–", "–", "–"],
    ]


def test_a_failure_is_one_short_line_below_the_table():
    long = msgspec.structs.replace(broke("pilot"), message="out of memory " * 40 + "\nTraceback")
    lines = printed(decode_table(results(FakeWorkers(not_here={SINK.label: long}))), 400)
    (line,) = [line for line in lines if "out of memory" in line]
    assert line.startswith(f"{SINK.label}: IndexError: out of memory")
    assert len(line) < 210
    assert line.rstrip().endswith("…")
    assert not any("Traceback" in line for line in lines)


def test_what_is_to_be_said_of_every_arm_is_said_once():
    lines = printed(decode_table(results(FakeWorkers(), plan(weights="random"))), WIDE)
    (line,) = [line for line in lines if "random-weights" in line]
    assert line.startswith("every arm: ")


def test_advice_stands_below_open_verdicts_alone(measured):
    lines = printed(decode_table(measured), WIDE)
    assert not any("read the quality verdict" in line for line in lines)
    noisy = results(FakeWorkers(breaks={(1, "sdpa#2"): broke("visit")}))
    lines = printed(decode_table(noisy), WIDE)
    assert any("see why the arm failed" in line for line in lines)


def test_an_arm_that_a_gate_did_not_pass_is_told_which_and_where(measured):
    lines = printed(decode_table(measured), WIDE)
    assert any(
        line.startswith(f"{INT8.label}: quality MARGINAL by mean-cosine, worst in layer 0, head 0")
        for line in lines
    )
    assert not any(line.startswith("zero_cost: quality") for line in lines)
    (line,) = [line for line in lines if "gates not run" in line]
    assert "logit-kl: 0 steps inside the model, and it takes 64" in line


def test_where_a_method_that_does_not_attend_would_do_as_well_that_is_said_once():
    found = results(FakeWorkers(null_cosine=0.9997))
    lines = printed(decode_table(found), WIDE)
    (line,) = [line for line in lines if "no-power" in line]
    assert line.startswith("every arm: quality NOT_EVALUATED (no-power)")
    assert "cosine 0.9997" in line
    assert {result.verdict.quality for result in found} == {"NOT_EVALUATED"}


def test_bandwidth_and_floor_of_the_baseline_stand_below(measured):
    text = "\n".join(printed(decode_table(measured), WIDE))
    assert "2,000 GB/s" in text
    assert "0.250 ms for A" in text


TWIN = PlannedArm("twin", "twin", Family.EXACT, asked_for=False, pilot_only=True, twin=SDPA.label)


def test_arms_of_the_pilot_alone_are_named_with_their_times_there():
    described = plan(arms=(*ARMS, TWIN))
    workers = FakeWorkers(SPEEDS)
    table = decode_table(results(workers, described), alone(workers, described))
    (line,) = [line for line in printed(table, WIDE) if line.startswith("in the pilot alone")]
    assert re.search(r"over A's: sdpa,backend=math (2\.9|3\.0)\d×", line)
    assert "twin (not timed: the kernel of sdpa)" in line


def test_an_arm_that_failed_in_the_pilot_has_no_time_there():
    workers = FakeWorkers(not_here={MATH.label: broke("pilot")})
    (found,) = alone(workers).values()
    assert [(arm.label, arm.over_baseline) for arm in found] == [(MATH.label, None)]
    table = decode_table(results(workers), alone(workers))
    assert any(
        f"sdpa,backend=math ({broke('pilot').message})" in line for line in printed(table, WIDE)
    )


def near(estimate: float) -> Interval:
    return Interval(estimate=estimate, low=estimate - 0.002, high=estimate + 0.002, level=0.95)


def with_statistics(found, arm: str, **changes):
    return [
        replace(result, statistics=replace(result.statistics, **changes))
        if result.arm == arm
        else result
        for result in found
    ]


def without_effects(found):
    return [
        replace(
            result,
            statistics=replace(result.statistics, position_effect=near(1), carry_over=near(1)),
        )
        for result in found
    ]


def order_lines(found) -> list[str]:
    return [line for line in printed(decode_table(found), WIDE) if line.startswith("order: ")]


def test_that_place_and_order_cost_nothing_is_said_once_with_the_largest_effect(measured):
    quiet = without_effects(measured)
    slight = with_statistics(quiet, INT8.label, position_effect=near(1.001))
    (line,) = order_lines(slight)
    assert line.startswith("order: no effect of position (last place over first)")
    assert "largest int8_kv,impl=torch +0.10% (-0.10% to +0.30%), nor of carry-over" in line


def test_an_arm_whose_place_or_heritage_costs_something_is_named(measured):
    quiet = without_effects(measured)
    (line,) = order_lines(with_statistics(quiet, "sdpa#2", carry_over=near(0.99)))
    assert "visits right after an arm over others): sdpa (A′) -1.00% (-1.20% to -0.80%)" in line
    assert "1 of 12 intervals" in line


def test_without_effects_in_the_record_nothing_is_said_of_order(measured):
    bare = [
        replace(
            result,
            statistics=replace(
                result.statistics, position_effect=msgspec.UNSET, carry_over=msgspec.UNSET
            ),
        )
        for result in measured
    ]
    assert order_lines(bare) == []


@pytest.mark.parametrize(("apart", "said"), [(1.02, True), (1.005, False)])
def test_cycles_are_told_where_they_and_time_differ_by_more_than_a_hundredth(measured, apart, said):
    ratio = next(result.ratio for result in measured if result.arm == INT8.label)
    cycles = near(ratio.estimate * apart)
    lines = printed(decode_table(with_statistics(measured, INT8.label, cycles_ratio=cycles)), WIDE)
    found = [line for line in lines if "SM cycles" in line]
    assert bool(found) is said
    assert all(line.startswith(f"{INT8.label}: {1 / cycles.estimate:.3f} of A's") for line in found)


@pytest.mark.parametrize(("apart", "said"), [(1.02, True), (0.98, True), (1.005, False)])
def test_it_is_told_where_the_times_of_the_columns_do_not_divide_to_the_speed_up(
    measured, apart, said
):
    baseline, arm = (next(r for r in measured if r.arm == a) for a in (SDPA.label, INT8.label))
    ms = baseline.latency_ms["median"] / arm.ratio.estimate / apart
    others = [result for result in measured if result.arm != INT8.label]
    lines = notes([*others, replace(arm, latency_ms={"median": ms})])
    found = [line for line in lines if "ms/step over the arm's is" in line]
    assert bool(found) is said
    assert all(f"{INT8.label} {arm.ratio.estimate * apart:.3f}×: " in line for line in found)
    hidden = notes([*others, replace(arm, latency_ms={"median": ms})], absolute=False)
    assert not any("ms/step" in line for line in hidden)


def test_every_cell_is_a_table_with_its_title():
    cells = ((Scope.STEP, Mode.EAGER), (Scope.ATTENTION, Mode.EAGER))
    arms = (SDPA, EAGER, INT8)
    lines = printed(decode_table(results(FakeWorkers(), plan(cells=cells, arms=arms))), WIDE)
    titles = [line for line in lines if line.startswith("embedded · 1024 tokens · batch 1")]
    assert [" · step · " in title for title in titles] == [True, False]
    assert all("A processor" in title for title in titles)


def test_a_default_arm_that_does_not_exist_here_is_nowhere():
    lines = printed(decode_table(results(FakeWorkers(not_here={INT8.label: UNSUPPORTED}))), WIDE)
    assert not any("int8_kv" in line for line in lines)


def test_faster_within_the_margin_reads_negligibly(measured):
    found = next(result for result in measured if result.arm == INT8.label)
    slight = replace(found, statistics=replace(found.statistics, equivalent=True))
    assert "negligibly" in row(printed(decode_table([slight]), WIDE), INT8.label)
    assert "negligibly" not in row(printed(decode_table([found]), WIDE), INT8.label)


def test_a_share_of_the_way_is_shown_of_arms_alone_that_are_surely_faster(measured):
    (arm,) = (result for result in measured if result.arm == INT8.label)
    verdict = msgspec.structs.replace(arm.verdict, latency="INCONCLUSIVE")
    undecided = msgspec.structs.replace(arm, verdict=verdict)
    others = [result for result in measured if result.arm != INT8.label]
    lines = printed(decode_table([*others, undecided]), WIDEST)
    assert row(lines, INT8.label).split()[-2] == "–"  # before its tokens a second


def test_where_there_is_room_tokens_and_joules_a_token_have_columns_that_are_not_empty(rated):
    lines = printed(decode_table(rated), WIDEST)
    assert row(lines, "arm").split()[-1] == "tok/s"
    (arm,) = (result for result in rated if result.arm == INT8.label)
    assert row(lines, INT8.label).split()[-1] == f"{1e3 / arm.latency_ms['median']:,.1f}"
    energy = Energy(joules_per_token=0.1234, seconds=2.0, steps=700, updates=20)
    with_energy = [replace(r, energy=energy) if r is arm else r for r in rated]
    lines = printed(decode_table(with_energy), WIDEST)
    assert row(lines, "arm").split()[-2:] == ["tok/s", "J/token"]
    assert row(lines, INT8.label).split()[-1] == "0.123"
    assert row(lines, "sdpa (A)").split()[-1] == "–"
