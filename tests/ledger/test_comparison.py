from __future__ import annotations

import math
import subprocess

import pytest

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Ledger, Reason, Status, diff, retract
from attnbench.ledger.comparison import ratio_of_ratios
from attnbench.ledger.entry import Estimate, model_name
from attnbench.ledger.sides import latest_two, run_and_earlier, side_of
from tests.ledger.samples import cell, record_run, result_body


def compare(ledger: Ledger, before: str, after: str):
    return diff(side_of(before, ledger), side_of(after, ledger))


def add(ledger: Ledger, run: str, arm: str, **changes):
    return ledger.append(Kind.RESULT, result_body(run, arm, **changes))


def test_half_widths_of_two_symmetric_log_ratios_add_in_quadrature():
    def estimate(value: float, half_width: float) -> Estimate:
        spread = math.exp(half_width)
        return Estimate(value, value / spread, value * spread, 0.95)

    ratio = ratio_of_ratios(estimate(1.2, 0.03), estimate(1.5, 0.04))
    assert ratio.estimate == pytest.approx(1.25)
    assert ratio.low == pytest.approx(1.25 * math.exp(-0.05))
    assert ratio.high == pytest.approx(1.25 * math.exp(0.05))
    assert ratio.level == 0.95


def test_each_limit_takes_the_half_widths_that_face_it():
    certain = Estimate(1.0, 1.0, 1.0, 0.95)
    skewed = Estimate(2.0, 1.0, 3.0, 0.95)
    upper = ratio_of_ratios(certain, skewed)
    assert (upper.low, upper.high) == pytest.approx((1.0, 3.0))
    lower = ratio_of_ratios(skewed, certain)
    assert (lower.low, lower.high) == pytest.approx((1 / 3, 1.0))


@pytest.mark.parametrize("other", [Estimate(1.1), Estimate(1.1, 1.0, 1.2, 0.99)])
def test_without_two_intervals_of_one_level_there_is_no_interval(other):
    ratio = ratio_of_ratios(Estimate(1.0, 0.9, 1.1, 0.95), other)
    assert ratio == Estimate(pytest.approx(1.1))


def test_two_runs_are_aligned_by_cell_and_arm(ledger):
    for run, median in (("aa", 2.0), ("bb", 1.5)):
        for arm in ("sdpa", "int8_kv"):
            add(ledger, run, arm, latency_ms={"median": median})
    add(ledger, "bb", "new_arm")
    outcome = compare(ledger, "aa", "bb")
    assert outcome.not_comparable == ""
    assert [change.arm for change in outcome.changes] == ["sdpa", "int8_kv", "new_arm"]
    assert outcome.changes[0].latency_ratio == pytest.approx(0.75)
    assert outcome.changes[2].before is None


def test_verdict_environment_method_and_baseline_changes_are_named(ledger):
    add(ledger, "aa", "int8_kv")
    add(
        ledger,
        "bb",
        "int8_kv",
        method="int8_kv,impl=torch",
        baseline="sdpa,backend=cudnn",
        source_sha256="ff",
        verdict={"latency": "INCONCLUSIVE", "quality": "PASS"},
        environment={"gpu": "cpu", "torch": "2.14", "governor": "powersave"},
    )
    outcome = compare(ledger, "aa", "bb")
    (change,) = outcome.changes
    assert change.verdict_changes == {"latency": ("FASTER", "INCONCLUSIVE")}
    assert change.notes == (
        "method int8_kv,impl=triton → int8_kv,impl=torch",
        "baseline sdpa,backend=flash → sdpa,backend=cudnn",
        "the method's source changed",
    )
    named = {(it.what, it.before, it.after) for it in outcome.circumstances}
    assert named == {
        ("environment.governor", "not recorded", "powersave"),
        ("environment.torch", "2.13", "2.14"),
    }


def test_an_arm_that_was_renamed_is_found_by_its_method(ledger):
    add(ledger, "aa", "a", method="m")
    add(ledger, "aa", "b", method="n")
    add(ledger, "bb", "c", method="m")
    add(ledger, "bb", "b", method="n")
    changes = compare(ledger, "aa", "bb").changes
    assert [(c.before.arm, c.after.arm) for c in changes] == [("a", "c"), ("b", "b")]


def test_results_that_lack_figures_are_compared_without_them(ledger):
    bare = {"run": "aa", "cell": cell(), "arm": "x", "method": "x", "failure": "out of memory"}
    ledger.append(Kind.RESULT, bare)
    add(ledger, "bb", "x")
    (change,) = compare(ledger, "aa", "bb").changes
    assert change.latency_ratio is None
    assert change.speedup_ratio is None
    assert change.verdict_changes == {"latency": ("", "FASTER"), "quality": ("", "PASS")}


def test_retracted_and_tainted_results_are_marked(ledger):
    session, _ = record_run(ledger, "aa")
    _, result = record_run(ledger, "bb")
    retract(ledger, session.id, Reason.ENVIRONMENT, "hot")
    retract(ledger, result.id, Reason.DUPLICATE, "of aa")
    (change,) = compare(ledger, "aa", "bb").changes
    assert change.before.status is Status.TAINTED
    assert change.after.status is Status.RETRACTED


def test_of_several_results_of_one_arm_the_last_live_one_counts(ledger):
    add(ledger, "aa", "x", latency_ms={"median": 1.0})
    kept = add(ledger, "aa", "x", latency_ms={"median": 2.0})
    wrong = add(ledger, "aa", "x", latency_ms={"median": 3.0})
    retract(ledger, wrong.id, Reason.MEASUREMENT_ERROR, "the clock")
    add(ledger, "bb", "x")
    (change,) = compare(ledger, "aa", "bb").changes
    assert change.before.id == kept.id


