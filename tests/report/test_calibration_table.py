from __future__ import annotations

import msgspec
import pytest
from msgspec import UNSET
from rich.console import Console

from attnbench.protocol.calibration import findings
from attnbench.protocol.calibration_result import CalibrationResult
from attnbench.protocol.cell import Cell, Mode, Scope
from attnbench.protocol.order_effect import BLOCKS, SEQUENTIAL, bias
from attnbench.protocol.presets import CANONICAL
from attnbench.report.calibration_table import calibration_tables
from tests.calibration.instrument import calibrated
from tests.protocol.test_order_effect import sessions

RESULT = CalibrationResult(
    calibration="instrument",
    run="3f9a81c2d4e5",
    cell=Cell(
        model="preset:llama-3.2-1b",
        context=32768,
        batch=4,
        dtype="bfloat16",
        scope=Scope.ATTENTION,
        mode=Mode.GRAPH,
        device="a GPU",
    ),
    arms={"A": "waiting,inner=flash_decode", "X": "waiting,inner=sdpa"},
    protocol=msgspec.to_builtins(CANONICAL),
    environment={},
    sources={},
)


def shown(**changes) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(calibration_tables(msgspec.structs.replace(RESULT, **changes)))
    return captured.get()


def test_the_table_says_what_was_waited_measured_and_found():
    told = findings(calibrated(30))
    out = shown(findings=told)
    assert "preset:llama-3.2-1b · 32768 tokens" in out
    assert "A: waiting,inner=flash_decode (1." in out
    (row,) = (line for line in out.splitlines() if line.strip().startswith("+5%"))
    assert "50.00 µs" in row
    assert "10 of 10" in row
    assert "10 SLOWER" in row
    assert f"of {told.false_positives.trials} (" in out  # of the sham, with their interval
    assert f"of {told.false_positives_of_pairs.trials} (" in out
    assert "the harness's own share" in out
    assert "50%" in out
    assert "4 runs of 5 are right" in out


@pytest.mark.parametrize("count", [1, 2])
def test_what_too_few_sessions_cannot_say_is_a_dash(count):
    out = shown(findings=findings(calibrated(count)))
    assert "no run of three sessions" in out
    assert "0 of 0" in out


def test_void_sessions_are_named():
    seen = calibrated(3)
    found = msgspec.structs.replace(findings(seen), void={"2": "throttled: at 3 of 9 readings"})
    assert "session 2 does not count where it matters: throttled: at 3" in shown(findings=found)


def test_unknown_phases_are_said_to_be_unknown():
    found = msgspec.structs.replace(findings(calibrated(3)), phases_s={}, harness_share=UNSET)
    assert "where a session's time goes is not known" in shown(findings=found)


def test_the_order_effect_shows_both_ways_of_measuring():
    both = tuple(bias(how, sessions(how), 0.95) for how in (SEQUENTIAL, BLOCKS))
    out = shown(order_effect=both)
    assert "first A, then B, 5 warm-up steps" in out
    assert "randomised blocks, 50 warm-up steps" in out
    assert "1.08" in out
    assert "sequential: 1.08" in out
