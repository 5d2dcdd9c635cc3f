"""The table of products: what is written is found again, for its place alone."""

from __future__ import annotations

import msgspec
import pytest

from attnbench.errors import UsageError
from attnbench.kernels.product_launch import ChosenProduct, ProductLaunch, ProductShape
from attnbench.models.product_table import (
    BUILT_IN,
    ProductEntry,
    ProductProvenance,
    product_place,
    read_products,
    write_products,
)
from attnbench.models.sources import inspect

PRODUCT = ChosenProduct(
    ProductShape(4, 3072, 2048, "norm"),
    ProductLaunch("ring", block_n=16, num_warps=4, on_an_sm=1, tiles=8),
)
MEASURED = ProductProvenance(
    step_us=1000.0, library_us=1400.0, tried=9, utc="2026-01-01T00:00:00", torch="2", triton="3"
)


def entry(**changes) -> ProductEntry:
    info = inspect("preset:llama-3.2-1b")
    here = {"gpu": "A GPU", "compute_capability": "9.0", "dtype": "bfloat16", "batch": 4}
    place = product_place(info, **(here | changes))
    return ProductEntry(place=place, products=(PRODUCT,), measured=MEASURED)


def test_an_entry_is_found_in_its_place_and_in_no_other(tmp_path):
    path = tmp_path / "products.json"
    write_products(path, [entry()])
    table = write_products(path, [entry(batch=1), entry()])
    assert read_products(path).entries == table.entries
    assert len(table.entries) == 2
    assert table.find(entry().place).products == (PRODUCT,)
    assert table.find(entry(batch=2).place) is None
    assert table.find(entry(gpu="Another").place) is None


def test_the_built_in_table_can_be_read():
    assert read_products().name.startswith("built-in")
    assert all(each.products for each in read_products().entries)
    assert BUILT_IN.read_text().startswith("[")


@pytest.mark.parametrize("text", ["{", '[{"place": {}}]'])
def test_what_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "products.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no table of products"):
        read_products(path)


def test_a_kernel_that_does_not_exist_is_refused(tmp_path):
    path = tmp_path / "products.json"
    write_products(path, [entry()])
    path.write_text(path.read_text().replace('"ring"', '"magic"'))
    with pytest.raises(UsageError, match="no table of products"):
        read_products(path)


def test_a_product_goes_to_a_worker_and_comes_back_as_it_was():
    encoded = msgspec.json.encode(PRODUCT)
    assert msgspec.json.decode(encoded, type=ChosenProduct) == PRODUCT
