"""The kernel of selection by coded keys finds, keeps and appends what PyTorch does, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.methods import registry
from attnbench.methods.base import KernelConfig
from attnbench.methods.conformance import BOUNDS, worst_error
from attnbench.methods.trial import Case, Trial, prefilled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FEW = "coded_topk,share=0.2,sample=64,impl=triton"
RULE = f"{FEW},sinks=2,recent=6"
# (parameters, case, tile, splits): every packing of tokens into a product, and padded groups.
CASES = (
    (RULE, Case(300, 64, 4, kv_heads=1, batch=2), 64, 2),
    (f"{RULE},bits=1", Case(190, 64, 3, kv_heads=2), 64, 1),
    (f"{RULE},bits=4", Case(190, 64, 1, kv_heads=2), 128, 1),
    (f"{FEW},sinks=9,recent=6", Case(190, 128, 7, kv_heads=2), 32, 3),
    (f"{RULE},bits=4", Case(100, 128, 2, kv_heads=1), 32, 1),
    (f"{FEW},bits=1,sinks=2,recent=0", Case(100, 128, 20, kv_heads=1), 32, 1),
    (
        RULE,
        Case(63, 64, 4, kv_heads=1),
        64,
        2,
    ),  # the next token begins a tile, in a part of its own
    (RULE, Case(1, 64, 4, kv_heads=1), 64, 1),
    ("coded_topk,share=1.0,impl=triton", Case(100, 64, 4, kv_heads=1), 64, 1),
    (f"{RULE},rows=int8", Case(300, 64, 4, kv_heads=1, batch=2), 64, 2),
    (f"{FEW},rows=int8,sinks=9,recent=6", Case(190, 128, 7, kv_heads=2), 32, 3),
)


@pytest.mark.parametrize(("spec", "case", "tile", "splits"), CASES)
def test_it_keeps_the_same_tokens_as_pytorch_and_attends_to_them(spec, case, tile, splits):
    dtype = torch.float32 if case.tokens == 190 else torch.float16
    method = registry.parse(spec)
    trial = Trial.make(case, dtype, DEVICE, 2, seed=5)
    config = KernelConfig(block_n=tile, splits=splits, num_warps=4, num_stages=3)
    layer = method.layer(replace(trial.shape, kernel=config))
    torch_layer = replace(method, impl="torch").layer(trial.shape)
    expected = list(trial.appended_by(method.reference_layer(trial.shape)))
    assert worst_error(trial.appended_by(layer), iter(expected))[0] < BOUNDS[dtype]
    assert worst_error(trial.appended_by(torch_layer), iter(expected))[0] < BOUNDS[dtype]
    tokens = case.tokens + 2
    assert torch.equal(layer.codes[:, :, :tokens], torch_layer.codes[:, :, :tokens])
    assert not layer.codes[:, :, tokens:].any()
    assert torch.equal(layer.counts.sum(dim=1), torch_layer.counts[:, 0])
    assert torch.equal(layer.rows.keys, torch_layer.rows.keys)
    assert torch.equal(layer.rows.values, torch_layer.rows.values)
    assert not layer.work.finished.any()


def test_rows_that_are_not_kept_are_not_read():
    trial = Trial.make(Case(200, 64, 4, kv_heads=1), torch.float16, DEVICE, 1, seed=2)
    step = trial.steps[0]
    config = KernelConfig(block_n=64, splits=2, num_warps=4, num_stages=3)
    method = registry.parse(RULE)
    outputs = []
    for junk in (0.0, float("nan")):
        layer, cache = prefilled_with(method, trial, config)
        layer.decode(step.q, step.k, step.v)
        chosen = [
            layer.scratch.chosen[0, first : first + kept]
            for first, kept in ((0, layer.counts[0, 0]), (128, layer.counts[0, 1] - 1))
        ]
        left_out = torch.ones(200, dtype=torch.bool, device=DEVICE)
        left_out[torch.cat(chosen).long()] = False
        assert 100 < int(left_out.sum()) < 190
        layer.reset()
        for rows in (cache.k, cache.v):
            rows[:, :, :200][:, :, left_out] = junk
        outputs.append(layer.decode(step.q, step.k, step.v))
    assert outputs[0].isfinite().all()
    assert torch.equal(*outputs)


def prefilled_with(method, trial, config):
    return prefilled(method, replace(trial, shape=replace(trial.shape, kernel=config)))


def test_large_scores_and_queries_of_zeros_stay_finite():
    trial = Trial.make(Case(100, 64, 4, kv_heads=1), torch.float16, DEVICE, 2, sharpness=60.0)
    trial.steps[1].q.zero_()
    method = registry.parse(RULE)
    outputs = list(trial.appended_by(method.layer(trial.shape)))
    assert all(out.isfinite().all() for out in outputs)
    expected = trial.appended_by(method.reference_layer(trial.shape))
    assert worst_error(iter(outputs), expected)[0] < BOUNDS[torch.float16]
