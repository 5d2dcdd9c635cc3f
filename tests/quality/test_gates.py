import dataclasses
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from attnbench.errors import AttnbenchError, UsageError
from attnbench.protocol.bands import DEFAULT_BANDS, Band, Bands, Gate, changed_bands
from attnbench.quality.figures import figures
from attnbench.quality.gates import (
    Quality,
    QualityVerdict,
    gate_bands,
    judge,
    not_evaluated,
    random_weights,
)
from attnbench.quality.samples import GateArrays, GateSamples

W, L, S, H = 2, 3, 4, 5


def perfect(**changed) -> GateArrays:
    """Samples of an arm that equals SDPA in a model whose full-attention layers are 1, 4, 7."""
    ones = np.ones((W, L, S, H), np.float32)
    by_head = np.ones((W, L, H), np.float32)
    arrays = GateArrays(
        context=np.array([512]),
        layers=np.array([1, 4, 7]),
        deterministic=np.array([True]),
        cosine=ones,
        relative_l2=ones * 0,
        norm_ratio=ones,
        kept_share=np.full((W, L, S), 0.25, np.float32),
        floor_cosine=by_head,
        floor_relative_l2=by_head * 0,
        null_uniform=by_head * 0.3,
        null_recent=by_head * 0.4,
        null_random=by_head * 0.5,
        null_oracle=by_head,
    )
    return dataclasses.replace(arrays, **changed)


def spoiled(name: str, where: tuple, value: float) -> GateArrays:
    samples = getattr(perfect(), name).copy()
    samples[where] = value
    return perfect(**{name: samples})


def verdict_on(arrays: GateArrays, family="approximate", weights="trained") -> QualityVerdict:
    return judge(arrays.pack(), family, weights)


def test_figures_are_those_computed_by_hand():
    cosine = np.linspace(0, 1, W * L * S * H, dtype=np.float32).reshape(W, L, S, H)
    found = figures(perfect(cosine=cosine))
    assert found["cosine_mean"] == pytest.approx(0.5)
    assert found["cosine_p5"] == pytest.approx(0.05)
    assert found["cosine_p1"] == pytest.approx(0.01)
    assert found["cosine_min"] == 0
    # The first head of the first layer: index 0, 5, 10, 15 of 119 in window 0, 60 more in window 1.
    assert found["cosine_lowest_head"] == pytest.approx((7.5 + 67.5) / 2 / 119)
    assert found["kept_share"] == 0.25
    assert "kl_mean_nats" not in found


def test_the_worst_window_and_step_of_the_worst_head_are_named():
    cosine = spoiled("cosine", np.s_[:, 2, :, 3], 0.7).cosine
    cosine[1, 2, 3, 3] = 0.1
    cosine[0, 0, 2, 0] = 0.0  # lower still, in a head that is better on the whole
    verdict = verdict_on(perfect(cosine=cosine))
    assert (verdict.worst_layer, verdict.worst_head) == (7, 3)
    assert (verdict.worst_window, verdict.worst_step) == (1, 3)


def test_where_logits_are_farthest_is_named():
    kl = np.zeros((W, 64), np.float32)
    kl[1, 40] = 3
    verdict = verdict_on(perfect(kl_nats=kl, agree=kl + 1, nll_nats=kl, nll_sdpa_nats=kl))
    assert (verdict.worst_logit_window, verdict.worst_logit_step) == (1, 40)


def test_the_place_of_a_nan_is_named():
    verdict = verdict_on(spoiled("cosine", (1, 2, 3, 4), np.nan))
    assert (verdict.worst_layer, verdict.worst_head) == (7, 4)
    assert (verdict.worst_window, verdict.worst_step) == (1, 3)


def test_skill_has_an_interval_over_windows_of_text():
    cosine = perfect().cosine.copy()
    cosine[0], cosine[1] = 0.8, 0.6  # skills .6 and .2, between random at .5 and oracle at 1
    found = figures(perfect(cosine=cosine))
    assert found["skill"] == pytest.approx(0.4)
    assert found["skill_high"] - 0.4 == pytest.approx(12.706 * 0.2, rel=1e-3)
    assert "skill_low" not in figures(
        perfect(
            cosine=cosine[:1],
            null_random=perfect().null_random[:1],
            null_oracle=perfect().null_oracle[:1],
        )
    )


