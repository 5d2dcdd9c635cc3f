"""AETHER as a method: what it keeps, what it declares, and what it refuses to promise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.errors import Unsupported, UsageError
from attnbench.methods import registry
from attnbench.methods.aether import Aether
from attnbench.methods.base import CacheLength, CacheView, LayerShape
from attnbench.methods.conformance import BOUNDS, Outcome, conform, relative_error
from attnbench.methods.quest import Quest
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Case, Trial

CPU = torch.device("cpu")
SMALL = Case(45, 16, 3, batch=2)


@pytest.mark.parametrize("method", Aether.variants("cpu"), ids=lambda method: method.label)
def test_what_pytorch_computes_is_what_the_definition_says(method):
    for tokens, dtype in ((1, torch.float16), (45, torch.float32), (127, torch.bfloat16)):
        trial = Trial.make(replace(SMALL, tokens=tokens), dtype, CPU, 3, seed=tokens)
        layer, defined = method.layer(trial.shape), method.reference_layer(trial.shape)
        pairs = zip(trial.appended_by(layer), trial.appended_by(defined), strict=True)
        for seen, right in pairs:
            assert relative_error(seen, right) < BOUNDS[dtype]
            blocks = layer.mask.flatten(1, 2)
            kept = [[set(head.nonzero()[:, 0].tolist()) for head in one] for one in blocks]
            assert kept == defined.kept
            assert layer.computed.flatten(1).tolist() == defined.computed


@pytest.mark.parametrize("number", [1, 5])
def test_it_conforms(number):
    checks = conform(Aether.variants("cpu")[number], CPU, dtypes=(torch.float32,))
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert sum(check.passed for check in checks) >= 16


def stepped(method: Aether, trial: Trial):
    layer, cache = method.layer(trial.shape), trial.cache()
    layer.prefill(cache)
    step = trial.steps[0]
    return layer, layer.decode(step.q, step.k, step.v), cache


def made(keys: torch.Tensor, q: torch.Tensor, group: int = 1) -> Trial:
    """A trial of given cached keys [N,D], the last being the one to append, and queries [G,D]."""
    case = Case(len(keys) - 1, keys.shape[1], group, kv_heads=1)
    trial = Trial.make(case, torch.float32, CPU)
    step = replace(trial.steps[0], q=q[None, :, None], k=keys[None, None, -1:])
    return replace(trial, k=keys[None, None, :-1], steps=(step,))


def test_on_normal_data_the_seed_prunes_nothing_and_says_so():
    trial = Trial.make(Case(600, 64, 2, kv_heads=1), torch.float32, CPU, sharpness=1.0)
    layer, out, _ = stepped(Aether(), trial)
    said = layer.witness()
    assert (said["kept_share"], said["dense_steps"], said["blocks_kept"]) == (1.0, 1.0, 10.0)
    step = trial.steps[0]
    k, v = torch.cat((trial.k, step.k), dim=2), torch.cat((trial.v, step.v), dim=2)
    assert relative_error(out, exact_attention(step.q, k, v, trial.shape.scale)) < 1e-5


def test_a_threshold_of_zero_is_not_exact_where_a_bound_is_negative():
    keys = torch.ones(32, 8)
    keys[:8] = -1
    trial = made(keys, torch.ones(1, 8))
    layer, _, _ = stepped(Aether(block=8, value=0.0), trial)
    assert layer.mask[0, 0, 0, :4].tolist() == [False, True, True, True]


def test_a_head_that_would_keep_nothing_keeps_the_last_block_and_is_counted():
    trial = Trial.make(SMALL, torch.float32, CPU)
    layer, out, _ = stepped(Aether(block=8, value=1e9), trial)
    said = layer.witness()
    assert said["rescued"] == 1.0
    assert said["blocks_kept"] == 1.0
    assert said["attended_tokens"] == 46 % 8
    assert torch.isfinite(out).all()
    assert stepped(Aether(block=8, value=1e9, sinks=1), trial)[0].witness()["rescued"] == 0.0


def test_what_one_head_keeps_its_group_attends_to_unless_each_has_its_own():
    keys = torch.zeros(24, 8)
    keys[:8, 0], keys[8:16, 1] = 3.0, 3.0
    trial = made(keys, torch.eye(8)[:2], group=2)
    union, _, _ = stepped(Aether(block=8, value=1.0), trial)
    own, _, _ = stepped(Aether(block=8, value=1.0, heads="own"), trial)
    assert union.mask[0, 0].tolist()[0][:3] == [True, True, False]
    assert own.mask[0, 0].tolist()[0][:3] == [True, False, False]
    assert own.mask[0, 0].tolist()[1][:3] == [False, True, False]
    assert union.witness()["kept_share"] == 2 * own.witness()["kept_share"] == 16 / 24
    assert union.bytes_read() == own.bytes_read()  # the group reads the union either way


def test_bytes_are_those_of_every_summary_and_of_the_blocks_that_a_group_reads():
    trial = Trial.make(replace(SMALL, tokens=63), torch.float16, CPU)
    layer, _, _ = stepped(Aether("scaled", 8, "share", 0.25, local=1), trial)
    pairs, dim = 2 * 2, 16
    read = layer.witness()["blocks_read"]
    assert 2 <= read <= 6
    assert layer.bytes_read() == pairs * (8 * (dim + 1) * 4 + read * 8 * 2 * dim * 2)


@pytest.mark.parametrize(
    ("share", "sinks", "local", "kept"),
    [(0.2, 0, 0, 2), (0.2, 2, 1, 3), (0.5, 1, 1, 5), (0.01, 0, 0, 1), (1.0, 3, 3, 10)],
)
def test_a_share_counts_the_blocks_that_are_always_kept(share, sinks, local, kept):
    trial = Trial.make(Case(79, 16, 1, kv_heads=2), torch.float32, CPU)
    method = Aether("scaled", 8, "share", share, sinks=sinks, local=local)
    assert stepped(method, trial)[0].witness()["blocks_kept"] == kept


def test_the_backend_of_trt_is_off_below_128_tokens():
    method = Aether("trt_backend", 8, "relative", 0.99)
    for tokens, dense in ((126, 1.0), (127, 0.0)):  # and the newest
        trial = Trial.make(Case(tokens, 16, 1), torch.float32, CPU)
        assert stepped(method, trial)[0].witness()["dense_steps"] == dense


def test_a_step_may_be_repeated_and_a_reset_forgets_those_after_it():
    for method in (Aether("scaled", 8, "share", 0.3), Aether(block=8, governor="g3")):
        trial = Trial.make(SMALL, torch.float32, CPU, 5)
        layer, first, cache = stepped(method, trial)
        other, step = trial.steps[1], trial.steps[0]
        layer.decode(other.q, other.k, other.v)
        assert torch.equal(layer.decode(step.q, step.k, step.v), first)
        said = layer.witness()
        for _ in trial.continued(layer, cache):  # beyond the block that the prompt ends in
            pass
        cache.length.set(SMALL.tokens)
        layer.reset()
        fresh = method.layer(trial.shape)
        fresh.prefill(trial.cache())
        for one, same in zip(layer.store.tensors(), fresh.store.tensors(), strict=True):
            torch.testing.assert_close(one, same, rtol=1e-6, atol=0)
        torch.testing.assert_close(layer.longest, fresh.longest, rtol=1e-6, atol=0)
        assert torch.equal(layer.state, fresh.state)
        assert torch.equal(layer.decode(step.q, step.k, step.v), first)
        assert layer.witness() == said


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("aether,block=0", "holds no token"),
        ("aether,sinks=-1", "fewer than none"),
        ("aether,threshold=mass,value=0", "keeps nothing"),
        ("aether,threshold=share,value=1.5", "is no share threshold"),
        ("aether,value=nan", "is no absolute threshold"),
        ("aether,guarantee=1", "is no part of the softmax"),
        ("aether,guarantee=0.01,value=0.2", "in place of a threshold"),
        ("aether,guarantee=0.01,governor=g2", "in place of a threshold"),
        ("aether,governor=g1,threshold=share", "has its own threshold, which is absolute"),
        ("aether,start=0.5", "needs a governor"),
        ("aether,governor=g1,preset=hft", "is of g3 alone"),
        ("aether,levels=0", "no such blocks"),
        ("aether,levels=3,fan=1", "no such blocks"),
        ("aether,levels=3,threshold=relative", "needs bounds and a threshold"),
        ("aether,levels=3,variant=cone", "needs bounds and a threshold"),
        *((f"aether,guarantee=0.01,variant={name}", "no upper bound") for name in ("cone", "trt")),
    ],
)
def test_what_makes_no_sense_or_cannot_be_promised_is_refused(spec, says):
    with pytest.raises(UsageError, match=says):
        registry.parse(spec)


def test_a_certificate_of_what_is_no_bound_is_refused():
    layer, _, _ = stepped(Aether("trt", 8), Trial.make(SMALL, torch.float32, CPU))
    with pytest.raises(UsageError, match="certifies nothing"):
        layer.certificate()
    assert "skipped_mass_bound" not in layer.witness()


def test_heads_that_do_not_divide_and_a_negative_scale_are_refused():
    shape = LayerShape(1, 3, 2, 8, 16, torch.float32, CPU, 0, 0.3)
    with pytest.raises(Unsupported, match="do not "):
        Aether().check(shape)
    with pytest.raises(Unsupported, match="turns bounds round"):
        Aether().check(replace(shape, heads=4, scale=-0.3))


def test_a_prompt_may_be_empty():
    shape = LayerShape(1, 2, 1, 8, 4, torch.float32, CPU, 0, 0.3)
    for method in Aether.variants("cpu"):
        layer = method.layer(shape)
        rows = torch.zeros(1, 1, 4, 8)
        layer.prefill(CacheView(rows, rows.clone(), CacheLength(CPU, 0)))
        v = torch.randn(1, 1, 1, 8)
        out = layer.decode(torch.ones(1, 2, 1, 8), torch.ones(1, 1, 1, 8), v)
        torch.testing.assert_close(out, v.expand(1, 2, 1, 8))
        assert layer.witness()["kept_share"] == 1.0


class AsksTheHost(TorchDispatchMode):
    """Refuses operators whose result the host has to wait for."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "repeat_interleave")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indexed = name == "index" and any(
            each is not None and each.dtype is torch.bool for each in args[1]
        )
        assert name not in self.WAIT
        assert not indexed
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "method", [*Aether.variants("cpu"), Quest()], ids=lambda method: method.label
)
def test_a_step_asks_the_host_for_nothing(method):
    trial = Trial.make(Case(150, 16, 2), torch.float32, CPU)
    layer, step = method.layer(trial.shape), trial.steps[0]
    layer.prefill(trial.cache())
    with AsksTheHost():
        layer.decode(step.q, step.k, step.v)
    with AsksTheHost(), pytest.raises(AssertionError):
        float(step.q.sum())


