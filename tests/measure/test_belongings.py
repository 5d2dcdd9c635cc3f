"""What an arm uses is what it names, and nothing of it is left when it is gone."""

from __future__ import annotations

import weakref
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from attnbench.measure.arms import BrokenArm
from attnbench.measure.belongings import LEFT_BYTES, Left, require_named
from attnbench.measure.planted import Planted
from attnbench.methods.base import CacheView, MethodLayer
from attnbench.methods.reference import exact_attention
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.verdict import Reason
from tests.measure.broken import Broken, GoodLayer
from tests.measure.standing import arm, standing, with_arms


class BorrowsLayer(GoodLayer):
    """Names nothing of what it reads, in layer 1 alone."""

    def tensors(self):
        return iter(()) if self.shape.layer == 1 else super().tensors()


class CopiesLayer(GoodLayer):
    """Keeps keys of its own, and the exact values."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(CacheView(cache.k.clone(), cache.v, cache.length), q)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        return exact_attention(q, keys, values, self.shape.scale).to(q.dtype)


class Borrows(Broken):
    spoilt: ClassVar[type[MethodLayer]] = BorrowsLayer


class Copies(Broken):
    spoilt: ClassVar[type[MethodLayer]] = CopiesLayer


def require(method: str) -> None:
    with standing(with_arms("sdpa")) as bench:
        Planted(bench, 3)
        spec = f"tests.measure.test_belongings:{method}" if method[0].isupper() else method
        ready = bench.set_up(arm(spec, "x"), Scope.ATTENTION, Mode.EAGER, in_turn=True)
        require_named(bench, ready)
        del ready
        bench.reclaim()
        bench.require_intact(thoroughly=True)


@pytest.mark.parametrize("method", ["sdpa", "int8_kv", "zero_cost", "Copies"])
def test_an_arm_that_names_what_it_reads_is_left_alone(method):
    require(method)


def test_an_arm_that_reads_an_exact_cache_which_it_does_not_name_is_told_of_its_layer():
    with pytest.raises(BrokenArm) as caught:
        require("Borrows")
    assert caught.value.reason == Reason.FALSE_WITNESS
    assert caught.value.message.startswith("layer 1 reads the exact cache")


def test_tensors_that_are_left_are_told_and_those_that_went_are_not():
    elements = LEFT_BYTES // 4 + 1
    with standing(with_arms("sdpa")) as bench:
        left = Left(bench)
        gone = torch.empty(elements)
        alive = weakref.ref(gone)
        del gone
        assert alive() is None
        assert left.found() is None
        stays = torch.empty(elements)
        found = left.found()
    assert found is not None
    assert found.reason == Reason.GLOBAL_STATE
    assert f"{stays.nbytes:,} bytes" in found.message
