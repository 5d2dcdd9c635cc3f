"""The table and maps of a quality run, as text and as a picture."""

import msgspec
import numpy as np
import pytest
from rich.console import Console

from attnbench.errors import UsageError
from attnbench.protocol.appraisal import ArmQuality, appraisal_exit, as_earned
from attnbench.report.appraisal_table import appraisal_table
from attnbench.report.head_maps import draw_maps, head_maps, map_tables, require_drawable
from tests.quality.test_gates import perfect
from tests.report import ledgers


def arm(name="sink_window", **changes) -> ArmQuality:
    return msgspec.convert(ledgers.appraisal("q1", name, **changes), ArmQuality)


def said(quality: str, reason: str = "") -> dict[str, str]:
    return {"quality": quality, "quality_reason": reason, "next_step": ""}


def printed(renderable, width=200) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def row(text: str, name: str) -> str:
    """The fullest line that begins so: a reason below a verdict may bear the name of a gate."""
    lines = [line for line in text.splitlines() if line.strip().startswith(name)]
    return max(lines, key=lambda line: len(line.split()))


def test_every_gate_has_its_figures_its_bound_and_its_reason_not_to_be_run():
    text = printed(appraisal_table([arm(), arm("int8_kv", verdict=said("PASS"))]))
    assert "from 0.99" in row(text, "mean-cosine")
    assert row(text, "mean-cosine").count("0.9912") == 2
    assert "4 of 16 (SDPA 16), p 0.20 (0.99)" in row(text, "needle")
    assert row(text, "perplexity").count("not run") == 2
    assert "perplexity NOT_EVALUATED: 2 text offsets" in text
    assert "0.61 [0.50, 0.72]" in row(text, "selection skill")


def test_the_failing_layer_head_step_and_window_are_named():
    text = printed(appraisal_table([arm()]))
    assert "needle KILL; worst in layer 3, head 2, at step 7 of window 1" in text
    assert "logits farthest at step 40 of window 0" in text


def test_a_band_that_was_changed_is_said_and_the_default_is_not_shown_for_it():
    text = printed(appraisal_table([arm(bands=["needle.pass_from=-0.1"])]))
    assert "see below" in row(text, "needle")
    assert "needle judged by another band: passes from -0.1 and kills below -0.2" in text


def test_an_arm_that_failed_says_why_and_shows_no_figure():
    failed = arm(
        verdict={**said("NOT_EVALUATED", "not-measured"), "next_step": "use 128"},
        failure="Unsupported: head dimension 80",
        figures={},
        gates={},
        not_run={},
    )
    text = printed(appraisal_table([failed]))
    assert "sink_window: not judged: Unsupported: head dimension 80" in text
    assert "sink_window: next: use 128" in text
    assert "0.9912" not in text


@pytest.mark.parametrize(
    ("arms", "code"),
    [
        ([arm()], 10),
        ([arm(verdict=said("MARGINAL"))], 0),
        ([arm(verdict=said("NOT_EVALUATED"))], 11),
        ([arm(verdict=said("NOT_EVALUATED")), arm()], 10),
        ([arm(role="control"), arm(floor=True)], 0),
    ],
)
def test_the_exit_code_is_that_of_the_gravest_candidate(arms, code):
    assert appraisal_exit(arms) == code


def test_a_verdict_that_cannot_have_been_earned_is_taken_back():
    weights = {"weights": "random"}
    assert as_earned(arm()).verdict.quality == "KILL"
    for unearned in (arm(environment=weights), arm(family="replacement")):
        assert as_earned(unearned).verdict.quality == "NOT_EVALUATED"
        assert as_earned(unearned).figures == {}


def spoiled_map():
    arrays = perfect()
    arrays.cosine[:, 1, :, 3] = 0.42
    mass = np.full((1, 3, 5), 0.97, np.float32)
    mass[0, 2, 0] = np.nan
    return head_maps({"mutant": perfect(cosine=arrays.cosine, kept_mass=mass), "sdpa": perfect()})


def test_maps_show_every_head_of_every_layer_by_its_number_in_the_model():
    text = printed(map_tables(spoiled_map()))
    assert "mutant: cosine to SDPA" in text
    assert row(text, "4 ").split() == ["4", "100", "100", "100", "42", "100"]
    assert "    7      –  9700  9700  9700  9700" in text
    assert text.count("kept softmax mass") == 1  # of the arm of which it was measured


def test_maps_are_drawn_as_a_picture_and_a_wrong_name_is_a_usage_error(tmp_path):
    draw_maps(spoiled_map(), tmp_path / "heads.png")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
    for name, said in (("heads.nothing", "no picture"), ("nowhere/heads.png", "no folder")):
        with pytest.raises(UsageError, match=said):
            require_drawable(tmp_path / name)
    require_drawable(tmp_path / "heads.png")
    with pytest.raises(UsageError, match="no arm"):
        draw_maps((), tmp_path / "none.png")


def test_many_arms_take_several_tables_where_they_do_not_fit_beside_each_other():
    arms = [arm(f"arm_{number}") for number in range(7)]
    text = printed(appraisal_table(arms), width=110)
    assert text.count("mean-cosine  ") == 4
    for each in arms:
        assert each.arm in text
    assert max(len(line) for line in text.splitlines()) <= 110
    assert printed(appraisal_table(arms), width=300).count("mean-cosine  ") == 1


def test_a_good_arm_reads_as_one_and_nulls_of_no_selection_are_left_out():
    whole = {**arm().figures, "kept_share": 1.0, "deterministic": 1.0, "null_oracle": 1.0}
    gates = {**arm().gates, "non-deterministic": "PASS"}
    text = printed(appraisal_table([arm(figures=whole, gates=gates)]))
    assert row(text, "non-deterministic").split() == ["non-deterministic", "no", "no"]
    assert row(text, "oracle").split() == ["oracle", "–"]


def test_facts_that_were_lost_to_nan_are_counted():
    lost = {n: v for n, v in arm().figures.items() if n != "needle_probability"}
    text = printed(appraisal_table([arm(figures={**lost, "needle_hits": 0.0})]))
    assert "0 of 16 (SDPA 16), p NaN (0.99)" in text


def test_colours_of_a_map_span_what_its_heads_take_and_the_lowest_head_is_named():
    values = np.full((2, 3, 4, 5), 0.9999, np.float32)
    values[:, 2, :, 4] = 0.9971
    (found,) = head_maps({"int8": perfect(cosine=values)})
    assert found.low == pytest.approx(0.9971)
    text = printed(map_tables((found,)))
    assert "in ten-thousandths; lowest 0.9971: layer 7, head 4" in text
    assert row(text, "7 ").split() == ["7", "9999", "9999", "9999", "9999", "9971"]
    assert spoiled_map()[0].low == 0.5  # a head that is lost does not hide the others
