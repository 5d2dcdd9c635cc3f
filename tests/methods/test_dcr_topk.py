"""Direction-cosine ranking: its definition, its rules, and its generations against one another."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.methods import registry
from attnbench.methods.base import CacheLength, CacheView, LayerShape
from attnbench.methods.conformance import BOUNDS, relative_error
from attnbench.methods.conformance_share import check_share
from attnbench.methods.dcr_topk import GENERATIONS, DcrTopK
from attnbench.methods.oracle_topk import OracleTopK
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Case, Trial, prefilled

CPU = torch.device("cpu")
KERNELS = tuple(name for name in GENERATIONS if name != "m1")
FEW = DcrTopK(coverage=0.3, k_min=8)


def test_the_published_example_chooses_and_returns_what_is_published():
    token, channel = torch.arange(32.0).double()[:, None], torch.arange(8.0).double()
    q = 2 * torch.sin(channel + 1)
    k = 2 * torch.cos(0.3 * (token + 1) * (channel + 1) + 0.1 * (token + 1))
    v = torch.sin(0.7 * (token + 1) + channel)
    shape = LayerShape(1, 1, 1, 8, 32, torch.float64, CPU, 0, 8**-0.5)
    q, k, v = q[None, None, None], k[None, None], v[None, None]
    method = DcrTopK(coverage=0.25, k_min=8)
    assert method.chosen(q, k, shape).tolist() == [[[1, 2, 16, 17, 24, 25, 27, 29]]]
    out = method.reference(q, k, v, shape)
    expected = torch.tensor([-0.063484, 0.553542, 0.661644, 0.161433]).double()
    torch.testing.assert_close(out[0, 0, 0, :4], expected, rtol=0, atol=6e-7)
    exact = exact_attention(q, k, v, shape.scale)
    assert float(torch.cosine_similarity(out, exact, dim=-1)) == pytest.approx(0.999932, abs=6e-7)


@pytest.mark.parametrize(
    ("coverage", "k_min", "tokens", "kept"),
    [
        (0.15, 64, 32000, 4800),
        (0.15, 64, 32001, 4800),
        (0.15, 64, 32007, 4802),  # 4801.05: down, then up to an even number
        (0.15, 64, 400, 64),
        (0.15, 64, 64, 64),
        (0.15, 64, 63, 63),  # all there are, which may be odd
        (0.15, 7, 20, 8),
        (0.29, 1, 100, 30),  # 29, though .29 * 100 is less in binary
        (1.0, 64, 1001, 1001),
    ],
)
def test_coverage_is_rounded_down_then_up_to_even_and_is_never_more_than_all(
    coverage, k_min, tokens, kept
):
    assert DcrTopK(coverage=coverage, k_min=k_min).kept(tokens) == kept


@pytest.mark.parametrize("spec", ["coverage=0", "coverage=1.1", "coverage=-0.1", "k_min=0"])
def test_a_budget_that_is_none_is_refused(spec):
    with pytest.raises(UsageError):
        registry.parse(f"dcr_topk,{spec}")


def test_what_a_generation_cannot_run_is_refused_and_nothing_else_runs(monkeypatch):
    shape = Case(8, 64, 4).shape(torch.float32, CPU, 1)
    for spec, wrong, said in (
        ("m6", replace(shape, head_dim=32), "head dimension 32"),
        ("m6", replace(shape, head_dim=256), "head dimension 256"),
        ("m1", replace(shape, heads=7), "do not share 2 KV heads"),
        ("m4,sharing=group", shape, "no choice for a whole group"),
    ):
        with pytest.raises(Unsupported, match=said):
            registry.parse(f"dcr_topk,generation={spec}").check(wrong)
    registry.parse("dcr_topk,generation=m1").check(replace(shape, head_dim=32))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Unsupported, match="needs a CUDA GPU"):
        registry.parse("dcr_topk,generation=m6").check_machine(CPU)


def test_the_generation_is_fixed_by_the_device_and_is_part_of_the_arms_name():
    assert DcrTopK().resolved(CPU).label == "dcr_topk,generation=m1"
    assert DcrTopK().resolved(torch.device("cuda")).label == "dcr_topk,generation=m6"
    assert DcrTopK(generation="m4").resolved(CPU).generation == "m4"
    assert [m.generation for m in registry.implementations_of(DcrTopK())] == list(GENERATIONS)
    with pytest.raises(UsageError, match="did you mean"):
        registry.parse("dcr_topk,generation=m5_mix")


def test_a_single_sequence_alone_is_scored_by_the_product_where_both_are_there():
    assert [GENERATIONS["m5_mixed"].with_gemm(batch) for batch in (1, 2, 4)] == [True, False, False]
    assert GENERATIONS["m5"].with_gemm(4)
    assert not GENERATIONS["m6"].with_gemm(1)


def test_a_step_that_attends_to_everything_is_exact_and_is_counted_as_dense():
    trial = Trial.make(Case(40, 64, 4), torch.float32, CPU)
    layer, cache = prefilled(DcrTopK(), trial)
    step = trial.steps[0]
    assert layer.witness() == {"kept_share": 1.0, "attended_tokens": 41.0, "dense_steps": 1.0}
    assert layer.bytes_read() == 41 * trial.shape.row_bytes
    out = layer.decode(step.q, step.k, step.v)
    expected = exact_attention(step.q, cache.k[:, :, :41], cache.v[:, :, :41], trial.shape.scale)
    assert relative_error(out, expected) < BOUNDS[torch.float32]


def test_it_reads_all_keys_and_the_values_that_it_keeps():
    trial = Trial.make(Case(199, 64, 4), torch.float16, CPU)
    layer, _ = prefilled(FEW, trial)
    assert layer.bytes_read() == (200 + 60) * trial.shape.row_bytes // 2
    assert layer.witness() == {"kept_share": 0.3, "attended_tokens": 60.0, "dense_steps": 0.0}


@pytest.mark.parametrize("sharing", ["head", "group"])
def test_it_is_the_oracle_at_the_same_budget(sharing):
    trial = Trial.make(Case(199, 64, 4, batch=2), torch.float32, CPU)
    step, shape = trial.steps[0], trial.shape
    k, v = torch.cat((trial.k, step.k), dim=2), torch.cat((trial.v, step.v), dim=2)
    oracle = OracleTopK(share=0.3, shared=sharing == "group")
    found = replace(FEW, sharing=sharing).reference(step.q, k, v, shape)
    torch.testing.assert_close(found, oracle.reference(step.q, k, v, shape))


def test_scores_in_the_caches_dtype_are_fewer_and_of_equals_the_first_is_kept():
    trial = Trial.make(Case(4095, 64, 8, kv_heads=1), torch.bfloat16, CPU)
    queries, keys = trial.steps[0].q, trial.k
    exact = FEW.chosen(queries, keys, trial.shape)[0]
    coarse = replace(FEW, scorer="cache").chosen(queries, keys, trial.shape)[0]
    direction = queries[0, :, 0].double() / queries[0, :, 0].double().norm(dim=-1, keepdim=True)
    stored = (direction @ keys[0, 0].double().mT).float().bfloat16()
    falling = stored.argsort(dim=-1, descending=True, stable=True)[:, : coarse.shape[1]]
    assert torch.equal(coarse, falling.sort(dim=-1).values)
    apart = [set(a) ^ set(b) for a, b in zip(coarse.tolist(), exact.tolist(), strict=True)]
    assert 0 < sum(map(len, apart)) < 0.05 * exact.numel()
    for head, rows in enumerate(apart):
        assert len({float(stored[head, row]) for row in rows}) <= 1  # all at the limit


@pytest.mark.parametrize("sharing", ["head", "group"])
@pytest.mark.parametrize("scorer", ["exact", "cache"])
def test_what_it_declares_for_each_query_head_is_what_counts(scorer, sharing):
    method = replace(FEW, scorer=scorer, sharing=sharing, generation="m1")
    found = check_share(method, torch.float32, CPU)
    assert found.passed
    assert "declared 0.2941, counted 0.2941" in found.detail


def directions(method: DcrTopK, shape: LayerShape, q: torch.Tensor) -> torch.Tensor:
    """The directions that a layer scores by, [B·H,D]: scores of keys that are unit vectors."""
    rows = torch.zeros((shape.batch, shape.kv_heads, shape.capacity, shape.head_dim))
    rows[:, :, : shape.head_dim] = torch.eye(shape.head_dim)
    rows = rows.to(shape.dtype)
    layer = method.layer(shape)
    layer.prefill(CacheView(rows, rows.clone(), CacheLength(CPU, shape.capacity - 1)))
    new = rows[:, :, -1:].clone()
    return layer.score(q, new, new)[:, : shape.head_dim].double()


@pytest.mark.parametrize("generation", KERNELS)
def test_each_generation_keeps_the_sources_contract_of_parity(generation):
    """Scores within 1e-2 and a mean square of 1e-6, 99.9 % of the indices, outputs within 5e-3 and
    1e-6, sets alike, directions of a cosine of .9999: of float64, and of M1."""
    trial = Trial.make(Case(255, 64, 4, batch=2, kv_heads=1), torch.float16, CPU, seed=3)
    shape, step = trial.shape, trial.steps[0]
    method = replace(FEW, generation=generation)
    layer, cache = prefilled(method, trial)
    scores = layer.score(step.q, step.k, step.v)
    tokens, keep = 256, method.kept(256)
    k, v = cache.k[:, :, :tokens], cache.v[:, :, :tokens]
    direction = step.q[:, :, 0].double() / step.q[:, :, 0].double().norm(dim=-1, keepdim=True)
    wrong = scores[:, :tokens].double().view(2, 4, -1) - direction @ k[:, 0].double().mT
    assert wrong.abs().max() <= 1e-2
    assert wrong.square().mean() <= 1e-6

    chosen = layer.choose(scores)[:, :keep].view(2, 4, -1)
    defined = method.chosen(step.q, k, shape)
    assert (chosen == defined).double().mean() >= 0.999
    for mine, right in zip(
        chosen.flatten(0, 1).tolist(), defined.flatten(0, 1).tolist(), strict=True
    ):
        assert set(mine) == set(right)

    out = layer.decode(step.q, step.k, step.v).double()
    m1 = trial.first_output(replace(method, generation="m1").layer(shape)).double()
    for right in (method.reference(step.q, k, v, shape), m1):
        assert (out - right).abs().max() <= 5e-3
        assert (out - right).square().mean() <= 1e-6

    u = directions(method, shape, step.q)
    cosine = torch.cosine_similarity(u, direction.flatten(0, 1), dim=-1)
    assert cosine.min() >= 0.9999


@pytest.mark.parametrize("settings", [{}, {"scorer": "cache"}, {"sharing": "group"}])
def test_the_kernels_agree_with_the_definition_while_the_cache_grows(settings):
    trial = Trial.make(Case(63, 64, 3, kv_heads=1), torch.float16, CPU, appended=3, seed=1)
    method = replace(FEW, **settings)
    expected = trial.appended_by(method.reference_layer(trial.shape))
    for out, right in zip(
        trial.appended_by(replace(method, generation="m6").layer(trial.shape)),
        expected,
        strict=True,
    ):
        assert relative_error(out, right) < BOUNDS[torch.float16]


def test_keys_that_are_no_number_show_in_the_output_of_every_head():
    trial = Trial.make(Case(60, 64, 4, kv_heads=1), torch.float16, CPU)
    trial.k[:, :, 17, 3] = math.nan
    for generation in ("m1", "m4", "m6"):
        out = trial.first_output(replace(FEW, generation=generation).layer(trial.shape))
        assert out.isnan().all(dim=-1).all(), generation


def test_scores_and_indices_are_not_kept_between_steps():
    trial = Trial.make(Case(60, 64, 4, kv_heads=1), torch.float16, CPU)
    layer, cache = prefilled(replace(FEW, generation="m6"), trial)
    kept = sum(tensor.nbytes for tensor in layer.tensors())
    work = layer.config.splits * 4 * (64 + 2) * 4 + 4 * 4  # heads, outputs and two more, float32
    assert kept == cache.k.nbytes + cache.v.nbytes + work
