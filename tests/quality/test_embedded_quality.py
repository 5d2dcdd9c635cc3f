"""What the gates say on the embedded model: of honest methods, of mutants, and of one that only
looks good on made-up data."""

import pytest
import torch

from attnbench.methods.registry import parse
from attnbench.models.sources import EMBEDDED_FOLDER, load
from attnbench.protocol.bands import Gate
from attnbench.quality.candidates import Candidate, Roster
from attnbench.quality.figures import figures
from attnbench.quality.gates import Quality, judge
from attnbench.quality.levels import QualityCounts
from attnbench.quality.local import LocalGate
from attnbench.quality.made_up import MADE_UP, RANDOM_WEIGHTS, made_up_trace
from attnbench.quality.mapped import kept_map_of
from attnbench.quality.run import run_quality
from tests.quality.mutants import (
    MUTANTS,
    AttendsToTheSinkAlone,
    DropsOneHeadOfOneLayer,
    ForgetsTheMask,
    HalvesItsOutput,
    Int8ByGroups,
    Mutant,
    SwapsOneLayer,
    TurnsAHeadNowAndThen,
)
from tests.third_party.mean_axis import MeanAxis

CPU = torch.device("cpu")
EVERY_GATE = QualityCounts(context=256, windows=5, steps=4, haystacks=2)
ONE_WINDOW = QualityCounts(context=512, windows=1, steps=4)
FAMILIES = {"sdpa": "exact", "zero_cost": "control", "oracle_topk": "control"}

pytestmark = pytest.mark.skipif(
    not (EMBEDDED_FOLDER / "model.safetensors").exists(),
    reason="the weights of the embedded model are not here yet",
)


@pytest.fixture(scope="module")
def model():
    return load("embedded", torch.float32, CPU, seed=0)


def test_what_a_selection_keeps_is_mapped_over_the_text_that_it_read(model):
    counts = QualityCounts(context=256, windows=1, steps=2, logit_steps=0, kept_map=True)
    method = parse("aether,variant=scaled,block=16,threshold=share,value=0.2,impl=torch")
    roster = Roster([Candidate("aether", method), Candidate("sdpa", parse("sdpa"))])
    found = run_quality(
        model, roster, counts, dtype=torch.float32, device=CPU, seed=0, progress=lambda *_: None
    )
    said = kept_map_of(found.arms["aether"].arrays())
    assert (said.tokens, said.steps, len(said.hundredths[0])) == (258, 2, 17)
    assert 0.15 < said.share < 0.5
    assert said.outside < 1e-6
    assert said.most[0].share > said.least[0].share == 0
    assert said.most[0].text in " ".join(found.text.text.split())
    assert kept_map_of(found.arms["sdpa"].arrays()) is None


def verdicts_on(model, counts, methods, *, seed=0):
    samples = run_quality(
        model,
        Roster([Candidate(name, method.resolved(CPU)) for name, method in methods.items()]),
        counts,
        dtype=torch.float32,
        device=CPU,
        seed=seed,
        progress=lambda *_: None,
    )
    assert not samples.failures
    return {
        label: judge(arm, FAMILIES.get(label, "approximate"), "trained")
        for label, arm in samples.arms.items()
    }


@pytest.fixture(scope="module")
def verdicts(model):
    built_in = {name: parse(name) for name in ("sdpa", "int4_kv", "oracle_topk", "zero_cost")}
    mutants = {mutant.__name__: Mutant(mutant) for mutant in (*MUTANTS, Int8ByGroups)}
    return verdicts_on(model, ONE_WINDOW, {**built_in, **mutants, "mean_axis": MeanAxis()})


def test_an_honest_int8_passes_every_gate(model):
    (verdict,) = verdicts_on(model, EVERY_GATE, {"int8_kv": parse("int8_kv")}).values()
    assert verdict.gates_not_run == ()
    assert (verdict.verdict, verdict.reason) == (Quality.PASS, "all-gates-passed")
    assert verdict.figures["cosine_mean"] > 0.999
    assert verdict.figures["needle_hits_sdpa"] == 1


def test_four_bits_pass_the_gates_of_outputs_and_are_not_exact(verdicts):
    bands = verdicts["int4_kv"].bands
    of_outputs = (Gate.MEAN_COSINE, Gate.P1_COSINE, Gate.LOWEST_HEAD, Gate.NORM_RATIO)
    assert {bands[gate] for gate in of_outputs} == {"PASS"}
    assert "KILL" not in bands.values()
    assert 0.99 < verdicts["int4_kv"].figures["cosine_mean"] < 0.9999


def test_the_oracle_as_a_method_scores_what_the_null_model_of_that_name_does(verdicts):
    figures = verdicts["oracle_topk"].figures
    assert figures["cosine_mean"] == pytest.approx(figures["null_oracle"], abs=1e-3)
    assert figures["null_random"] + 0.1 < figures["cosine_mean"] < 0.999
    assert not verdicts["oracle_topk"].counts