def test_skill_is_the_place_between_random_and_oracle():
    assert figures(perfect())["skill"] == 1  # as good as the oracle
    as_random = perfect(cosine=np.full((W, L, S, H), 0.5, np.float32))
    assert figures(as_random)["skill"] == 0


def test_skill_is_absent_where_there_is_nothing_to_select():
    assert "skill" not in figures(perfect(null_random=perfect().null_oracle))


def test_an_arm_that_equals_sdpa_is_capped_by_the_gates_that_were_not_run():
    verdict = verdict_on(perfect())
    assert verdict.verdict is Quality.MARGINAL
    assert verdict.reason == "gates-not-run"
    assert verdict.gates_not_run == ("logit-kl", "top-1", "perplexity", "needle")
    assert set(verdict.gates_run) == set(Gate) - set(verdict.gates_not_run)
    assert (verdict.windows, verdict.steps, verdict.context) == (W, S, 512)


def test_the_worst_head_is_named_by_the_number_of_its_layer_in_the_model():
    verdict = verdict_on(spoiled("cosine", np.s_[:, 2, :, 3], 0.7))
    assert (verdict.worst_layer, verdict.worst_head) == (7, 3)
    assert verdict.figures["cosine_lowest_head"] == pytest.approx(0.7)


def test_one_dropped_head_is_killed_though_the_mean_hides_it():
    verdict = verdict_on(spoiled("cosine", np.s_[:, 1, :, 0], 0))
    assert verdict.figures["cosine_mean"] > 0.93
    assert verdict.verdict is Quality.KILL
    bands = gate_bands(verdict.figures)
    assert bands[Gate.LOWEST_HEAD] is Band.KILL
    assert (verdict.worst_layer, verdict.worst_head) == (4, 0)


def test_a_halved_output_is_killed_by_its_norm_though_its_cosine_is_one():
    verdict = verdict_on(perfect(norm_ratio=np.full((W, L, S, H), 0.5, np.float32)))
    assert verdict.figures["cosine_mean"] == 1
    assert (verdict.verdict, verdict.reason) == (Quality.KILL, "norm-ratio")
    assert verdict.worst_gate == "norm-ratio"


@pytest.mark.parametrize(("ratio", "head"), [(0.5, 2), (1.9, 2), (0.0, 2), (1.2, 2)])
def test_the_worst_norm_ratio_is_the_one_farthest_from_one_in_either_direction(ratio, head):
    samples = spoiled("norm_ratio", np.s_[:, 0, :, head], ratio).norm_ratio
    samples[:, 1, :, 1] = 1.1
    verdict = verdict_on(perfect(norm_ratio=samples))
    assert verdict.worst_gate == "norm-ratio"
    assert (verdict.worst_layer, verdict.worst_head) == (1, head)


def test_a_single_nan_kills_and_enters_no_other_figure():
    verdict = verdict_on(spoiled("cosine", (0, 0, 0, 0), np.nan))
    assert (verdict.verdict, verdict.reason) == (Quality.KILL, "non-finite")
    assert verdict.figures["non_finite"] == 1
    assert verdict.figures["cosine_mean"] == 1


def test_nothing_but_nan_still_gives_a_verdict_that_json_can_hold():
    empty = np.full((W, L, S, H), np.nan, np.float32)
    verdict = verdict_on(perfect(cosine=empty, relative_l2=empty, norm_ratio=empty))
    assert (verdict.verdict, verdict.reason) == (Quality.KILL, "non-finite")
    assert all(np.isfinite(list(verdict.figures.values())))
    assert "cosine_mean" not in verdict.figures
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=QualityVerdict) == verdict


def test_an_arm_that_differs_from_itself_is_marginal():
    verdict = verdict_on(perfect(deterministic=np.array([False])))
    assert (verdict.verdict, verdict.reason) == (Quality.MARGINAL, "non-deterministic")


PASS, MARGINAL, KILL = Band.PASS, Band.MARGINAL, Band.KILL


