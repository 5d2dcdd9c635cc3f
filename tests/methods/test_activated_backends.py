"""FlashAttention of another package under SDPA: in place for a call, and for no other arm."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.library import Library
from torch.nn import attention
from torch.nn.attention import _registry

from attnbench.errors import Unsupported
from attnbench.measure.world import World
from attnbench.methods import sdpa
from attnbench.methods.packages import Package
from attnbench.methods.sdpa import ACTIVATED, Sdpa, activated
from attnbench.methods.trial import Case

CPU = torch.device("cpu")
OPERATOR = "_scaled_dot_product_flash_attention_for_cpu"


@dataclass
class Handle:
    library: Library | None

    def remove(self) -> None:
        self.library = None


def constant(query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    return torch.full_like(query, 7.0), query.new_zeros(query.shape[:3])


def put_in_place() -> Handle:
    library = Library("aten", "IMPL", "CPU")
    library.impl(OPERATOR, constant, "CPU")
    return Handle(library)


@pytest.fixture
def stand_in(monkeypatch):
    """A FlashAttention for CPUs that gives sevens, under the name of the third."""
    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", put_in_place)
    monkeypatch.setitem(ACTIVATED, "fa3", ("FA3", Package(("torch",), install="")))


@pytest.mark.usefixtures("stand_in")
def test_it_serves_the_call_and_leaves_the_process_as_it_was():
    shape = Case(8, 64, 4).shape(torch.float32, CPU, 1)
    q, k = torch.randn(1, 8, 1, 64), torch.randn(1, 2, 9, 64)
    before = Sdpa(backend="flash").call(q, k, k, shape)
    world = World(CPU).settle()
    assert (Sdpa(backend="fa3").call(q, k, k, shape) == 7).all()
    assert attention.current_flash_attention_impl() is None
    world.require_unchanged()
    assert torch.equal(Sdpa(backend="flash").call(q, k, k, shape), before)


@pytest.mark.usefixtures("stand_in")
def test_it_is_gone_when_the_call_fails():
    during = []

    def fail() -> None:
        with activated("fa3"):
            during.append(attention.current_flash_attention_impl())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert during == ["FA3"]
    assert attention.current_flash_attention_impl() is None


def test_what_cannot_be_activated_is_refused_and_pytorchs_own_does_not_run_instead(monkeypatch):
    def broken() -> Handle:
        raise RuntimeError("Module does not expose FA3 kernels")

    monkeypatch.setitem(_registry._FLASH_ATTENTION_IMPLS, "FA3", broken)
    shape = Case(8, 64, 4).shape(torch.float32, CPU, 1)
    q, k = torch.randn(1, 8, 1, 64), torch.randn(1, 2, 9, 64)
    with pytest.raises(Unsupported, match="FA3 cannot be activated: Module does not expose"):
        Sdpa(backend="fa3").call(q, k, k, shape)
    with pytest.raises(Unsupported, match="needs a CUDA GPU"):
        Sdpa(backend="fa3").check(shape)


def test_it_is_an_arm_of_a_bare_run_only_where_its_package_is(monkeypatch):
    def labels() -> set[str]:
        return {method.label for method in Sdpa.variants("cuda")}

    missing = Package(("no_such_package",), install="")
    monkeypatch.setattr(sdpa, "ACTIVATED", {n: (n.upper(), missing) for n in ("fa3", "fa4")})
    assert not {"sdpa,backend=fa3", "sdpa,backend=fa4"} & labels()
    here = Package(("torch",), install="")
    monkeypatch.setattr(sdpa, "ACTIVATED", {n: (n.upper(), here) for n in ("fa3", "fa4")})
    assert {"sdpa,backend=fa3", "sdpa,backend=fa4"} <= labels()
    assert "sdpa,backend=fa3" not in {method.label for method in Sdpa.variants("cpu")}
