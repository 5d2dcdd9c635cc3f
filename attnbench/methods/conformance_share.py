"""The check of `kept_share`: which tokens have influence, and whether they are read in the step.

A value row is turned round, which keeps its norm and its scale: a method that chooses by them, or
rounds with them, has no reason to treat the token otherwise.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, Family, Method, MethodLayer
from attnbench.methods.conformance import Check
from attnbench.methods.trial import Case, Trial, prefilled, storages
from attnbench.protocol.integrity import OWN_SLACK

CASE = Case(33, 64, 4)
ROUNDING = 1e-6  # of a share


def check_share(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """The declared share of attended tokens is what turning one value row after another shows.

    More tokens may have influence where a method merged them, if it takes no more from the exact
    cache than it declares and keeps no more of its own.
    """
    if method.family is Family.CONTROL:
        return Check.skipped("", "a control does not attend")
    trial = Trial.make(CASE, dtype, device, seed=CASE.tokens, sharpness=0.25)
    method.check(trial.shape)
    layer, cache = prefilled(method, trial)
    step = trial.steps[0]
    layer.decode(step.q, step.k, step.v)
    declared = layer.witness()["kept_share"]
    counted, read = counted_shares(method, trial)
    excess = max(declared - counted, read - declared)
    detail = f"declared {declared:.4f}, counted {counted:.4f}, of the exact cache {read:.4f}"
    if counted > declared + ROUNDING:
        own = own_share(layer, cache, trial)
        excess = max(excess, own - OWN_SLACK * declared)
        detail += f", own state {own:.4f}"
    return Check.measured("", excess, ROUNDING, detail)


def counted_shares(method: Method, trial: Trial) -> tuple[float, float]:
    """Shares of tokens, the newest included, that have influence, and that have it when they change
    after prefill."""
    clean = trial.first_output(method.layer(trial.shape))
    step = trial.steps[0]
    newest = replace(trial, steps=(replace(step, v=-step.v),))
    counted = read = changed_share(clean, newest.first_output(method.layer(trial.shape)))
    for token in range(trial.case.tokens):
        negated = trial.with_negated(token)
        counted += changed_share(clean, negated.first_output(method.layer(trial.shape)))
        layer, cache = prefilled(method, trial)
        cache.v[:, :, token].neg_()
        read += changed_share(clean, next(trial.continued(layer, cache)))
    tokens = trial.case.tokens + 1
    return counted / tokens, read / tokens


def changed_share(clean: Tensor, other: Tensor) -> float:
    """The share of query heads that returned something else."""
    return float((other != clean).any(dim=-1).double().mean())


def own_share(layer: MethodLayer, cache: CacheView, trial: Trial) -> float:
    """What a layer keeps beside the exact cache, less room for new tokens, over the bytes of the
    exact cache's tokens."""
    kept = storages(layer.tensors())
    exact = storages(iter((cache.k, cache.v)))
    own = sum(size for place, size in kept.items() if place not in exact)
    tokens = trial.case.tokens + 1
    room = (trial.shape.capacity - tokens) * trial.shape.row_bytes
    return max(0, own - room) / (tokens * trial.shape.row_bytes)
