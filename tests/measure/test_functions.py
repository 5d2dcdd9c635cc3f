"""Functions that time, judge and compute are what they were, for every arm."""

from __future__ import annotations

import builtins
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from attnbench.errors import AttnbenchError
from attnbench.measure import held, reached, recheck
from attnbench.measure.arms import BrokenArm
from attnbench.measure.clock import HostClock
from attnbench.measure.functions import FOLLOWS, guarded, names_of_model
from attnbench.measure.world import World
from attnbench.methods import sdpa
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention
from attnbench.models.sources import load
from attnbench.protocol.verdict import Reason

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load("embedded", torch.float32, CPU, 1).module


def blamed(world: World) -> AttnbenchError:
    with pytest.raises(BrokenArm) as caught:
        world.require_unchanged(thoroughly=False)
    return caught.value


def another(own: Callable[..., Any]) -> Callable[..., Any]:
    """Does the same, also where it is a method."""

    def does_the_same(*given: object, **named: object) -> object:
        return own(*given, **named)

    return does_the_same


HEAP_TYPE = 1 << 9


def replaceable(owner: Any) -> bool:
    """Whether Python lets one replace what it has, and the guard does not live by it itself."""
    name = getattr(owner, "__module__", owner.__name__)
    lives_by = name in (builtins.__name__, held.__name__, reached.__name__)
    return not lives_by and (isinstance(owner, ModuleType) or bool(owner.__flags__ & HEAP_TYPE))


def test_every_guarded_name_that_is_replaced_is_told_and_put_back():
    """Of one owner at a time: there are more than ten thousand names."""
    world = World(CPU).settle()
    by_owner: dict[int, tuple[Any, dict[str, Any]]] = {}
    for (owner, name), own in world._held.names.items():
        if replaceable(owner) and not name.startswith("__"):
            by_owner.setdefault(id(owner), (owner, {}))[1][name] = own
    assert sum(len(names) for _, names in by_owner.values()) > 5000
    for owner, names in by_owner.values():
        for name, own in names.items():
            reached.put(owner, name, another(own))
        told = world._held.put_back()
        assert told == ([f"{owner.__name__}.{name}" for name in names], False)
        assert all(vars(owner)[name] is own for name, own in names.items())
    world.require_unchanged()


def test_methods_and_the_classes_that_measure_are_guarded():
    assert set(guarded().names) >= {
        (HostClock, "time"), (sdpa, "scaled_dot_product_attention"), (ExactCacheLayer, "append"),
    }  # fmt: skip


def test_clocks_chance_statistics_and_attention_are_guarded():
    names = set(guarded().names)
    functional = torch.nn.functional
    assert names >= {
        (time, "perf_counter_ns"), (time, "monotonic"), (statistics, "median"), (math, "fsum"),
        (os, "urandom"), (random.SystemRandom, "random"), (torch.cuda, "synchronize"),
        (torch.cuda.Event, "elapsed_time"), (functional, "scaled_dot_product_attention"),
        (torch._C.TensorBase, "clone"), (torch, "equal"), (torch, "nan_to_num"),
        (torch.linalg, "inv"), (builtins, "max"),
    }  # fmt: skip


def test_a_name_that_is_gone_is_there_again():
    world = World(CPU).settle()
    own = statistics.median
    del statistics.median
    assert "statistics.median" in blamed(world).message
    assert statistics.median is own


def test_code_that_was_exchanged_under_its_name_is_told_and_put_back():
    world = World(CPU).settle()
    own = exact_attention.__code__
    exact_attention.__code__ = (lambda q, k, v, scale: q).__code__
    caught = blamed(world)
    assert (caught.reason, caught.message) == (
        Reason.PATCHED, "it replaced the code of exact_attention",
    )  # fmt: skip
    assert exact_attention.__code__ is own
    world.require_unchanged()


def test_what_a_model_is_computed_with_is_guarded_whoever_the_model_is():
    assert set(guarded().names) >= {
        (functional, "linear"), (functional, "silu"), (torch._C._nn, "linear"), (torch, "bmm"),
        (nn.Module, "__call__"), (nn.Module, "_call_impl"), (torch._C.TensorBase, "__mul__"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["apply_rotary_pos_emb", "rotate_half", "LlamaMLP"])
def test_a_function_of_the_models_module_is_guarded_once_the_model_is_known(name, model):
    world = World(CPU).settle(model)
    place = import_module(type(model).__module__)
    own = getattr(place, name)
    setattr(place, name, another(own))
    caught = blamed(world)
    assert caught.reason == Reason.PATCHED
    assert caught.message == f"it replaced {place.__name__}.{name}"
    assert getattr(place, name) is own


def test_methods_of_the_classes_that_a_model_is_built_of_are_guarded(model):
    kinds = {type(part) for part in model.modules()}
    assert nn.Linear in kinds
    own = {(kind, "forward") for kind in kinds if "forward" in vars(kind)}
    assert set(names_of_model(model)) >= own
    world = World(CPU).settle(model)
    forward = nn.Linear.forward
    code = forward.__code__
    nn.Linear.forward = another(forward)
    assert "Linear.forward" in blamed(world).message
    assert nn.Linear.forward is forward
    forward.__code__ = (lambda self, input: input).__code__
    assert "the code of Linear.forward" in blamed(world).message
    assert forward.__code__ is code


def test_a_model_that_runs_changes_none_of_it(model):
    tokens = torch.ones(1, 4, dtype=torch.int64)
    with torch.no_grad():
        model(input_ids=tokens)  # starts the threads that torch computes with
        world = World(CPU).settle(model)
        model(input_ids=tokens)
        world.require_unchanged()


class SaysItIsEqual:
    """Something to call that is equal to whatever it is compared with."""

    def __call__(self, *given: object, **named: object) -> object:
        return None

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def test_a_replacement_that_says_it_is_equal_is_told(monkeypatch):
    world = World(CPU).settle()
    monkeypatch.setattr(statistics, "fmean", SaysItIsEqual())
    assert "fmean" in str(blamed(world))


def test_a_name_that_is_gone_is_told_and_put_back(monkeypatch):
    own = statistics.median
    world = World(CPU).settle()
    monkeypatch.delattr(statistics, "median")
    assert "median" in str(blamed(world))
    assert statistics.median is own


@pytest.mark.parametrize("name", ["nan_to_num", "clamp", "__getattribute__", "unheard_of"])
def test_a_name_of_tensors_that_hides_that_of_their_base_is_told_and_gone_again(name):
    world = World(CPU).settle()
    setattr(torch.Tensor, name, another(getattr(torch.Tensor, name, None)))
    assert blamed(world).message == f"it replaced Tensor.{name}"
    assert name not in vars(torch.Tensor)
    world.require_unchanged()


def test_a_function_that_hides_a_builtin_one_from_a_module_is_told_and_gone_again():
    world = World(CPU).settle()
    recheck.float = lambda value: 0.0
    assert blamed(world).message == "it replaced attnbench.measure.recheck.float"
    assert not hasattr(recheck, "float")


def test_what_follows_the_default_dtype_is_no_arms_doing():
    assert FOLLOWS in {(torch, name) for name in vars(torch)}
    assert FOLLOWS not in guarded().names
