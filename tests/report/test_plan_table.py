from __future__ import annotations

import json

from attnbench.report.plan_table import plan_json, plan_table
from tests.measure.planned import plan
from tests.report.runs import printed

DESCRIBED = plan(skipped=(("flash_decode", "no GPU"),))


def test_a_plan_names_arms_cells_memory_protocol_and_minutes():
    text = "\n".join(printed(plan_table(DESCRIBED), 120))
    for said in (
        "LlamaForCausalLM, trained weights",
        "1024 tokens · batch 1 · float32",
        "step · eager",
        "A processor",
        "canonical: 3 sessions of 12 blocks",
        "8.0 GiB free",
        " min (a guess",
        "sink_window,window=64,impl=torch",
        "left out: no GPU",
    ):
        assert said in text


def test_an_arm_of_the_pilot_alone_says_so():
    lines = printed(plan_table(DESCRIBED), 120)
    (line,) = [line for line in lines if "backend=math" in line]
    assert "pilot" in line


def test_a_plan_is_readable_at_eighty_columns():
    lines = printed(plan_table(DESCRIBED), 80)
    assert max(map(len, lines)) <= 80
    assert any("sink_window,window=64,impl=torch" in line for line in lines)


def test_a_plan_for_machines_holds_the_same():
    data = json.loads(plan_json(DESCRIBED))
    assert [arm["arm"] for arm in data["arms"]] == [arm.label for arm in DESCRIBED.arms]
    assert data["left_out"] == [{"arm": "flash_decode", "why": "no GPU"}]
    assert data["needed_bytes"] == DESCRIBED.needed_bytes
    assert data["cells"] == [{"scope": "step", "mode": "eager"}]
    assert data["minutes"] > 0
