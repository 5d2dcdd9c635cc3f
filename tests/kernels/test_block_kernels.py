"""The kernels of AETHER and Quest keep what PyTorch keeps, and attend to that and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.methods import registry
from attnbench.methods.base import KernelConfig, LayerShape
from attnbench.methods.conformance import (
    BOUNDS,
    COVERING,
    Outcome,
    attempted,
    relative_error,
)
from attnbench.methods.conformance_checks import planned
from attnbench.methods.quest import QuestLayer
from attnbench.methods.trial import Case, Trial

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# (parameters, case, appended tokens): every formula and rule, tails of every kind, padded groups.
CASES = (
    ("aether", Case(63, 64, 4, kv_heads=1), 3),  # the second of the new rows begins a block
    (
        "aether,variant=scaled,block=16,threshold=share,value=0.4,sinks=1,local=1",
        Case(190, 64, 4, batch=2),
        2,
    ),
    ("aether,variant=scaled,block=8,value=3.0", Case(100, 128, 3, kv_heads=1), 2),
    ("aether,variant=rust,block=16,threshold=mass,value=0.6,heads=own", Case(90, 64, 3), 1),
    ("aether,variant=trt,block=8,threshold=relative,value=0.9,local=1", Case(100, 128, 1), 2),
    ("aether,variant=trt,block=7,threshold=mass,value=0.3,sinks=1", Case(70, 64, 5), 1),
    ("aether,variant=cone,block=5,value=12.0", Case(62, 64, 4, kv_heads=1), 2),
    ("aether,variant=trt_docs,block=100,threshold=share,value=0.5", Case(230, 64, 2), 1),
    ("aether,variant=trt_basic,block=8,threshold=share,value=0.3,heads=own", Case(60, 64, 2), 1),
    ("aether,variant=trt_backend,block=16,threshold=relative,value=0.97", Case(126, 64, 2), 2),
    ("quest,share=0.3", Case(191, 64, 4), 2),
    ("quest,share=0.2,page=5", Case(64, 128, 3, kv_heads=1, batch=2), 2),
)
SMALL = Case(100, 64, 2, kv_heads=1)
SHARE = "aether,variant=scaled,block=8,threshold=share,value=0.25,impl=triton"


def kernel_layer(spec: str, shape: LayerShape):
    """With few tiles in several parts."""
    config = KernelConfig(block_n=32, splits=2, num_warps=4, num_stages=3)
    return replace(registry.parse(spec), impl="triton").layer(replace(shape, kernel=config))


def torch_layer(spec: str, shape: LayerShape):
    return replace(registry.parse(spec), impl="torch").layer(shape)


def kept_by(layer, q: torch.Tensor) -> torch.Tensor:
    """Blocks that a layer in PyTorch kept: bool [B,Hkv,G,C]."""
    if not isinstance(layer, QuestLayer):
        return layer.mask
    rows, inside = layer._rows(q.reshape(*layer.least.shape[:2], -1, q.shape[-1]))
    pages = torch.where(inside, rows // layer.method.page, layer.least.shape[2])
    found = torch.zeros(*pages.shape[:3], layer.least.shape[2] + 1, dtype=torch.bool)
    return found.to(q.device).scatter(-1, pages, True)[..., :-1]


@pytest.mark.parametrize(("spec", "case", "appended"), CASES)
def test_it_keeps_the_same_blocks_as_pytorch_and_attends_to_them(spec, case, appended):
    dtype = torch.float16 if case.kv_heads == 1 else torch.float32
    trial = Trial.make(case, dtype, DEVICE, appended, seed=5)
    kernels, plain = kernel_layer(spec, trial.shape), torch_layer(spec, trial.shape)
    caches = [trial.cache(), trial.cache()]
    kernels.prefill(caches[0])
    plain.prefill(caches[1])
    for step in trial.steps:
        out = kernels.decode(step.q, step.k, step.v)
        right = plain.decode(step.q, step.k, step.v)
        assert relative_error(out, right.double()) < BOUNDS[dtype]
        assert torch.equal(kernels.kernels.mask(), kept_by(plain, step.q))
        for one, same in zip(summaries(kernels), summaries(plain), strict=True):
            assert torch.equal(one, same)
        said, meant = kernels.witness(), plain.witness()
        assert {name: said[name] for name in meant} == pytest.approx(meant, rel=1e-4)
        for cache in caches:
            cache.length.advance()
    assert torch.equal(caches[0].k, caches[1].k)
    assert torch.equal(caches[0].v, caches[1].v)
    assert not kernels.kernels.choice.finished.any()


def summaries(layer):
    return (layer.least, layer.greatest) if isinstance(layer, QuestLayer) else layer.store.tensors()


def stepped(spec: str, trial: Trial):
    """A kernel's layer after one step, and that step's output."""
    layer, step = kernel_layer(spec, trial.shape), trial.steps[0]
    layer.prefill(trial.cache())
    return layer, layer.decode(step.q, step.k, step.v)


def test_a_kernel_conforms():
    every = planned(registry.parse(SHARE), DEVICE, COVERING[:1], (torch.float16,))
    slow = ("attended", "configurations", "reset")  # tens of launches each; see below, and parity
    checks = [
        attempted(name, check) for name, check in every if not any(word in name for word in slow)
    ]
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert sum(check.passed for check in checks) >= 7


def test_where_all_would_be_pruned_the_last_block_is_kept_and_the_heads_are_counted():
    trial = Trial.make(SMALL, torch.float32, DEVICE)
    layer, out = stepped("aether,block=8,value=1e9", trial)
    plain = torch_layer("aether,block=8,value=1e9", trial.shape)
    assert relative_error(out, trial.first_output(plain).double()) < BOUNDS[torch.float32]
    said = layer.witness()
    assert (said["rescued"], said["blocks_kept"], said["attended_tokens"]) == (1.0, 1.0, 101 % 8)
    assert said["bounds_computed"] == 13
    assert stepped("aether,block=8,value=1e9,sinks=1", trial)[0].witness()["rescued"] == 0.0


@pytest.mark.parametrize(
    "rule",
    [
        "value=1e9",
        "threshold=relative,value=0.99",
        "threshold=share,value=0.1",
        "threshold=mass,value=0.01",
        "variant=trt,value=1e9",
        "variant=rust,value=1e9",
    ],
)
def test_a_key_that_is_no_number_shows_in_the_output_whatever_is_kept(rule):
    trial = Trial.make(SMALL, torch.float32, DEVICE)
    trial.k[0, 0, 3, 7] = float("nan")
    spec = f"aether,block=8,{rule}"
    for layer in (kernel_layer(spec, trial.shape), torch_layer(spec, trial.shape)):
        assert trial.first_output(layer).isnan().all()
    defined = registry.parse(spec).reference_layer(trial.shape)
    assert trial.first_output(defined).isnan().all()


def test_the_newest_key_may_be_no_number_too():
    trial = Trial.make(SMALL, torch.float32, DEVICE)
    trial.steps[0].k[0, 0, 0, 7] = float("nan")
    for spec in ("aether,block=8,value=1e9,sinks=1", "quest,share=0.1,page=8"):
        assert stepped(spec, trial)[1].isnan().all()


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("value=0.15", [12]),
        ("value=0.0", range(13)),
        ("threshold=relative", range(13)),
        ("threshold=share,value=0.25", range(3)),
        ("threshold=share,value=0.25,local=1", [0, 1, 12]),
        ("threshold=mass,value=0.09", range(2)),
    ],
)
def test_of_equal_scores_as_of_a_query_of_zeros_the_first_are_kept(rule, kept):
    trial = Trial.make(SMALL, torch.float32, DEVICE)
    trial.steps[0].q.zero_()
    layer, out = stepped(f"aether,block=8,{rule}", trial)
    assert layer.kernels.mask()[0, 0, 0].nonzero()[:, 0].tolist()[:13] == list(kept)
    plain = torch_layer(f"aether,block=8,{rule}", trial.shape)
    assert relative_error(out, trial.first_output(plain).double()) < BOUNDS[torch.float32]


def test_rows_that_are_not_kept_are_not_read():
    trial = Trial.make(Case(200, 64, 4, kv_heads=1), torch.float16, DEVICE, 1, seed=2)
    step, outputs = trial.steps[0], []
    for junk in (0.0, float("nan")):
        layer, cache = kernel_layer(SHARE, trial.shape), trial.cache()
        layer.prefill(cache)
        layer.decode(step.q, step.k, step.v)
        kept = layer.kernels.mask()[0, 0, 0].repeat_interleave(8)[:200]
        kept[200 // 8 * 8 :] = True  # what the last block's summary is made of
        assert 80 < int((~kept).sum()) < 190
        layer.reset()
        for rows in (cache.k, cache.v):
            rows[:, :, :200][:, :, ~kept] = junk
        outputs.append(layer.decode(step.q, step.k, step.v))
    assert outputs[0].isfinite().all()
    assert torch.equal(*outputs)


def test_a_step_may_be_repeated_and_a_reset_brings_the_prompts_summaries_back():
    for spec in (SHARE, "quest,share=0.3,page=8"):
        trial = Trial.make(SMALL, torch.float16, DEVICE, 6)
        layer, cache = kernel_layer(spec, trial.shape), trial.cache()
        layer.prefill(cache)
        before = [each.clone() for each in summaries(layer)]
        first = layer.decode(*vars(trial.steps[0]).values()).clone()
        layer.decode(*vars(trial.steps[1]).values())
        assert torch.equal(layer.decode(*vars(trial.steps[0]).values()), first)
        for _ in trial.continued(layer, cache):
            pass
        cache.length.set(SMALL.tokens)
        layer.reset()
        for one, same in zip(summaries(layer), before, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-6, atol=0)
        assert torch.equal(layer.decode(*vars(trial.steps[0]).values()), first)


def test_more_blocks_than_are_held_for_all_heads_at_once_are_chosen_among_head_by_head():
    trial = Trial.make(Case(2100, 64, 4, kv_heads=1), torch.float16, DEVICE)
    spec = "aether,variant=scaled,block=1,threshold=share,value=0.2,heads=own"
    layer, out = stepped(spec, trial)
    assert layer.kernels.choice.chosen.shape[1] == 4096  # four heads of them exceed 8192
    plain = torch_layer(spec, trial.shape)
    assert relative_error(out, trial.first_output(plain).double()) < BOUNDS[torch.float16]
    assert torch.equal(layer.kernels.mask(), plain.mask)


def test_bytes_are_those_of_all_summaries_and_of_the_blocks_that_the_group_reads():
    trial = Trial.make(replace(SMALL, tokens=103), torch.float16, DEVICE)
    layer, _ = stepped(SHARE, trial)
    read = layer.witness()["blocks_read"]
    assert layer.bytes_read() == 13 * 65 * 4 + read * 8 * 2 * 64 * 2
    layer, _ = stepped("quest,share=0.3,page=8", trial)
    assert layer.bytes_read() == (13 + layer.witness()["pages_read"] * 8) * 2 * 64 * 2


@pytest.mark.parametrize("asked", ["guarantee=0.01", "governor=g2", "levels=2"])
def test_what_the_kernels_do_not_know_is_pytorch_on_a_gpu_and_refused_as_a_kernel(asked):
    method = registry.parse(f"aether,{asked}")
    assert method.resolved(torch.device("cuda")).impl == "torch"
    assert [each.impl for each in registry.implementations_of(method)] == ["torch"]
    with pytest.raises(UsageError, match=f"no kernel for {asked.split('=', maxsplit=1)[0]}"):
        registry.parse(f"aether,{asked},impl=triton")


def test_the_kernels_are_what_runs_on_a_gpu_and_say_which_shapes_they_lack():
    shape = SMALL.shape(torch.float16, DEVICE, 1)
    for name in ("aether", "quest"):
        method = registry.parse(name).resolved(torch.device("cuda"))
        assert method.impl == "triton"
        assert method.dynamic_length
        method.check(shape)
        for change, says in (
            ({"head_dim": 32}, "head dimension 32"),
            ({"heads": 40}, "40 query heads"),
            ({"capacity": 1 << 21}, "blocks of"),
        ):
            with pytest.raises(Unsupported, match=says):
                method.check(replace(shape, **change))


def test_quest_attends_to_all_in_its_first_layers_by_the_exact_kernel():
    trial = Trial.make(SMALL, torch.float16, DEVICE)
    first = replace(trial.shape, layer=1)
    layer = registry.parse("quest,impl=triton").layer(first)
    assert trial.first_output(layer).isfinite().all()
    assert layer.witness()["kept_share"] == 1.0
