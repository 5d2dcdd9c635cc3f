"""Products of few rows, interpreted: any rows, ragged columns and depths, and all that is fused."""

from __future__ import annotations

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.kernels.product_launch import ProductLaunch, ProductShape, form_of
from attnbench.kernels.products import product, ring_launches, triton_launches
from attnbench.measure.product_tuning import noise
from attnbench.models.product_definition import defined_product

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = ProductLaunch("triton", block_n=16, num_warps=4, on_an_sm=1, tiles=2, block_k=64)
FORMS = ("plain", "norm", "residual", "norm+gate", "norm+residual", "gate")
# Of a sum of K products in float32, in the second norm: many times what is seen.
BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-3}


def error(shape: ProductShape, launch: ProductLaunch, dtype: torch.dtype, **changes) -> float:
    """Relative, against float64."""
    parts = {**noise(shape, dtype, DEVICE, seed=3), **changes}
    right = defined_product(**parts)
    return float((product(**parts, launch=launch).double() - right).norm() / right.norm())


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 8, 9, 16])
def test_any_number_of_rows_up_to_sixteen_is_right(rows):
    assert error(ProductShape(rows, 50, 96), SMALL, torch.float16) < BOUNDS[torch.float16]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_every_form_is_right_in_ragged_tiles(form, dtype):
    assert error(ProductShape(3, 76, 100, form), SMALL, dtype) < BOUNDS[dtype]


def test_a_product_without_a_bias_is_right():
    shape = ProductShape(2, 40, 64)
    assert error(shape, SMALL, torch.float32, bias=None) < BOUNDS[torch.float32]


def test_programs_walk_over_more_tiles_than_there_are_of_them(monkeypatch):
    monkeypatch.setattr("attnbench.kernels.products.multiprocessors", lambda device: 3)
    assert error(ProductShape(2, 150, 64), SMALL, torch.float32) < BOUNDS[torch.float32]


def test_rows_of_weights_and_of_x_may_lie_apart():
    shape = ProductShape(4, 40, 64)
    parts = noise(shape, torch.float32, DEVICE, seed=1)
    wide, long = torch.randn(40, 96, device=DEVICE), torch.randn(4, 80, device=DEVICE)
    apart = {"weights": wide[:, 16:80], "x": long[:, :64]}
    assert error(shape, SMALL, torch.float32, **apart) < BOUNDS[torch.float32]
    turned = parts["x"].T.contiguous().T  # not a row in one piece
    assert error(shape, SMALL, torch.float32, x=turned) < BOUNDS[torch.float32]


def test_what_is_beyond_the_last_column_and_row_stays_as_it_is():
    parts = noise(ProductShape(3, 40, 64), torch.float32, DEVICE, seed=1)
    got = product(**parts, launch=SMALL)
    assert got.shape == (3, 40)
    assert got.is_contiguous()
    assert torch.equal(got, product(**parts, launch=SMALL))


@pytest.mark.parametrize(
    ("shape", "launch", "why"),
    [
        (ProductShape(17, 32, 64), SMALL, "at most 16 rows"),
        (
            ProductShape(2, 32, 64),
            ProductLaunch("ring", block_n=16, num_warps=4, on_an_sm=1, tiles=2),
            "compute capability 9.0|16 bits",
        ),
    ],
)
def test_what_a_kernel_does_not_take_is_refused(shape, launch, why):
    with pytest.raises(Unsupported, match=why):
        product(**noise(shape, torch.float32, DEVICE, seed=1), launch=launch)


def test_weights_that_do_not_lie_row_by_row_are_refused():
    parts = noise(ProductShape(2, 64, 64), torch.float32, DEVICE, seed=1)
    with pytest.raises(Unsupported, match="one piece"):
        product(**{**parts, "weights": parts["weights"].T}, launch=SMALL)


@pytest.mark.parametrize("form", ["plain", "norm+gate"])
@pytest.mark.parametrize("depth", [1024, 2048, 4096, 14336])
def test_there_is_something_to_try_of_either_kernel_for_every_preset(depth, form):
    shape = ProductShape(4, 4096, depth, form)
    assert len(ring_launches(shape)) > 4
    assert len(triton_launches(shape)) > 4
    assert triton_launches(shape, element_size=4)


def test_a_form_names_its_parts():
    assert form_of(norm=False, gated=False, residual=False) == "plain"
    assert form_of(norm=True, gated=True, residual=True) == "norm+gate+residual"
