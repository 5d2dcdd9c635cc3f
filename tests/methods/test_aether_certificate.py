"""The certificate is never below what skipping blocks really does, and a guarantee is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.methods.aether import Aether
from attnbench.methods.aether_bounds import BOUNDS
from attnbench.methods.aether_certificate import block_logits, fewest, skipped_mass
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Case, Trial

CPU = torch.device("cpu")
ROUNDING = 1e-9


def hard_trials(seed: int):
    """Normal, tiny, constant and heavy-tailed keys; a query along one of them; keys alike within
    blocks of four; the newest value or an old one huge."""
    trial = Trial.make(Case(150, 16, 2, batch=2), torch.float32, CPU, seed=seed, sharpness=3.0)
    rng = torch.Generator().manual_seed(seed)
    yield trial
    yield replace(trial, k=trial.k * 0.01)
    yield replace(trial, k=trial.k[:, :, :1].expand(trial.k.shape).contiguous())
    yield replace(
        trial, k=trial.k / (torch.rand(trial.k.shape[:3], generator=rng) + 0.05)[..., None]
    )
    # queries along one key, so that one block holds nearly all of the softmax
    along = trial.k[:, :, 77:78].repeat_interleave(2, dim=1)
    yield replace(trial, steps=(replace(trial.steps[0], q=along),))
    centres = torch.randn(2, 2, 38, 1, 16, generator=rng).expand(2, 2, 38, 4, 16)
    yield replace(trial, k=centres.flatten(2, 3)[:, :, :150] + 0.02 * trial.k)
    yield replace(trial, steps=(replace(trial.steps[0], v=1000 * trial.steps[0].v),))
    v = trial.v.clone()
    v[:, :, 3] *= 100
    yield replace(trial, v=v)


def truth(trial: Trial, rows: torch.Tensor):
    """The softmax mass outside `rows` [B,H,N] and the distance of outputs, in float64."""
    step, shape = trial.steps[0], trial.shape
    k, v = torch.cat((trial.k, step.k), dim=2), torch.cat((trial.v, step.v), dim=2)
    keys = k.repeat_interleave(shape.group, dim=1).double()
    logits = (step.q.double() @ keys.mT)[:, :, 0] * shape.scale
    weights = torch.softmax(logits, dim=-1)
    kept = torch.softmax(logits.masked_fill(~rows, -torch.inf), dim=-1)
    out = (kept[:, :, None] @ v.repeat_interleave(shape.group, dim=1).double())[:, :, 0]
    exact = exact_attention(step.q, k, v, shape.scale)[:, :, 0]
    return (weights * ~rows).sum(dim=-1), (out - exact).norm(dim=-1)


def stepped(method: Aether, trial: Trial):
    layer = method.layer(trial.shape)
    layer.prefill(trial.cache())
    step = trial.steps[0]
    layer.decode(step.q, step.k, step.v)
    rows = layer.mask.flatten(1, 2).repeat_interleave(method.block, dim=-1)[..., : layer.tokens]
    return layer, rows


@pytest.mark.parametrize("variant", BOUNDS)
def test_the_certificate_is_never_below_what_was_lost(variant):
    for seed in range(3):
        for trial in hard_trials(seed):
            for more in (
                {"threshold": "share", "value": 0.3},
                {"threshold": "mass", "value": 0.5, "heads": "own"},
                {"value": 1.0},
            ):
                layer, rows = stepped(Aether(variant, 16, **more), trial)
                mass, error = truth(trial, rows)
                certified = layer.certificate()
                assert (mass <= certified.skipped_mass + ROUNDING).all()
                assert (error <= certified.output_error * (1 + ROUNDING) + ROUNDING).all()
                said = layer.witness()
                assert said["skipped_mass_bound"] == float(certified.skipped_mass.max())
                assert said["output_error_bound"] == float(certified.output_error.max())


@pytest.mark.parametrize("most", [0.5, 0.01, 1e-6])
def test_a_guarantee_holds_for_every_head_by_certificate_and_in_truth(most):
    skipped_some = False
    for seed in range(3):
        for trial in hard_trials(seed):
            layer, rows = stepped(Aether("scaled", 4, guarantee=most), trial)
            mass, _ = truth(trial, rows)
            assert (layer.certificate().skipped_mass <= most).all()
            assert (mass <= most).all()
            skipped_some |= not rows.all()
    assert skipped_some


def test_a_guarantee_keeps_no_block_that_it_could_do_without():
    trial = list(hard_trials(1))[5]
    method = Aether("scaled", 4, guarantee=0.01, heads="own")
    layer, _ = stepped(method, trial)
    step = trial.steps[0]
    keys = torch.cat((trial.k, step.k), dim=2).double()
    queries = step.q.reshape(2, 2, 2, 16).double()
    scores = method.formula.score(queries, layer.store.seen(layer.tokens), trial.shape.scale)
    logits = queries @ keys.mT * trial.shape.scale
    tokens = torch.tensor([4] * 37 + [3])
    kept = layer.mask[..., :38]
    assert (~kept).sum() > 0
    least = scores.masked_fill(~kept, torch.inf).argmin(dim=-1, keepdim=True)
    fewer = kept.scatter(-1, least, False)
    rows = fewer.repeat_interleave(4, dim=-1)[..., :151]
    held = logits.masked_fill(~rows, -torch.inf).logsumexp(dim=-1)
    without = skipped_mass(scores, tokens, fewer, held)
    assert (without > 0.01)[fewer.any(dim=-1)].all()


def test_the_fewest_blocks_are_those_that_trying_one_after_another_finds():
    rng = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(50, 22, generator=rng).double()
    weights = block_logits(logits, 4)
    tokens = torch.tensor([4, 4, 4, 4, 4, 2])
    bounds = torch.stack([part.amax(dim=-1) for part in logits.split(4, dim=-1)], dim=-1)
    bounds = bounds + torch.rand(50, 6, generator=rng)
    order = bounds.argsort(dim=-1, descending=True)
    for most in (0.5, 0.1, 0.001):
        found = fewest(bounds, tokens, order, weights, most)[:, 0]
        for row in range(50):
            for count in range(1, 7):
                kept = torch.zeros(6, dtype=torch.bool)
                kept[order[row, :count]] = True
                held = weights[row][kept].logsumexp(dim=-1)
                outside = (tokens * bounds[row].exp())[~kept].sum()
                if float(outside / (held.exp() + outside)) <= most:
                    break
            assert int(found[row]) == count


def test_a_threshold_on_the_bound_is_no_limit_on_what_is_skipped():
    """Claim AE-02's example: all keys zero but for one block of logits of twice the threshold."""
    trial = Trial.make(Case(1023, 64, 1, kv_heads=1), torch.float32, CPU)
    k = torch.zeros_like(trial.k)
    k[:, :, :64, 0] = 0.3
    q = torch.zeros_like(trial.steps[0].q)
    q[..., 0] = 1 / trial.shape.scale
    step = replace(trial.steps[0], q=q, k=torch.zeros_like(trial.steps[0].k))
    layer, rows = stepped(Aether("scaled"), replace(trial, k=k, steps=(step,)))
    mass, _ = truth(replace(trial, k=k, steps=(step,)), rows)
    assert rows.sum() == 64
    assert float(mass) > 0.9
    assert float(layer.certificate().skipped_mass) == pytest.approx(float(mass), rel=1e-6)