def test_sdpa_equals_itself_on_the_embedded_model(verdicts):
    assert verdicts["sdpa"].figures["cosine_min"] == pytest.approx(1, abs=1e-6)
    assert verdicts["sdpa"].reason == "gates-not-run"
    assert set(verdicts["sdpa"].bands.values()) == {"PASS"}


def test_int8_in_groups_fails_no_gate_until_its_scales_are_off_by_one(verdicts):
    assert set(verdicts["Int8ByGroups"].bands.values()) == {"PASS"}


def test_no_attention_at_all_is_killed(verdicts):
    assert verdicts["zero_cost"].verdict is Quality.KILL
    assert verdicts["zero_cost"].figures["kl_mean_nats"] > 0.2


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_killed(verdicts, mutant):
    assert verdicts[mutant.__name__].verdict is Quality.KILL


@pytest.mark.parametrize(
    ("mutant", "blind", "sees"),
    [
        (HalvesItsOutput, Gate.MEAN_COSINE, Gate.NORM_RATIO),
        (ForgetsTheMask, Gate.LOWEST_HEAD, Gate.NORM_RATIO),
        (SwapsOneLayer, Gate.LOWEST_HEAD, Gate.LOGIT_KL),
        (SwapsOneLayer, Gate.NORM_RATIO, Gate.TOP1),
    ],
)
def test_where_one_gate_is_blind_another_sees(verdicts, mutant, blind, sees):
    bands = verdicts[mutant.__name__].bands
    assert (bands[blind], bands[sees]) == ("PASS", "KILL")


def test_the_mean_does_not_kill_for_one_head_of_one_layer_and_the_lowest_head_does(verdicts):
    verdict = verdicts[DropsOneHeadOfOneLayer.__name__]
    assert verdict.bands["mean-cosine"] != "KILL"
    assert verdict.bands["lowest-head"] == "KILL"
    assert (verdict.worst_layer, verdict.worst_head) == (2, 1)


def test_a_head_that_is_rarely_wrong_and_then_badly_is_seen_by_the_first_percentile_alone(model):
    counts = QualityCounts(context=256, windows=5, steps=16)
    turning = {"turning": Mutant(TurnsAHeadNowAndThen)}
    (verdict,) = verdicts_on(model, counts, turning).values()
    others = {band for gate, band in verdict.bands.items() if gate != "p1-cosine"}
    assert (verdict.bands["p1-cosine"], others) == ("KILL", {"PASS"})
    assert len(verdict.bands) == 9


def test_tokens_that_little_attention_goes_to_are_missed_by_the_needle_gate_alone(model):
    counts = QualityCounts(context=1024, windows=1, steps=4, haystacks=2)
    window = {"sink_window": parse("sink_window,window=768")}
    (verdict,) = verdicts_on(model, counts, window, seed=3).values()
    assert verdict.figures["cosine_mean"] > 0.998
    others = {band for gate, band in verdict.bands.items() if gate != "needle"}
    assert (verdict.bands["needle"], others) == ("KILL", {"PASS"})


def test_a_selection_stands_between_random_tokens_and_the_oracle(verdicts):
    found = verdicts[AttendsToTheSinkAlone.__name__].figures
    assert found["null_random"] < found["cosine_mean"] < found["null_oracle"]
    assert found["skill"] < 0.6


def test_what_is_excellent_on_made_up_data_is_killed_on_a_trained_model(verdicts):
    """A static selection along the mean key: its authors' generator, then a real model."""
    roster = Roster([Candidate("mean_axis", MeanAxis())])
    gate = LocalGate(roster, seed=0)
    gate.add_window([made_up_trace(42)], lambda _: None)
    samples = gate.arrays()["mean_axis"].pack()
    made_up = judge(samples, "approximate", "random")
    assert made_up.figures["cosine_mean"] > 0.999
    assert made_up.figures["cosine_lowest_head"] > 0.99
    assert made_up.figures["skill"] > 0.9
    assert (made_up.verdict, made_up.reason) == (Quality.NOT_EVALUATED, "random-weights")
    real = verdicts["mean_axis"]
    assert real.verdict is Quality.KILL
    assert real.figures["cosine_mean"] < 0.8
    assert real.figures["skill"] < 0.5


def test_the_same_method_is_shown_on_made_up_data_random_weights_and_the_trained_model(model):
    few = QualityCounts(context=256, windows=2, steps=4, logit_steps=0, contrast=True)
    roster = Roster([Candidate("mean_axis", MeanAxis())])
    found = run_quality(
        model,
        roster,
        few,
        dtype=torch.float32,
        device=CPU,
        seed=0,
        progress=lambda *_: None,
    )
    places = {MADE_UP: found.contrast[MADE_UP], RANDOM_WEIGHTS: found.contrast[RANDOM_WEIGHTS]}
    means = {
        place: figures(arms["mean_axis"].arrays())["cosine_mean"] for place, arms in places.items()
    }
    trained = figures(found.arms["mean_axis"].arrays())["cosine_mean"]
    assert means[MADE_UP] > 0.999
    assert means[RANDOM_WEIGHTS] > trained + 0.1
    assert trained < 0.85