def needle(tokens: int, block: int) -> Trial:
    """Keys of which one block alone lies along the query."""
    keys = 0.01 * torch.randn(tokens, 8, generator=torch.Generator().manual_seed(2))
    at = tokens // 2 // block * block
    keys[at : at + block, 0] += 5
    return made(keys, torch.eye(8)[:1])


def test_blocks_of_blocks_let_the_score_of_few_be_computed_and_drop_no_logit_that_reaches_it():
    for tokens in (1024, 4096):
        trial = needle(tokens, 16)
        flat, _, _ = stepped(Aether(block=16, value=2.0), trial)
        levels, _, _ = stepped(Aether(block=16, value=2.0, levels=3), trial)
        assert flat.witness()["bounds_computed"] == tokens // 16
        assert levels.witness()["bounds_computed"] == tokens // 256 + 4 + 4
        logits = torch.cat((trial.k, trial.steps[0].k), dim=2)[0, 0] @ trial.steps[0].q[0, 0, 0]
        rows = levels.mask[0, 0, 0].repeat_interleave(16)[:tokens]
        assert (logits >= 2.0).sum() == 16
        assert logits[~rows].max() < 2.0
    assert levels.bytes_read() < flat.bytes_read()
    many = stepped(Aether(block=16, value=2.0, levels=5), needle(4096, 16))[0].witness()
    assert many["bounds_computed"] == 1 + 4 * 4  # the whole, and four members at each level below


def test_its_label_parses_to_the_same_method():
    for method in Aether.variants("cpu"):
        assert registry.parse(method.label) == method
    assert math.isclose(registry.parse("aether,guarantee=0.01").guarantee, 0.01)
