"""Products of few rows that a kernel of the project's own computes faster in a model's step.

A file of this package holds the project's own findings; `attnbench methods tune-products` writes
such files. Where a model, batch and GPU have no entry, every product is the library's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from attnbench.errors import UsageError
from attnbench.kernels.product_launch import ChosenProduct
from attnbench.methods.kernel_table import replace_file
from attnbench.models.info import ModelInfo

BUILT_IN = Path(__file__).with_name("product_table.json")


class ProductPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where the launches were the fastest; they are used in the same place and in no other.

    A model is known by its architecture and sizes: the same for preset, hub and local folder.
    """

    gpu: str
    compute_capability: str
    dtype: str
    batch: int
    architecture: str
    layers: int
    hidden: int
    parameters: int


class ProductProvenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the choice rests on: the median time of a compiled, captured step with attention that
    costs nothing, with these products and with the library's; how many launches were timed, and
    with what. `commit` is that of attnbench."""

    step_us: float
    library_us: float
    tried: int
    utc: str
    torch: str
    triton: str
    driver: str = ""
    commit: str = ""


class ProductEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The products of one place; those that are not named are the library's."""

    place: ProductPlace
    products: tuple[ChosenProduct, ...]
    measured: ProductProvenance


@dataclass(frozen=True)
class ProductTable:
    """The entries of one file; `name` is what records call it."""

    name: str
    entries: tuple[ProductEntry, ...]

    def find(self, place: ProductPlace) -> ProductEntry | None:
        """The entry of exactly this place."""
        return next((entry for entry in self.entries if entry.place == place), None)


def product_place(
    info: ModelInfo, *, gpu: str, compute_capability: str, dtype: str, batch: int
) -> ProductPlace:
    """The place of a model's step."""
    return ProductPlace(
        gpu=gpu,
        compute_capability=compute_capability,
        dtype=dtype,
        batch=batch,
        architecture=info.architecture,
        layers=info.layers,
        hidden=info.hidden,
        parameters=info.parameters,
    )


def read_products(path: Path = BUILT_IN) -> ProductTable:
    """Read a table; `UsageError` where it is none."""
    name = "built-in table of products" if path == BUILT_IN else str(path)
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=tuple[ProductEntry, ...])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            f"{name} is no table of products: {error}",
            hint="`attnbench methods tune-products --out FILE` writes one",
        ) from error
    return ProductTable(name, entries)


def write_products(path: Path, new: Iterable[ProductEntry]) -> ProductTable:
    """Add entries to a table, in the place of those for the same places; returns all of it."""
    held = {entry.place: entry for entry in (read_products(path).entries if path.exists() else ())}
    held |= {entry.place: entry for entry in new}
    entries = tuple(sorted(held.values(), key=lambda entry: msgspec.structs.astuple(entry.place)))
    replace_file(path, msgspec.json.encode(entries))
    return ProductTable(str(path), entries)
