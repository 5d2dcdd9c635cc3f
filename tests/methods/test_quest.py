"""Quest's bound is one, it chooses by it, and the last page and the first layers are as it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.errors import UsageError
from attnbench.methods import registry
from attnbench.methods.conformance import BOUNDS, Outcome, conform, relative_error
from attnbench.methods.quest import Quest, page_bounds
from attnbench.methods.trial import Case, Trial

CPU = torch.device("cpu")
SMALL = Case(45, 16, 3, batch=2)


def test_it_conforms():
    checks = conform(Quest(share=0.3, page=5), CPU, dtypes=(torch.float32, torch.bfloat16))
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert sum(check.passed for check in checks) >= 22


@pytest.mark.parametrize("tokens", [1, 15, 16, 127])
def test_what_it_computes_is_what_the_definition_says(tokens):
    trial = Trial.make(replace(SMALL, tokens=tokens), torch.float16, CPU, 3)
    for method in (Quest(), Quest(share=0.01, page=3), Quest(dense_layers=9)):
        seen = trial.appended_by(method.layer(trial.shape))
        right = trial.appended_by(method.reference_layer(trial.shape))
        for one, other in zip(seen, right, strict=True):
            assert relative_error(one, other) < BOUNDS[torch.float16]


def test_no_key_scores_above_its_pages_bound_and_one_that_has_every_end_scores_it():
    rng = torch.Generator().manual_seed(0)
    for spread in (0.01, 1.0, 100.0):
        q = torch.randn(7, 16, generator=rng).double()
        keys = torch.randn(40, 16, generator=rng).double() * spread + 3
        pages = keys.reshape(10, 4, 16)
        least, greatest = pages.amin(dim=1), pages.amax(dim=1)
        bounds = page_bounds(q, least, greatest)
        truth = (q @ keys.mT).reshape(7, 10, 4).amax(dim=-1)
        assert (truth <= bounds + 1e-9).all()
        corner = torch.where(q[0] > 0, greatest, least)
        torch.testing.assert_close(bounds[0], corner @ q[0])


def test_the_newest_page_is_kept_whatever_its_bound_and_the_rest_by_their_bounds():
    trial = Trial.make(Case(79, 8, 1, kv_heads=1), torch.float32, CPU)
    k = torch.zeros_like(trial.k)
    k[0, 0, 33, 0] = 5.0
    k[0, 0, 64:, 0] = -9.0
    q = torch.zeros_like(trial.steps[0].q)
    q[..., 0] = 1.0
    newest = torch.full_like(trial.steps[0].k, -9.0)
    method = Quest(share=0.4)
    layer = method.layer(trial.shape)
    layer.prefill(replace(trial, k=k).cache())
    layer.decode(q, newest, trial.steps[0].v)
    rows, inside = layer._rows(q.reshape(1, 1, 1, 8))
    assert sorted(rows[inside].tolist()) == [*range(32, 48), *range(64, 80)]
    assert layer.witness()["pages_kept"] == 2
    assert layer.bytes_read() == (5 + 32) * trial.shape.row_bytes


def test_the_first_layers_attend_to_everything_and_say_so():
    for number, dense in ((0, 1.0), (1, 1.0), (2, 0.0)):
        trial = Trial.make(Case(200, 16, 2), torch.float32, CPU)
        shape = replace(trial.shape, layer=number)
        layer = Quest().layer(shape)
        layer.prefill(trial.cache())
        assert layer.witness()["dense_steps"] == dense
        assert (layer.witness()["kept_share"] == 1.0) is bool(dense)
        full = 201 * shape.row_bytes
        assert (layer.bytes_read() == full) is bool(dense)


def test_a_share_is_the_decimal_number_that_was_written():
    assert Quest(share=0.07, page=1).pages_kept(100, layer=2) == 7
    assert Quest(share=0.07, page=2).pages_kept(100, layer=2) == 4


@pytest.mark.parametrize("prompt", [0, 4, 5, 6])
def test_ends_of_pages_grow_with_the_cache_and_a_reset_takes_them_back(prompt):
    trial = Trial.make(replace(SMALL, tokens=prompt), torch.float32, CPU, 9)
    layer, cache = Quest(page=5).layer(trial.shape), trial.cache()
    layer.prefill(cache)
    start = [ends.clone() for ends in (layer.least, layer.greatest)]
    for _ in trial.continued(layer, cache):
        pass
    pages = cache.k[:, :, : prompt + 9].split(5, dim=2)
    assert torch.equal(
        layer.least[:, :, : len(pages)], torch.stack([page.amin(dim=2) for page in pages], dim=2)
    )
    assert torch.equal(
        layer.greatest[:, :, : len(pages)], torch.stack([page.amax(dim=2) for page in pages], dim=2)
    )
    cache.length.set(prompt)
    layer.reset()
    assert all(map(torch.equal, start, (layer.least, layer.greatest)))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("quest,share=0", "is not a share"),
        ("quest,page=0", "page=0"),
        ("quest,dense_layers=-1", "-1"),
    ],
)
def test_no_budget_and_no_page_are_refused(spec, says):
    with pytest.raises(UsageError, match=says):
        registry.parse(spec)
