"""`attnbench parity` and `attnbench methods`: what they print and how they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attnbench.errors import Exit

EXAMPLE = Path(__file__).parents[1] / "third_party" / "my_window.py"
MUTANT = "tests.methods.mutants:Mutant"


def test_parity_passes_a_correct_method_with_zero_and_a_line_of_figures(attnbench):
    outcome = attnbench("parity", "sdpa")
    assert outcome.code == Exit.DONE
    line = next(line for line in outcome.out.splitlines() if line.startswith("sdpa "))
    assert line.split()[1] == "passed"


def test_parity_leaves_with_10_and_names_the_failed_check_when_a_method_is_wrong(attnbench):
    outcome = attnbench("parity", "zero_cost", f"{MUTANT},layer_name=UsesTheDefaultScale")
    assert outcome.code == Exit.FALSIFIED
    assert "FAILED mutant,layer_name=UsesTheDefaultScale: parity N=1 " in outcome.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have the backend")
def test_parity_leaves_with_12_when_no_check_could_run(attnbench):
    outcome = attnbench("parity", "sdpa,backend=cudnn")
    assert outcome.code == Exit.VOID
    assert "skipped" in outcome.out
    assert "does not run on cpu" in outcome.out


def test_parity_leaves_with_2_and_the_nearest_name_for_a_method_that_is_not_there(attnbench):
    outcome = attnbench("parity", "flash_decod")
    assert outcome.code == Exit.USAGE
    assert "did you mean flash_decode?" in outcome.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is interpreted on a GPU")
def test_parity_says_that_kernels_are_interpreted_and_shows_skips_as_skips(attnbench):
    outcome = attnbench("parity", "zero_cost")
    assert "TRITON_INTERPRET=1" in outcome.out
    assert "there is no CUDA GPU here" in outcome.out


def test_parity_json_holds_every_check_and_nothing_else_is_printed(attnbench):
    outcome = attnbench("parity", "uniform_mean", "--json")
    data = json.loads(outcome.out)
    (method,) = data["methods"]
    assert data["exit_code"] == outcome.code == Exit.DONE
    assert method["method"] == "uniform_mean"
    outcomes = {check["outcome"] for check in method["checks"]}
    assert outcomes == {"passed", "skipped"}
    assert sum(check["name"].startswith("parity") for check in method["checks"]) == 21


def test_parity_json_of_a_wrong_method_stays_json_when_a_figure_is_infinite(attnbench):
    outcome = attnbench("parity", f"{MUTANT},layer_name=OverflowsOnLargeScores", "--json")
    assert outcome.code == Exit.FALSIFIED
    json.loads(outcome.out, parse_constant=pytest.fail)


@pytest.mark.parametrize("place", [str(EXAMPLE), "tests.third_party.my_window"])
def test_parity_runs_a_third_party_method_from_a_file_and_from_a_module(attnbench, place):
    outcome = attnbench("parity", f"{place}:MyWindow,recent=20", "--json")
    data = json.loads(outcome.out)
    assert outcome.code == Exit.DONE
    assert data["methods"][0]["method"] == "my_window,recent=20"


def test_parity_full_takes_every_shape(attnbench):
    outcome = attnbench("parity", "zero_cost", "--full", "--json")
    checks = json.loads(outcome.out)["methods"][0]["checks"]
    assert sum(check["name"].startswith("parity") for check in checks) == 56 * 3


def test_parity_of_an_empty_name_is_a_usage_error(attnbench):
    outcome = attnbench("parity", "")
    assert outcome.code == Exit.USAGE
    assert "'' names no method" in outcome.err


def test_methods_list_names_every_method_with_its_family(attnbench):
    outcome = attnbench("methods", "list", "--json")
    families = {found["method"]: found["family"] for found in json.loads(outcome.out)}
    assert families["flash_decode"] == "exact"
    assert families["int8_kv"] == "approximate"
    assert families["zero_cost"] == "control"
    assert "sink_window" in attnbench("methods", "list").out


def test_methods_show_tells_the_parameters_as_they_are_written(attnbench):
    outcome = attnbench("methods", "show", "sink_window,window=64")
    assert "sinks=4,window=64,impl=triton|torch" in outcome.out
    assert "arXiv:2309.17453" in outcome.out


def test_methods_show_of_a_file_gives_its_hash(attnbench):
    outcome = attnbench("methods", "show", f"{EXAMPLE}:MyWindow", "--json")
    found = json.loads(outcome.out)
    assert found["file"] == str(EXAMPLE)
    assert len(found["sha256"]) == 64