def test_different_cells_are_not_compared_and_what_differs_is_said(ledger):
    add(ledger, "aa", "x")
    add(ledger, "bb", "x", cell=cell(context=32768, batch=1))
    outcome = compare(ledger, "aa", "bb")
    assert outcome.changes == ()
    assert outcome.not_comparable == "their cells differ: batch 4 → 1, context 8192 → 32768"


def test_cells_of_one_side_alone_are_listed(ledger):
    add(ledger, "aa", "x")
    add(ledger, "bb", "x")
    add(ledger, "bb", "x", cell=cell(context=1))
    outcome = compare(ledger, "aa", "bb")
    assert len(outcome.changes) == 1
    assert outcome.only_after == (cell(context=1),)


def test_two_single_results_of_one_cell_are_compared_whatever_their_arms(ledger):
    first, second = add(ledger, "aa", "x"), add(ledger, "aa", "y")
    (change,) = compare(ledger, first.id, second.id).changes
    assert change.notes[0] == "arm x → y"


def test_the_latest_run_is_compared_with_the_one_before_it_of_the_same_cells(ledger):
    add(ledger, "aa", "x")
    add(ledger, "bb", "x")
    add(ledger, "cc", "x", cell=cell(context=1))
    add(ledger, "dd", "x")
    before, after = latest_two(ledger)
    assert (before.label, after.label) == ("run bb", "run dd")


def test_where_there_is_no_earlier_run_of_the_same_cells_it_says_so(ledger):
    ledger.append(Kind.CLAIM, {})
    assert latest_two(ledger) == "there is no run with results yet"
    add(ledger, "aa", "x", cell=cell(context=1))
    add(ledger, "bb", "x")
    assert "run bb is the first one of its cells" in latest_two(ledger)


def test_a_kernel_configuration_that_is_not_the_same_is_named(ledger):
    for run, kernel in (("aa", {"splits": 4, "ring": 0}), ("bb", {"splits": 8, "ring": 0})):
        add(ledger, run, "x", kernel=kernel)
        add(ledger, run, "y")
    x, y = compare(ledger, "aa", "bb").changes
    assert x.notes == ("kernel: splits 4 → 8",)
    assert y.notes == ()


def test_a_run_alone_is_compared_with_the_latest_of_its_cells_before_it(ledger):
    for run in ("aa", "bb", "cc", "dd"):
        add(ledger, run, "x", cell=cell(context=1 if run == "bb" else 2))
    before, after = run_and_earlier("cc", ledger)
    assert (before.label, after.label) == ("run aa", "run cc")
    assert "run bb is the first one of its cells" in run_and_earlier("bb", ledger)


def test_what_is_no_run_and_stands_alone_is_refused_with_what_to_give(ledger):
    result = add(ledger, "aa", "x")
    with pytest.raises(UsageError, match="is one result") as refusal:
        run_and_earlier(result.id, ledger)
    assert "Its run is aa" in refusal.value.hint
    with pytest.raises(UsageError, match="whole ledger"):
        run_and_earlier(str(ledger.path), ledger)


def test_a_run_without_results_is_not_comparable(ledger):
    ledger.append(Kind.SESSION, {"run": "cafe", "phase": "opened", "session": 0, "cell": cell()})
    add(ledger, "bb", "x")
    assert compare(ledger, "cafe", "bb").not_comparable == "run cafe holds no results"


def test_two_files_and_a_git_revision_of_one_can_be_compared(ledger, monkeypatch):
    folder = ledger.path.parent
    add(ledger, "aa", "x", latency_ms={"median": 2.0})
    monkeypatch.chdir(folder)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True, cwd=folder)
    add(ledger, "bb", "x", latency_ms={"median": 1.0})
    (change,) = compare(ledger, "HEAD:ledger.jsonl", str(ledger.path)).changes
    assert change.latency_ratio == pytest.approx(0.5)
    with pytest.raises(UsageError, match="git cannot show"):
        side_of("HEAD:elsewhere.jsonl", ledger)


def of_a_file(model: str, content: str) -> dict:
    return {"cell": cell(model=model), "environment": {"model_identity": content}}


def test_a_models_file_is_one_wherever_it_lies_and_another_where_its_weights_are(
    ledger,
):
    add(ledger, "aa", "x", **of_a_file("/tmp/some/m.gguf", "ab" * 32))
    add(ledger, "bb", "x", **of_a_file("m.gguf", "ab" * 32))
    add(ledger, "cc", "x", **of_a_file("m.gguf", "cd" * 32))
    assert len(compare(ledger, "aa", "bb").changes) == 1
    before, after = run_and_earlier("bb", ledger)
    assert (before.label, after.label) == ("run aa", "run bb")
    assert "holds other weights" in compare(ledger, "bb", "cc").not_comparable
    assert "is the first one of its cells" in run_and_earlier("cc", ledger)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/tmp/some/m.gguf", "m.gguf"),
        ("models/m.gguf", "m.gguf"),
        ("/data/llama/", "llama"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("preset:llama-3.2-1b", "preset:llama-3.2-1b"),
        ("embedded", "embedded"),
    ],
)
def test_a_model_is_called_by_its_name_without_the_path_to_it(model, name):
    assert model_name(model) == name
