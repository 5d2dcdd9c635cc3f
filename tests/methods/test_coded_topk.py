"""Selection by coded keys: the codes, the rule, and that what is kept is what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.methods import registry
from attnbench.methods.coded_keys import (
    LARGEST_DIGIT,
    codes_of,
    digits_of,
    levels,
    packed,
    rotated,
    unpacked,
)
from attnbench.methods.coded_topk import UNIT, CodedTopK, key_levels, limit_of
from attnbench.methods.conformance import BOUNDS, relative_error
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Case, Trial, prefilled

CPU = torch.device("cpu")
SMALL = CodedTopK(share=0.2, sample=64, sinks=3, recent=9, impl="torch")


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_the_rotation_is_the_hadamard_matrix_and_leaves_products_as_they_are():
    bits = torch.arange(16)
    common = (bits[:, None] & bits[None, :])[..., None] >> torch.arange(4) & 1
    matrix = 1.0 - 2.0 * (common.sum(-1) % 2)
    rows, others = drawn(5, 16), drawn(5, 16, seed=1)
    torch.testing.assert_close(rotated(rows), rows @ matrix)
    torch.testing.assert_close(
        (rotated(rows) * rotated(others)).sum(-1) / 16, (rows * others).sum(-1)
    )


@pytest.mark.parametrize(("bits", "lost"), [(1, 0.363), (2, 0.119), (4, 0.0115)])
def test_levels_lose_of_a_normal_channel_what_the_best_even_ones_lose(bits, lost):
    """Max 1960, table II."""
    rows = drawn(2, 20000, 8) * torch.arange(1, 9) + 5
    base, step = levels(rows, bits)
    codes = codes_of(rows, base[:, None], step[:, None], bits)
    assert (codes.amin(), codes.amax()) == (0, 2**bits - 1)
    middle = base[:, None] + (codes + 0.5) * step[:, None]
    error = (rows - middle).square().mean(1) / rows.var(1)
    torch.testing.assert_close(error, torch.full_like(error, lost), rtol=0.06, atol=0)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_codes_share_bytes_and_come_back(bits):
    codes = torch.randint(2**bits, (2, 7, 64), generator=torch.Generator().manual_seed(0)).float()
    joined = packed(codes, bits)
    assert joined.shape == (2, 7, 8 * bits)
    assert torch.equal(unpacked(joined, bits), codes)


def test_channels_that_never_change_have_a_width_and_give_no_infinity():
    base, step = levels(torch.full((1, 9, 8), 3.0), 2)
    assert torch.equal(step, torch.ones(1, 8))
    assert codes_of(torch.full((1, 9, 8), 3.0), base[:, None], step[:, None], 2).isfinite().all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_products_of_digits_with_codes_are_whole_numbers_and_near_the_logits(bits):
    k, q = drawn(1, 1, 500, 128) * 3, drawn(1, 1, 4, 128, seed=1)
    base, step = key_levels(k, bits)
    digits, worth = digits_of(q, step, 0.1)
    codes = codes_of(rotated(k), base[:, :, None], step[:, :, None], bits)
    found = digits @ codes.mT
    assert torch.equal(found.long(), digits.long() @ codes.long().mT)
    assert digits.abs().amax(dim=-1).tolist() == [[[LARGEST_DIGIT] * 4]]
    logits = q @ k.mT * 0.1 / torch.tensor(2.0).log()
    left = (found * worth[..., None] - logits)[0, 0].var(dim=-1) / logits[0, 0].var(dim=-1)
    assert (left < {1: 0.5, 2: 0.16, 4: 0.02}[bits]).all()


@pytest.mark.parametrize("method", [CodedTopK(), SMALL, CodedTopK(share=0.01, recent=0, sinks=0)])
def test_the_sample_is_even_and_of_tokens_that_are_not_kept_anyway(method):
    for tokens in (*range(400), 1000, 32768, 131073):
        quota = method.quota(tokens)
        sample = quota.sample(CPU).tolist()
        assert len(sample) == quota.taken * UNIT <= method.sample
        assert 1 <= quota.rank <= max(1, len(sample))
        assert 0 <= quota.expected <= tokens
        if not sample:
            assert quota.everything
            continue
        assert sample == sorted(set(sample))
        assert method.sinks <= sample[0]
        assert sample[-1] < tokens - method.recent
        steps = {after - before for before, after in zip(sample, sample[UNIT:], strict=False)}
        assert max(steps, default=0) - min(steps, default=0) <= UNIT


def test_the_rank_is_the_share_less_what_is_kept_anyway():
    quota = CodedTopK(share=0.1).quota(32768)
    assert quota.expected == 3277
    assert quota.taken * UNIT == 1024
    assert quota.rank == round((3277 - 68) * 1024 / (32768 - 68))
    assert CodedTopK(share=0.1).quota(1000).expected == 68 + 50  # half of the share is selected
    assert CodedTopK(share=1.0).quota(32768).everything
    assert CodedTopK().quota(60).everything


def test_a_limit_keeps_as_many_of_the_sample_as_it_is_asked_to():
    distances = drawn(3, 200).abs() * torch.tensor([1e-6, 1.0, 1e6])[:, None]
    for rank in (1, 2, 37, 200):
        limit = limit_of(distances, rank)
        kept = (distances < limit[:, None]).sum(dim=1)
        assert (kept >= rank).all()
        assert (kept <= rank + 4).all()  # what lies within 1/128 of the last
    equal = torch.full((1, 50), 2.5)
    assert (equal < limit_of(equal, 1)).all()


def kept_by_hand(method: CodedTopK, scores: torch.Tensor, worth: torch.Tensor) -> list[int]:
    """By the words of the rule, one token after another: scores [G,N], worth [G]."""
    group, tokens = scores.shape
    sample = method.quota(tokens).sample(CPU).tolist()
    best = [max(float(scores[g, n]) for n in sample) for g in range(group)]

    def distance(token: int) -> torch.Tensor:
        return min((best[g] - scores[g, token]) * worth[g] for g in range(group))

    last = sorted(distance(n) for n in sample)[method.quota(tokens).rank - 1]
    cut = (last.view(torch.int32) >> 16) + 1 << 16
    always = {*range(method.sinks), *range(tokens - method.recent, tokens)}
    return [n for n in range(tokens) if n in always or distance(n) < cut.view(torch.float32)]


def test_what_is_kept_is_what_the_words_of_the_rule_say():
    scores = (drawn(1, 1, 3, 300) * 1000).round()
    worth = torch.tensor([[[0.01, 0.002, 0.03]]])
    kept = SMALL.kept(scores, worth)[0, 0].nonzero().flatten().tolist()
    assert kept == kept_by_hand(SMALL, scores[0, 0], worth[0, 0])
    assert 40 < len(kept) < 90


def test_one_heads_large_logits_do_not_drown_anothers():
    scores = (drawn(1, 1, 2, 4000) * 1000).round()
    scores[:, :, 0] += 50000
    kept = SMALL.kept(scores, torch.full((1, 1, 2), 0.005))[0, 0]
    for head in range(2):
        assert kept[scores[0, 0, head].topk(40).indices].all()


def test_a_step_attends_to_what_is_kept_and_to_the_newest_alone():
    trial = Trial.make(Case(300, 64, 4, batch=2), torch.float32, CPU, 1, seed=3)
    step, shape = trial.steps[0], trial.shape
    base, width = key_levels(trial.k, 2)
    digits, worth = digits_of(step.q.reshape(2, 2, 4, 64), width, shape.scale)
    codes = codes_of(rotated(trial.k), base[:, :, None], width[:, :, None], 2)
    kept = SMALL.kept(digits @ codes.mT, worth)
    layer, cache = prefilled(SMALL, trial)
    for rows in (cache.k, cache.v):
        rows[:, :, :300][~kept] = 1e4
    out = layer.decode(step.q, step.k, step.v)
    for b in range(2):
        for h in range(2):
            rows = [torch.cat((old[b, h][kept[b, h]], new[b, h]))[None, None]
                    for old, new in ((trial.k, step.k), (trial.v, step.v))]  # fmt: skip
            heads = slice(4 * h, 4 * h + 4)
            expected = exact_attention(step.q[b : b + 1, heads], *rows, shape.scale)
            assert relative_error(out[b : b + 1, heads], expected) < 1e-5
    assert layer.counts.flatten().tolist() == (kept.sum(-1) + 1).flatten().tolist()
    assert layer.witness()["attended_tokens"] == float(layer.counts.float().mean())


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_the_first_layers_attend_to_all_tokens(impl):
    trial = Trial.make(Case(200, 64, 4, kv_heads=1), torch.float16, CPU, 1)
    step = trial.steps[0]
    rows = [torch.cat(pair, dim=2) for pair in ((trial.k, step.k), (trial.v, step.v))]
    expected = exact_attention(step.q, *rows, trial.shape.scale)
    for layer, whole in ((0, True), (1, True), (2, False)):
        shape = replace(trial.shape, layer=layer)
        method = CodedTopK(dense=2, sample=64, recent=8, impl=impl)
        ready, _ = prefilled(method, replace(trial, shape=shape))
        out = ready.decode(step.q, step.k, step.v)
        assert (relative_error(out, expected) < BOUNDS[torch.float16]) is whole
        assert (ready.witness()["kept_share"] == 1.0) is whole
        reference = method.reference_layer(shape)
        assert (relative_error(trial.first_output(reference), expected) < 1e-9) is whole


def test_about_the_share_is_kept_of_a_long_cache():
    trial = Trial.make(Case(8192, 64, 2, kv_heads=4), torch.float32, CPU, 1)
    layer, _ = prefilled(CodedTopK(impl="torch"), trial)
    assert layer.witness()["attended_tokens"] == layer.witness()["meant_tokens"] == 820
    layer.decode(trial.steps[0].q, trial.steps[0].k, trial.steps[0].v)
    assert 0.085 < layer.witness()["kept_share"] < 0.115


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_what_is_appended_is_coded_by_the_levels_of_prefill_and_reset_takes_it_back(bits):
    trial = Trial.make(Case(90, 64, 4), torch.float16, CPU, 12)
    layer, cache = prefilled(CodedTopK(bits=bits, impl="torch"), trial)
    before = [tensor.clone() for tensor in layer.tensors()]
    first = list(trial.continued(layer, cache))
    new = torch.cat([step.k for step in trial.steps], dim=2)
    base, step = key_levels(trial.k, bits)
    expected = packed(codes_of(rotated(new), base[:, :, None], step[:, :, None], bits), bits)
    assert torch.equal(layer.codes[:, :, 90:102], expected)
    layer.reset()
    cache.length.set(90)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.tensors(), strict=True))
    for again, out in zip(trial.continued(layer, cache), first, strict=True):
        assert torch.equal(again, out)


def test_bytes_are_those_of_codes_their_widths_and_the_rows_that_are_meant():
    trial = Trial.make(Case(4096, 64, 4, batch=2), torch.float16, CPU, 1)
    layer, _ = prefilled(CodedTopK(impl="torch"), trial)
    pairs, meant = 4, CodedTopK().quota(4096).expected
    assert layer.bytes_read() == pairs * (4096 * 16 + 64 * 4 + (meant + 1) * 256)
    assert layer.bytes_read() < 0.17 * 4097 * trial.shape.row_bytes


def test_rows_of_eight_bits_are_half_the_bytes_and_their_scales_are_read_too():
    trial = Trial.make(Case(4096, 64, 4, batch=2), torch.float16, CPU, 1)
    layer, _ = prefilled(CodedTopK(rows="int8", impl="torch"), trial)
    pairs, meant = 4, CodedTopK().quota(4096).expected
    assert layer.bytes_read() == pairs * (4096 * 16 + 64 * 4 + (meant + 1) * 128 + 2 * 64 * 4)
    held = sum(tensor.nbytes for tensor in layer.rows.tensors())
    assert held == pairs * (trial.shape.capacity * 128 + 2 * 64 * 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("share=0", "is not a share"),
        ("share=1.5", "is not a share"),
        ("bits=3", "no codes of bits=3"),
        ("sample=100", "no power of two"),
        ("sample=32", "no power of two from 64 to 4096"),
        ("sample=8192", "no power of two"),
        ("recent=-1", "no fewer than none"),
        ("dense=-1", "no fewer than none"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        registry.parse(f"coded_topk,{spec}")


def test_head_dimensions_that_it_cannot_rotate_or_has_no_kernel_for_are_refused():
    for spec, head_dim, message in (
        ("coded_topk,impl=torch", 80, "no power of two"),
        ("coded_topk,impl=triton", 32, "no kernel for head dimension 32"),
    ):
        with pytest.raises(Unsupported, match=message):
            registry.parse(spec).check(Case(8, head_dim, 4).shape(torch.float32, CPU, 1))