@pytest.mark.parametrize(
    ("gate", "figure", "edges"),
    [
        (
            Gate.MEAN_COSINE,
            "cosine_mean",
            {0.99: PASS, 0.9899: MARGINAL, 0.95: MARGINAL, 0.9499: KILL},
        ),
        (
            Gate.P1_COSINE,
            "cosine_p1",
            {0.9: PASS, 0.8999: MARGINAL, 0.6: MARGINAL, 0.5999: KILL},
        ),
        (
            Gate.LOWEST_HEAD,
            "cosine_lowest_head",
            {0.8: PASS, 0.7999: MARGINAL, 0.5: MARGINAL, 0.4999: KILL},
        ),
        (
            Gate.NORM_RATIO,
            "norm_ratio_low",
            {0.9: PASS, 0.8999: MARGINAL, 0.7: MARGINAL, 0.6999: KILL},
        ),
        (
            Gate.NORM_RATIO,
            "norm_ratio_high",
            {1.1: PASS, 1.1001: MARGINAL, 1.4: MARGINAL, 1.4001: KILL},
        ),
        (
            Gate.LOGIT_KL,
            "kl_mean_nats",
            {0.02: PASS, 0.0201: MARGINAL, 0.2: MARGINAL, 0.2001: KILL},
        ),
        (
            Gate.TOP1,
            "top1_agreement",
            {0.95: PASS, 0.9499: MARGINAL, 0.8: MARGINAL, 0.7999: KILL},
        ),
        (
            Gate.PERPLEXITY,
            "perplexity_change",
            {-0.2: PASS, 0.01: PASS, 0.0101: MARGINAL, 0.05: MARGINAL, 0.0501: KILL},
        ),
        (Gate.NEEDLE, "needle_change", {-0.05: PASS, -0.1: MARGINAL, -0.15: MARGINAL, -0.2: KILL}),
        (Gate.NON_FINITE, "non_finite", {0: PASS, 1: KILL}),
        (Gate.NON_DETERMINISTIC, "deterministic", {1: PASS, 0: MARGINAL}),
    ],
)
def test_bands_at_their_edges(gate, figure, edges):
    good = {"norm_ratio_low": 1.0, "norm_ratio_high": 1.0}
    found = {value: gate_bands({**good, figure: value})[gate] for value in edges}
    assert found == edges


def test_every_gate_has_its_bands():
    assert set(Gate) == set(DEFAULT_BANDS)


def with_perplexity(extra: list[float]) -> GateArrays:
    sdpa = np.ones((5, 64), np.float32)
    more = np.array(extra, np.float32)[:, None]
    return perfect(nll_nats=sdpa + more, nll_sdpa_nats=sdpa, kl_nats=sdpa * 0, agree=sdpa)


def test_a_perplexity_that_is_known_too_vaguely_kills_nobody():
    clear = verdict_on(with_perplexity([0.09, 0.08, 0.1, 0.09, 0.08]))
    vague = verdict_on(with_perplexity([0.3, -0.1, 0.2, -0.05, 0.1]))
    assert clear.bands["perplexity"] == "KILL"
    assert vague.figures["perplexity_change"] > 0.05
    assert vague.figures["perplexity_change_low"] < 0.01
    assert (vague.bands["perplexity"], vague.reason) == ("MARGINAL", "perplexity")
    assert "which passes to 0.01" in vague.next_step


def test_a_perplexity_that_is_known_too_vaguely_has_not_passed():
    steady = verdict_on(with_perplexity([0.005, 0.004, 0.006, 0.005, 0.005]))
    vague = verdict_on(with_perplexity([0.05, -0.04, 0.03, -0.03, 0.01]))
    assert steady.bands["perplexity"] == "PASS"
    assert vague.figures["perplexity_change"] < 0.01
    assert (vague.bands["perplexity"], vague.reason) == ("MARGINAL", "perplexity")
    assert "offsets" in vague.next_step
    assert "which kills above 0.05" in vague.next_step


def with_needles(hits: int, hits_sdpa: int, asked: int = 20) -> GateArrays:
    ranks = np.where(np.arange(asked) < hits, 1, 9).astype(np.float32)
    ranks_sdpa = np.where(np.arange(asked) < hits_sdpa, 1, 9).astype(np.float32)
    nats = np.full(asked, 0.5, np.float32)
    return perfect(
        needle_depth=nats,
        needle_nats=nats,
        needle_nats_sdpa=nats,
        needle_rank=ranks,
        needle_rank_sdpa=ranks_sdpa,
    )


@pytest.mark.parametrize(
    ("hits", "band"), [(20, "PASS"), (19, "PASS"), (18, "MARGINAL"), (17, "MARGINAL"), (16, "KILL")]
)
def test_facts_that_are_lost_are_counted_against_those_that_sdpa_finds(hits, band):
    assert verdict_on(with_needles(hits, 20)).bands["needle"] == band


