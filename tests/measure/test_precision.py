"""How float32 is multiplied is put back, by whichever of torch's two sets of names it changed."""

from __future__ import annotations

import pytest
import torch

from attnbench.measure.arms import BrokenArm
from attnbench.measure.precision import MIXED, precision, set_precision
from attnbench.measure.world import World
from attnbench.protocol.verdict import Reason

CPU = torch.device("cpu")
BACKENDS = torch.backends
CHANGES = {
    "new, of CUDA's products": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "new, of all": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "new, of oneDNN's": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "new, of convolutions": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "old": lambda: torch.set_float32_matmul_precision("high"),
    "old, of CUDA's products": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "old, of cuDNN": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
}


@pytest.fixture(autouse=True)
def _as_it_was():
    before = precision()
    yield
    set_precision(before)
    assert precision() == before


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_precision_is_its_arms_fault_and_put_back(change):
    world = World(CPU).settle()
    before = precision()
    change()
    with pytest.raises(BrokenArm) as caught:
        world.require_unchanged()
    assert caught.value.reason == Reason.GLOBAL_STATE
    assert "float32 precision " in caught.value.message
    assert precision() == before
    world.require_unchanged()


def test_mixed_names_are_read_where_torch_itself_raises():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    assert precision()["float32_matmul_precision"] == MIXED


def test_full_precision_asked_for_is_the_same_as_none_asked_for():
    world = World(CPU).settle()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    world.require_unchanged()
