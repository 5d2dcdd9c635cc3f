"""A kernel that an arm puts into torch's dispatcher is told of that arm; what is new is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnbench.errors import SessionLost
from attnbench.measure.dispatcher import all_operators, step_operators
from attnbench.measure.world import World
from attnbench.protocol.verdict import Reason

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:Warning only once for all operators")
KEYS = ("CPU", "AutogradCPU", "CompositeImplicitAutograd", "BackendSelect", "ADInplaceOrView")
OPERATORS = (
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"),
    *("bmm", "linear", "cosh", "linalg_inv_ex"),
)


def kernel(*given: object, **named: object) -> None:
    """Never called."""


@pytest.fixture
def few_operators():
    """All of them, here."""


@pytest.fixture
def library():
    made = torch.library.Library("aten", "IMPL")
    yield made
    made._destroy()


@pytest.fixture
def bare():
    """Registers as `torch.library` does, but leaves no note of it there."""
    kept = []

    def register(name: str, key: str) -> None:
        module = torch._C._dispatch_library("IMPL", "aten", "", "RegisterCPU_0.cpp", 1)
        kept.append(module)
        module.impl(name, key, kernel)

    yield register
    for module in kept:
        module.reset()


def blamed(world: World, *, thoroughly: bool) -> str:
    with pytest.raises(SessionLost) as caught:
        world.require_unchanged(thoroughly=thoroughly)
    assert caught.value.reason == Reason.GLOBAL_STATE
    return caught.value.message


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_kernel_for_any_operator_of_torch_is_seen_around_every_visit(name, key, library):
    world = World(CPU).settle()
    library.impl(name, kernel, key)
    assert name in blamed(world, thoroughly=False)
    blamed(world, thoroughly=True)
    world.require_unchanged()


@pytest.mark.parametrize("name", ["_scaled_dot_product_flash_attention_for_cpu", "mm"])
def test_one_that_went_round_the_notes_of_torch_is_seen_there_too(name, bare):
    world = World(CPU).settle()
    bare(name, "CPU")
    assert f"aten::{name}" in blamed(world, thoroughly=False)


def test_and_for_an_operator_that_no_step_has_where_the_whole_table_is_read(bare):
    world = World(CPU).settle()
    bare("cosh", "CPU")
    world.require_unchanged(thoroughly=False)
    assert "whole dispatcher aten::cosh" in blamed(world, thoroughly=True)


def test_a_kernel_for_whatever_has_none_is_seen():
    world = World(CPU).settle()
    module = torch._C._dispatch_library("IMPL", "_", "CPU", "a.cpp", 1)
    try:
        module.fallback("CPU", kernel)
        assert "fallbacks" in blamed(world, thoroughly=False)
    finally:
        module.reset()


def test_a_kernel_that_was_there_before_the_arms_is_nobodys_fault(library):
    library.impl("cosh", kernel, "CPU")
    world = World(CPU).settle()
    world.require_unchanged()
    world.require_unchanged(thoroughly=False)


def test_an_operator_more_changes_none():
    world = World(CPU).settle()

    @torch.library.custom_op("attnbench_tests::copied", mutates_args=())
    def copied(x: Tensor) -> Tensor:
        return x.clone()

    copied.register_fake(torch.empty_like)
    copied.register_autograd(lambda ctx, grad: grad)
    copied(torch.ones(2))
    world.require_unchanged()


def test_what_torch_registers_on_first_use_changes_none():
    world = World(CPU).settle()
    torch.func.vmap(torch.sin)(torch.ones(3))
    compiled = torch.compile(lambda x: (x @ x).softmax(-1), backend="aot_eager")
    compiled(torch.ones(3, 3))
    world.require_unchanged()


def test_every_operator_that_is_watched_by_name_exists():
    for device in ("cpu", "cuda"):
        assert set(step_operators(torch.device(device))) <= set(all_operators())


def test_a_look_around_a_visit_does_not_read_the_whole_table():
    """By what it reads: no time is asserted."""
    assert len(step_operators(CPU)) < len(all_operators()) / 50