def test_a_model_that_cannot_retrieve_is_not_asked_and_it_is_said_why():
    verdict = verdict_on(with_needles(2, 15))
    assert "needle" in verdict.gates_not_run
    assert verdict.not_run["needle"] == (
        "the model retrieves 15 of 20 facts under SDPA, and it takes 80%"
    )
    assert "needle_change" not in verdict.figures
    assert verdict.figures["needle_hits_sdpa"] == 0.75


def test_every_gate_that_was_not_run_says_why():
    verdict = verdict_on(perfect())
    assert set(verdict.not_run) == set(verdict.gates_not_run)
    assert all(verdict.not_run.values())


def test_all_gates_passed_is_a_pass():
    both = {
        part.name: value
        for arrays in (with_perplexity([0.0] * 5), with_needles(20, 20))
        for part in dataclasses.fields(GateArrays)
        if (value := getattr(arrays, part.name)).shape != getattr(perfect(), part.name).shape
    }
    verdict = verdict_on(perfect(**both))
    assert (verdict.verdict, verdict.reason) == (Quality.PASS, "all-gates-passed")
    assert verdict.next_step == ""


def test_bands_that_a_protocol_registers_decide():
    strict = {
        **DEFAULT_BANDS,
        Gate.MEAN_COSINE: (Bands("cosine_mean", (0.999, np.inf), (0.99, np.inf)),),
    }
    arrays = perfect(cosine=np.full((W, L, S, H), 0.995, np.float32)).pack()
    assert judge(arrays, "exact", "trained").bands["mean-cosine"] == "PASS"
    verdict = judge(arrays, "exact", "trained", strict)
    assert (verdict.verdict, verdict.reason) == (Quality.MARGINAL, "mean-cosine")
    assert "passes from 0.999" in verdict.next_step
    assert changed_bands(strict) == {"mean-cosine": "passes from 0.999 and kills below 0.99"}
    assert changed_bands(DEFAULT_BANDS) == {}


def test_random_weights_are_not_evaluated_though_the_figures_are_there():
    verdict = verdict_on(perfect(), weights="random")
    assert (verdict.verdict, verdict.reason) == (Quality.NOT_EVALUATED, "random-weights")
    assert verdict.figures["cosine_mean"] == 1
    assert random_weights().reason == verdict.reason
    assert not random_weights().figures


def test_a_replacement_method_is_refused_and_told_why():
    with pytest.raises(UsageError, match="trained with") as refused:
        verdict_on(perfect(), family="replacement")
    assert "from scratch" in refused.value.hint


def test_a_control_is_judged_but_does_not_count():
    killed = spoiled("cosine", np.s_[:], 0)
    assert verdict_on(killed, family="control").verdict is Quality.KILL
    assert not verdict_on(killed, family="control").counts
    assert verdict_on(killed, family="exact").counts


def with_null(null: float, cosine: float) -> GateArrays:
    return perfect(
        null_uniform=np.full((W, L, H), null, np.float32),
        cosine=np.full((W, L, S, H), cosine, np.float32),
    )


@pytest.mark.parametrize(
    ("null", "cosine", "verdict", "reason"),
    [
        (0.9997, 1.0, Quality.NOT_EVALUATED, "no-power"),
        (0.9997, 0.96, Quality.NOT_EVALUATED, "no-power"),
        (0.9997, 0.90, Quality.KILL, "mean-cosine"),
        (0.97, 1.0, Quality.MARGINAL, "gates-not-run"),
        (0.97, 0.98, Quality.NOT_EVALUATED, "no-power"),
        (0.90, 0.98, Quality.MARGINAL, "mean-cosine"),
    ],
)
def test_an_arm_has_to_be_in_a_better_band_than_the_mean_of_all_values(
    null, cosine, verdict, reason
):
    found = verdict_on(with_null(null, cosine))
    assert (found.verdict, found.reason) == (verdict, reason)
    assert found.figures["null_uniform"] == pytest.approx(null)


def test_one_head_that_the_mean_of_all_values_cannot_have_gives_the_gates_power():
    null = np.full((W, L, H), 0.9997, np.float32)
    null[:, 1, 2] = 0.3
    assert verdict_on(perfect(null_uniform=null)).reason == "gates-not-run"


def test_what_has_no_power_says_how_near_the_null_model_is_and_what_to_do():
    found = verdict_on(with_null(0.9997, 1.0))
    assert "0.9997" in found.next_step
    assert found.worst_gate is None
    assert not found.counts


