from __future__ import annotations

import io

import pytest
from rich.console import Console

from attnbench.report.progress import LiveReporter, LogReporter, SilentReporter, reporter


def told(console: Console, *, json: bool = False) -> str:
    with reporter(console, json=json) as report:
        report.note("baseline: sdpa [A]")
        with report.stage("session 1 of 3") as stage:
            for done in range(5):
                stage.update(done, 5, "int8_kv (step, eager)")
    return console.file.getvalue()


def test_a_pipe_gets_a_line_when_a_part_begins_and_ends_and_every_note():
    lines = told(Console(file=io.StringIO(), width=80)).splitlines()
    assert lines[:2] == ["baseline: sdpa [A]", "session 1 of 3 …"]
    assert lines[2].startswith("session 1 of 3: ")
    assert lines[2].endswith(" s")
    assert len(lines) == 3


def test_of_a_long_part_a_pipe_is_told_how_far_it_is_now_and_then():
    now = [0.0]
    console = Console(file=io.StringIO(), width=80)
    with LogReporter(console, clock=lambda: now[0]).stage("quality: every gate") as stage:
        for done in range(10):
            now[0] = 10.0 * done
            stage.update(done, 9 if done else 0, f"layer {done}")
    assert console.file.getvalue().splitlines() == [
        "quality: every gate …",
        "quality: 33% after 30 s, layer 3",
        "quality: 67% after 60 s, layer 6",
        "quality: 100% after 90 s, layer 9",
        "quality: every gate: 90.0 s",
    ]


def test_a_terminal_sees_what_runs_and_how_much_is_done():
    shown = told(Console(file=io.StringIO(), width=120, force_terminal=True))
    assert "session 1 of 3" in shown
    assert "baseline: sdpa [A]" in shown


def test_a_live_line_holds_a_long_arm_within_a_hundred_columns():
    arm = "sink_window,window=4096,impl=triton (step, eager)"
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with reporter(console, json=False) as report, report.stage(f"session 1 of 3: {arm}"):
        pass
    assert f" {arm} 0:00:0" in console.file.getvalue()


def side_by_side(console: Console, *, json: bool = False) -> str:
    with (
        reporter(console, json=json) as report,
        report.stage("memory: each arm alone") as memory,
        report.stage("quality: outputs against SDPA") as quality,
    ):
        memory.update(1, 2, "int8_kv")
        quality.update(3, 9, "layer 4")
    return console.file.getvalue()


def test_of_two_parts_at_once_a_pipe_gets_a_beginning_and_an_end_each():
    lines = side_by_side(Console(file=io.StringIO(), width=80)).splitlines()
    assert lines[:2] == ["memory: each arm alone …", "quality: outputs against SDPA …"]
    assert sorted(line.rpartition(":")[0] for line in lines[2:]) == [
        "memory: each arm alone",
        "quality: outputs against SDPA",
    ]


def test_of_two_parts_at_once_a_terminal_shows_both_lines():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    shown = side_by_side(console)
    assert "memory" in shown
    assert "quality" in shown
    assert side_by_side(Console(file=io.StringIO(), force_terminal=True), json=True) == ""


def test_with_json_nothing_is_told():
    assert told(Console(file=io.StringIO(), force_terminal=True), json=True) == ""


@pytest.mark.parametrize(
    ("terminal", "json", "kind"),
    [(True, False, LiveReporter), (False, False, LogReporter), (True, True, SilentReporter)],
)
def test_the_way_of_telling_follows_where_the_output_goes(terminal, json, kind):
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with reporter(console, json=json) as report:
        assert isinstance(report, kind)


def test_a_part_that_fails_lets_its_error_through_and_ends_the_display():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with pytest.raises(KeyboardInterrupt), reporter(console, json=False) as report:  # noqa: SIM117
        with report.stage("session 1 of 3"):
            raise KeyboardInterrupt
    console.print("after")
    assert console.file.getvalue().rstrip().endswith("after")
