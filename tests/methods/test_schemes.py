"""Methods that replace the trained function: what each is, against formulas written out here."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.methods import registry
from attnbench.methods.alibi import Alibi
from attnbench.methods.base import Family, LayerShape
from attnbench.methods.conformance import Outcome, conform
from attnbench.methods.conformance_scheme import SCHEME_CHECKS, Rows, config_of
from attnbench.methods.cy_bias import CyBias
from attnbench.methods.cy_sequence import S15, S20, bias, geometric_slopes, tau_ladder
from attnbench.methods.decay_gate import DecayGate
from attnbench.methods.distance_bias import HeadCoefficients
from attnbench.methods.reference import exact_attention
from attnbench.methods.scheme import SchemeConfig
from attnbench.methods.trial import Case, Trial

CPU = torch.device("cpu")
NAMES = ("alibi", "cy_bias", "decay_gate", "learned_absolute", "nope", "rope", "sliding_window")
ALL = [m for name in NAMES for m in registry.method_class(name).variants("cpu")]
FURTHER = [
    CyBias(mode="nested", curvature="theory"),
    CyBias(mode="holo", curvature="free", sequence="s15"),
    CyBias(mode="content_balance"),
]


@pytest.mark.parametrize("method", [*ALL, *FURTHER], ids=lambda method: method.label)
def test_every_scheme_conforms_and_its_own_checks_run(method):
    assert method.family is Family.REPLACEMENT
    checks = conform(method, CPU, dtypes=(torch.float32,))
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    ran = {check.name for check in checks if check.passed}
    learns = {"scheme: every parameter learns"}
    expected = (
        set(SCHEME_CHECKS)
        if list(method.scheme(config_of(CPU)).parameters())
        else (set(SCHEME_CHECKS) - learns)
    )
    assert ran >= expected


def failed(method):
    """Which checks of schemes fail."""
    run = ((name, check(method, torch.float32, CPU)) for name, check in SCHEME_CHECKS.items())
    return {name for name, check in run if check.outcome is Outcome.FAILED}


def looks_ahead(honest, q, k, v):
    return honest(q, k, v) + 0.01 * v[:, :1, -1:]


def cuts_a_gradient(honest, q, k, v):
    return honest(q, k.detach(), v)


def learns_nothing(honest, q, k, v):
    return honest(q, k, v).detach() + 0 * q.sum()


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (looks_ahead, {"full sequence as defined", "no look ahead"}),
        (cuts_a_gradient, {"gradients as defined"}),
        (learns_nothing, {"gradients as defined", "every parameter learns"}),
    ],
)
def test_a_scheme_that_is_not_what_its_method_defines_fails_its_checks(fault, found):
    class Spoilt(Alibi):
        def scheme(self, config):
            scheme = super().scheme(config)
            for attention in scheme.attentions:
                attention.forward = partial(fault, attention.forward)
            return scheme

    assert failed(Spoilt(learn=True)) >= {f"scheme: {name}" for name in found}
    assert failed(Alibi(learn=True)) == set()


def test_a_decoder_that_forgets_what_was_learned_fails():
    class Forgets(Alibi):
        def scheme(self, config):
            scheme = super().scheme(config)
            scheme.decoder = self.layer
            return scheme

    assert failed(Forgets(learn=True)) == {"scheme: decodes what it learned"}


def test_only_a_method_that_replaces_the_trained_function_has_a_scheme():
    with pytest.raises(Unsupported, match="no model is trained with it"):
        registry.parse("sdpa").scheme(config_of(CPU))


def one_head(method, q, k, v):
    shape = LayerShape(1, 1, 1, q.shape[-1], 64, torch.float64, CPU, 0, q.shape[-1] ** -0.5)
    return method.reference(q[None, None, None], k[None, None], v[None, None], shape)[0, 0, 0]


def test_the_biased_output_is_the_published_vector():
    i, j = torch.arange(8.0, dtype=torch.float64), torch.arange(32.0, dtype=torch.float64)[:, None]
    q = 2 * torch.sin(i + 1)
    k = 2 * torch.cos(0.3 * (j + 1) * (i + 1) + 0.1 * (j + 1))
    v = torch.sin(0.7 * (j + 1) + i)
    out = one_head(CyBias(tau="20"), q, k, v)
    published = torch.tensor([-0.135252, 0.354651, 0.518490, 0.205631], dtype=torch.float64)
    torch.testing.assert_close(out[:4], published, atol=1e-6, rtol=0)
    exact = one_head(registry.parse("nope"), q, k, v)
    assert float(torch.cosine_similarity(out, exact, dim=0)) == pytest.approx(0.978899, abs=1e-6)
    both = exact_attention(q[None, None, None], k[None, None], v[None, None], 8**-0.5)
    torch.testing.assert_close(exact, both[0, 0, 0])


def biases(method, heads=2, distances=200):
    return method.untrained(heads, CPU).of(torch.arange(distances))


@pytest.mark.parametrize("sequence", [S20, S15], ids=lambda s: s.name)
def test_the_ladder_is_the_scalar_formula_head_by_head(sequence):
    found = biases(CyBias(sequence=sequence.name), heads=4)
    series = CyBias(sequence=sequence.name).series
    for head, tau in enumerate(tau_ladder(4, sequence)):
        wanted = torch.tensor([bias(d, tau, series) for d in range(200)], dtype=torch.float64)
        torch.testing.assert_close(found[head], wanted, rtol=1e-12, atol=1e-12)


def test_each_mode_begins_where_the_source_begins_it():
    d = torch.arange(200, dtype=torch.float64)
    log = d.clamp(min=1).log()
    slopes = torch.tensor(geometric_slopes(2), dtype=torch.float64)[:, None]
    torch.testing.assert_close(biases(CyBias(mode="holo")), biases(CyBias()))
    nested = -slopes * d + 2 * slopes / S20.log_growth * log
    torch.testing.assert_close(biases(CyBias(mode="nested")), nested)
    torch.testing.assert_close(biases(CyBias(mode="nested", curvature="theory")), nested)
    for method in (
        CyBias(mode="nested", curvature="zero"),
        CyBias(mode="linlog"),
        CyBias(mode="content_balance"),
        CyBias(mode="softmax_temp"),
        Alibi(),
    ):
        torch.testing.assert_close(biases(method), -slopes * d)
    comet = biases(CyBias(mode="comet", shift=50))
    assert (comet[:, :51] == 0).all()
    torch.testing.assert_close(comet[:, 50:], biases(CyBias())[:, :150])


def test_without_curvature_the_tail_of_the_series_is_a_straight_line():
    found = biases(CyBias(curvature="zero"))
    bends = found[:, 15:].diff(n=2)
    assert float(bends.abs().max()) < 1e-9
    assert float(biases(CyBias())[:, 15:].diff(n=2).abs().max()) > 1e-4


def test_what_is_learned_is_what_the_mode_says():
    def learned(method):
        return {name for name, _ in method.coefficients(2, torch.float32).named_parameters()}

    assert learned(CyBias()) == learned(Alibi()) == set()
    assert learned(Alibi(learn=True)) == learned(CyBias(mode="holo")) == {"raw_slope"}
    assert learned(CyBias(mode="nested")) == learned(CyBias(mode="linlog"))
    assert learned(CyBias(mode="linlog")) == {"raw_slope", "curvature"}
    assert learned(CyBias(mode="nested", curvature="zero")) == {"raw_slope"}
    assert learned(CyBias(mode="content_balance")) == {"raw_slope", "log_gain"}
    assert "log_temperature" in learned(CyBias(mode="softmax_temp"))


def test_a_learned_slope_begins_as_asked_and_a_temperature_divides_everything():
    numbers = HeadCoefficients(
        [0.004, 0.5, 3.0],
        learn_slope=True,
        free_curvature=[0.1, 0.2, -0.3],
        learn_gain=True,
        learn_temperature=True,
        dtype=torch.float64,
    )
    slope, curvature, gain = numbers()
    torch.testing.assert_close(slope, torch.tensor([0.004, 0.5, 3.0], dtype=torch.float64))
    with torch.no_grad():
        numbers.log_temperature.fill_(math.log(2))
    for cooled, before in zip(numbers(), (slope, curvature, gain), strict=True):
        torch.testing.assert_close(cooled, before / 2)


def test_a_cut_leaves_out_what_weighs_less_and_declares_less():
    method = CyBias(tau="20", least_weight=0.01)
    assert method.reaches(8) == (27,) * 8
    found = biases(method)
    assert torch.isfinite(found[:, 26]).all()
    assert torch.isinf(found[:, 27]).all()


def test_the_sieve_leaves_the_newest_token_and_the_distances_that_the_prime_divides():
    rule = CyBias(sieve=251).rule()
    kept = torch.nonzero(rule.kept(torch.arange(512)))[:, 0]
    assert kept.tolist() == [0, 125, 226, 376, 477]


@pytest.mark.parametrize(
    "spec",
    [
        "tau=0",
        "tau=steep",
        "exact_window=0",
        "mode=linlog,curvature=theory",
        "mode=holo,least_weight=0.01",
        "least_weight=1",
        "sieve=250",
        "mode=holo,sieve=251",
        "shift=0",
    ],
)
def test_parameters_that_mean_nothing_are_refused(spec):
    with pytest.raises(UsageError, match="cy_bias"):
        registry.parse(f"cy_bias,{spec}")


def test_rotated_scores_depend_on_the_distance_alone_and_lengths_stay():
    scheme = registry.parse("rope").scheme(SchemeConfig(1, 1, 1, 64, 64, 128, CPU))
    q, k = torch.randn(2, 1, 1, 1, 64, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([0, 7, 60, 100])
    turned = scheme.rotate(q.expand(1, 1, 4, 64), k.expand(1, 1, 4, 64), places)
    torch.testing.assert_close(turned[0].norm(dim=-1), q.norm(dim=-1).expand(1, 1, 4))
    moved = scheme.rotate(q.expand(1, 1, 4, 64), k.expand(1, 1, 4, 64), places + 20)
    scores = [(a @ b.mT)[0, 0] for a, b in (turned, moved)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
    assert float((scores[0] - scores[0][0, 0]).abs().max()) > 1


def test_learned_positions_are_one_row_each_and_are_drawn_for_the_longest_sequence():
    scheme = registry.parse("learned_absolute").scheme(SchemeConfig(2, 4, 4, 8, 32, 50, CPU))
    assert sum(p.numel() for p in scheme.parameters()) == 50 * 32
    x = torch.zeros(1, 3, 32)
    rows = scheme.embed(x, torch.tensor([4, 5, 49]))
    assert torch.equal(rows[0, 2], scheme.table.weight[49])


def test_gates_begin_as_said():
    assert DecayGate().gates(3) == [0.95] * 3
    assert DecayGate(start="retnet").gates(3) == [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128]
    slopes = geometric_slopes(4)
    assert DecayGate(start="cy").gates(4) == pytest.approx([math.exp(-s) for s in slopes])


def test_a_gated_step_that_is_repeated_at_one_length_gives_the_same_again():
    trial = Trial.make(Case(20, 64, 4), torch.float32, CPU, 2)
    layer, cache = DecayGate().layer(trial.shape), trial.cache()
    layer.prefill(cache)
    for step in trial.steps:
        outputs = [layer.decode(step.q, step.k, step.v) for _ in range(3)]
        assert torch.equal(outputs[0], outputs[2])
        cache.length.advance()


@pytest.mark.parametrize("spec", ["decay_gate", "cy_bias,mode=nested"])
def test_what_is_computed_in_float32_stays_so_where_a_model_is_trained_in_16_bits(spec):
    config = config_of(CPU)
    rows = Rows.drawn(config, 20, torch.float32)
    attend = registry.parse(spec).scheme(config).attend(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cast = attend(*rows.all())
    assert torch.equal(cast, attend(*rows.all()).detach())


def test_what_was_learned_is_told_by_layer_and_head():
    told = CyBias(mode="nested").scheme(config_of(CPU)).learned()
    assert set(told) == {"slope", "curvature", "gain"}
    assert [len(told["slope"]), len(told["slope"][0])] == [2, 8]
    assert CyBias().scheme(config_of(CPU)).learned() == {}