def test_what_could_not_run_is_not_evaluated_and_says_what_to_do():
    verdict = not_evaluated("unsupported", "use a GPU")
    assert verdict.verdict is Quality.NOT_EVALUATED
    assert verdict.gates_not_run == tuple(Gate)


def test_compounded_samples_add_their_gates():
    verdict = verdict_on(
        perfect(
            kl_nats=np.full((W, 64), 0.3, np.float32),
            agree=np.ones((W, 64), np.float32),
            nll_nats=np.ones((W, 64), np.float32),
            nll_sdpa_nats=np.ones((W, 64), np.float32),
        )
    )
    assert (verdict.verdict, verdict.reason) == (Quality.KILL, "logit-kl")
    assert "top-1" in verdict.gates_run
    assert "perplexity" in verdict.gates_not_run  # two offsets are too few


def test_perplexity_is_paired_over_at_least_five_offsets():
    sdpa = np.linspace(1, 3, 5 * 64, dtype=np.float32).reshape(5, 64)
    extra = np.array([0, 0.01, 0.02, 0.03, 0.04], np.float32)[:, None]
    samples = {"nll_nats": sdpa + extra, "nll_sdpa_nats": sdpa, "kl_nats": sdpa, "agree": sdpa}
    found = figures(perfect(**samples))
    assert found["perplexity_change"] == pytest.approx(np.exp(0.02) - 1, rel=1e-3)
    half = 2.7764 * np.sqrt(0.00025 / 5)  # Student's t over five offsets
    assert found["perplexity_change_low"] == pytest.approx(np.expm1(0.02 - half), rel=1e-3)
    assert found["perplexity_change_high"] == pytest.approx(np.expm1(0.02 + half), rel=1e-3)
    four = {name: part[:4] for name, part in samples.items()}
    assert "perplexity_change" not in figures(perfect(**four))


def test_samples_come_back_from_their_bytes_and_the_same_samples_give_the_same_bytes():
    arrays = spoiled("cosine", (0, 0, 0, 0), np.nan)
    packed = arrays.pack()
    assert packed == arrays.pack()
    back = msgspec.json.decode(msgspec.json.encode(packed), type=GateSamples).arrays()
    for part in dataclasses.fields(GateArrays):
        np.testing.assert_array_equal(getattr(back, part.name), getattr(arrays, part.name))


@pytest.mark.parametrize("damaged", [b"", b"not an npz", perfect().pack().npz[:-30]])
def test_damaged_samples_are_a_typed_error(damaged):
    with pytest.raises(AttnbenchError, match="not samples"):
        GateSamples(damaged).arrays()


def test_fewer_than_64_steps_do_not_make_a_gate_of_logits():
    few = np.zeros((W, 63), np.float32)
    assert "kl_mean_nats" not in figures(perfect(kl_nats=few, agree=few))
    enough = np.zeros((W, 64), np.float32)
    assert figures(perfect(kl_nats=enough, agree=enough))["kl_mean_nats"] == 0


def test_logits_that_are_not_finite_kill():
    kl = np.zeros((W, 64), np.float32)
    kl[1, 5] = np.nan
    verdict = verdict_on(perfect(kl_nats=kl, agree=kl, nll_nats=kl, nll_sdpa_nats=kl))
    assert (verdict.verdict, verdict.reason) == (Quality.KILL, "non-finite")


def test_the_next_step_says_what_was_found_and_what_passes():
    halved = verdict_on(perfect(norm_ratio=np.full((W, L, S, H), 0.5, np.float32)))
    assert "norm_ratio_low is 0.5, passes from 0.9 to 1.1" in halved.next_step
    dropped = verdict_on(spoiled("cosine", np.s_[:, 1, :, 0], 0))
    assert "passes from 0.99" in dropped.next_step
    broken = verdict_on(spoiled("cosine", (0, 0, 0, 0), np.nan))
    assert "non_finite is 1, should be 0" in broken.next_step


def test_judging_needs_no_torch():
    program = "import sys, attnbench.quality.gates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(("tokens", "said"), [(40, "holds none"), (200, "holds 4")])
def test_a_prompt_without_room_for_facts_says_so(tokens, said):
    verdict = verdict_on(perfect(context=np.array([tokens])))
    assert f"a prompt of {tokens} tokens {said}" in verdict.not_run["needle"]
    assert "a prompt" not in verdict_on(perfect()).not_run["needle"]
