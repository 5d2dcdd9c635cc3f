"""Which kernel configurations are known for a run before it starts, and so are not searched for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from attnbench.kernels.product_launch import ChosenProduct
from attnbench.measure.device import DeviceFacts
from attnbench.measure.tasks import KnownLaunch
from attnbench.methods.kernel_table import BUILT_IN, Entry, KernelTable, Place, read_table
from attnbench.models.info import ModelInfo
from attnbench.models.product_table import BUILT_IN as BUILT_IN_PRODUCTS
from attnbench.models.product_table import ProductTable, product_place, read_products
from attnbench.protocol.cell import Mode, Scope

NO_TABLE = "none"
Cells = Sequence[tuple[Scope, Mode]]


def tuned_scope(cells: Cells) -> Scope:
    """Where configurations are compared: in the step, where nothing but steps is measured.

    What is fastest between other launches of attention need not be so between other kernels.
    """
    return Scope.STEP if {scope for scope, _ in cells} == {Scope.STEP} else Scope.ATTENTION


def tried_mode(cells: Cells) -> Mode:
    """The mode in which arms are tried: the one of the cells that is nearest to an engine's."""
    modes = {mode for _, mode in cells}
    return next(mode for mode in (Mode.COMPILED, Mode.GRAPH, Mode.EAGER) if mode in modes)


def place_of(
    facts: DeviceFacts, info: ModelInfo, *, context: int, batch: int, dtype: str, cells: Cells
) -> Place:
    """Where the kernels of a run will be, but for the method.

    Attention alone is captured in mode compiled as it is in mode graph.
    """
    scope, mode = tuned_scope(cells), tried_mode(cells)
    alone = scope is Scope.ATTENTION and mode is Mode.COMPILED
    return Place(
        method="",
        gpu=facts.name,
        compute_capability=facts.compute_capability,
        scope=scope,
        mode=Mode.GRAPH if alone else mode,
        dtype=dtype,
        head_dim=info.head_dim,
        kv_heads=info.kv_heads,
        group=info.heads // info.kv_heads,
        context=context,
        batch=batch,
    )


def chosen_table(asked: str) -> KernelTable:
    """The package's own table, a file, or (`none`) an empty one, with which all are tried."""
    if asked == NO_TABLE:
        return KernelTable(NO_TABLE, ())
    return read_table(Path(asked) if asked else BUILT_IN)


def known_launches(
    table: KernelTable, place: Place, labels: Iterable[str]
) -> dict[str, KnownLaunch]:
    """By arm label, the table's configuration for this place, and where it is from."""
    found = {label: table.find(replace(place, method=label)) for label in labels}
    return {
        label: KnownLaunch(launch=entry.launch, source=source_of(table, entry))
        for label, entry in found.items()
        if entry is not None
    }


def source_of(table: KernelTable, entry: Entry) -> str:
    """One line for the record: the table, and what its entry rests on."""
    measured = entry.measured
    where = f", run {measured.run}" if measured.run else ""
    return (
        f"{table.name}: fastest of {measured.tried} in {entry.place.scope.value} "
        f"{entry.place.mode.value} on {entry.place.gpu}, {measured.utc[:10]}{where}"
    )


def chosen_products(asked: str) -> ProductTable:
    """The package's own table of products, a file, or (`none`) an empty one: all the library's."""
    if asked == NO_TABLE:
        return ProductTable(NO_TABLE, ())
    return read_products(Path(asked) if asked else BUILT_IN_PRODUCTS)


def known_products(
    table: ProductTable, facts: DeviceFacts, info: ModelInfo, *, batch: int, dtype: str
) -> tuple[tuple[ChosenProduct, ...], str]:
    """What the table has for this model's step here, and one line for the record on where it is
    from; nothing and an empty line where it has no entry."""
    place = product_place(
        info,
        gpu=facts.name,
        compute_capability=facts.compute_capability,
        dtype=dtype,
        batch=batch,
    )
    entry = table.find(place)
    if entry is None:
        return (), ""
    measured = entry.measured
    return entry.products, (
        f"{table.name}: {measured.step_us:.0f} us against the library's {measured.library_us:.0f}, "
        f"best of {measured.tried} on {place.gpu}, {measured.utc[:10]}"
    )
