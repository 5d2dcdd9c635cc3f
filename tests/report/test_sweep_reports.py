"""A sweep is read at a glance: bars in the terminal, one figure, one plan."""

from __future__ import annotations

import json
from dataclasses import replace as changed
from pathlib import Path

import pytest
from msgspec.structs import replace

from attnbench.errors import AttnbenchError, UsageError
from attnbench.ledger import Ledger
from attnbench.measure.conductor import Sweeper
from attnbench.measure.lost import sweep_results
from attnbench.measure.sweep_plan import SweepPlan
from attnbench.measure.tasks import ArmFailure
from attnbench.protocol.cell import Role
from attnbench.protocol.result import Breakdown, How, KernelTime
from attnbench.report.bars import CEILING, FLOOR, REST, WIDTH, breakdowns, places
from attnbench.report.decode_table import decode_table
from attnbench.report.sweep_figure import (
    BASELINE,
    bounds,
    draw,
    milliseconds,
    over_baseline,
    refuse_figure,
    series,
)
from attnbench.report.sweep_plan_table import sweep_plan_json, sweep_plan_table
from tests.measure.fake_workers import FakeWorkers, NoteTaker
from tests.measure.planned import INT8, SINK, ZERO, plan, request
from tests.report.runs import printed

FULL = ArmFailure(type="DoesNotFit", message="needs 9 GiB", hint="less", during="plan")
PLANS = tuple(plan(context=context) for context in (256, 1024))
LARGE = changed(plan(context=4096), request=request(batch=16))
SWEEP = SweepPlan(PLANS, ((LARGE, FULL),), PLANS[1])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("sweep") / "ledger.jsonl")
    workers = FakeWorkers({INT8.label: 800.0, ZERO.label: 500.0})
    return sweep_results(SWEEP, Sweeper(PLANS, ledger, NoteTaker(), run=workers).conduct())


def test_a_cell_has_a_bar_on_which_floor_and_ceiling_are_shares_of_as_time(results):
    text = "\n".join(printed(places(results), 200))
    (line,) = [line for line in text.splitlines() if line.startswith("     256")]
    bar = FLOOR * (WIDTH // 4) + CEILING * (WIDTH // 4) + REST * (WIDTH // 2)
    assert bar in line
    assert f"{INT8.label} 1.25" in line
    assert "FASTER, quality PASS" in line or "quality MARGINAL" in line


def test_the_primary_cell_is_marked_and_a_void_one_keeps_its_line_and_reason(results):
    lines = printed(places(results), 200)
    (primary,) = [line for line in lines if "(primary)" in line]
    assert primary.split()[0] == "1024"
    (void,) = [line for line in lines if line.strip().startswith("4096 × 16")]
    assert void.rstrip().endswith("VOID (does-not-fit)")
    table = "\n".join(printed(decode_table(results), 200))
    assert "4096 tokens · batch 16" in table
    assert "needs 9 GiB" in table
    assert table.count("primary cell") == 1


def kernels() -> Breakdown:
    named = KernelTime(name="flash_fwd_splitkv", launches=16, ms=0.5, attention_share=1.0)
    return Breakdown(
        how=How.KERNELS,
        step_ms=1.0,
        attention_ms=0.5,
        other_ms=0.375,
        gaps_ms=0.125,
        kernels=(named,),
        other_kernels=7,
    )


def test_a_step_in_parts_is_bars_that_add_up_and_says_how_it_was_had(results):
    broken_down = [
        replace(r, breakdown=kernels()) if r.role is Role.BASELINE else r for r in results
    ]
    lines = printed(breakdowns(broken_down), 200)
    bars = [line.count(FLOOR) for line in lines if FLOOR in line][:3]
    assert bars == [WIDTH // 2, WIDTH * 3 // 8, WIDTH // 8]
    text = "\n".join(lines)
    for said in ("256 tokens × 1, eager", "50.0%", "gaps", "profiler", "and 7 more kernels"):
        assert said in text
    assert "16.0 × flash_fwd_splitkv attention" in text
    assert "no cell" in printed(breakdowns(results), 100)[0]


def test_series_follow_an_arm_over_contexts_and_controls_are_no_series(results):
    drawn = series(results, milliseconds)
    assert [point[0] for point in drawn[INT8.label]] == [256, 1024]
    assert set(drawn) == {"sdpa", "eager_repeat_kv", INT8.label, SINK.label, BASELINE}
    for _, value, low, high in drawn[INT8.label]:
        assert 0.7 < low < value < high < 0.9
    ratios = series(results, over_baseline(results))
    assert [point[1] for point in ratios[BASELINE]] == [1, 1]
    assert ratios[INT8.label][0][1] == pytest.approx(0.8, rel=0.01)


def test_an_arm_whose_parameters_grow_with_the_context_is_one_series(results):
    growing = [
        replace(r, method=f"sink_window,window={r.cell.context // 8}")
        if r.method == SINK.label
        else r
        for r in results
    ]
    assert [point[0] for point in series(growing, milliseconds)["sink_window"]] == [256, 1024]


def test_bounds_are_those_of_a_and_on_a_cpu_relative_to_its_time(results):
    absolute, relative = (bounds(results, absolute=flag) for flag in (True, False))
    assert [p[1] for p in absolute["byte floor of A"]] == pytest.approx([0.25, 0.25])
    assert [p[1] for p in relative["zero-cost ceiling"]] == pytest.approx([0.5, 0.5], rel=0.01)


@pytest.mark.parametrize("device_uuid", ["", "GPU-1"])
def test_the_figure_is_drawn_and_names_model_device_and_protocol(results, tmp_path, device_uuid):
    on_it = [replace(r, environment={**r.environment, "device_uuid": device_uuid}) for r in results]
    draw(on_it, tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text()
    unit = "ms a step" if device_uuid else "ratios alone count"
    for said in ("embedded, float32, on A processor", "protocol canonical", unit, "tokens"):
        assert said in text
    draw(on_it, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_is_refused_before_anything_is_measured(results, tmp_path):
    with pytest.raises(UsageError, match="no known format"):
        refuse_figure(Path("sweep.bmp"))
    with pytest.raises(UsageError, match="there is no folder"):
        refuse_figure(tmp_path / "nowhere" / "sweep.png")
    void = [r for r in results if r.cell.context == 4096]
    with pytest.raises(AttnbenchError, match="nothing to draw"):
        draw(void, tmp_path / "sweep.png")


def test_a_plan_of_several_places_shows_each_with_memory_and_the_primary_one_in_full():
    text = "\n".join(printed(sweep_plan_table(SWEEP), 120))
    for said in ("needed GiB", "VOID: does not fit", "primary", "in all (a guess)"):
        assert said in text
    data = json.loads(sweep_plan_json(SWEEP))
    assert data["primary"] == {"context": 1024, "batch": 1}
    assert [(p["context"], p["batch"], p["fits"]) for p in data["places"]] == [
        (256, 1, True),
        (1024, 1, True),
        (4096, 16, False),
    ]
    assert data["places"][2]["why"] == "needs 9 GiB"


def test_a_plan_of_one_place_is_as_it_was():
    one = SweepPlan(PLANS[:1], (), PLANS[0])
    assert json.loads(sweep_plan_json(one))["context"] == 256
    assert "256 tokens · batch 1" in "\n".join(printed(sweep_plan_table(one), 120))
