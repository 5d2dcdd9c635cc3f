"""What an arm uses that it does not name, and what is left of it when it is gone."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from attnbench.measure.arms import BenchArm, BrokenArm
from attnbench.measure.footprint import living_storage_bytes
from attnbench.measure.recheck import errors
from attnbench.measure.workbench import Workbench
from attnbench.protocol.integrity import ERROR_BOUND
from attnbench.protocol.verdict import Reason

LEFT_BYTES = 1 << 20  # by which living tensors may grow without anybody keeping anything


def require_named(bench: Workbench, arm: BenchArm) -> None:
    """Raise `BrokenArm` where outputs change when those rows of the exact cache become zero that
    the arm does not name in `tensors()`; the cache has to be filled again afterwards."""
    unnamed = list(_unnamed(bench, arm))
    if not unnamed:
        return
    before = [out.double().cpu() for out in _first_step(arm)]
    for rows in unnamed:
        rows.zero_()
    for shape, out, right in zip(bench.tables.shapes, _first_step(arm), before, strict=True):
        _, worst_head = errors(out.double().cpu(), right)
        if worst_head > ERROR_BOUND[bench.bench.dtype]:
            raise BrokenArm(
                f"layer {shape.layer} reads the exact cache, which tensors() does not name",
                reason=Reason.FALSE_WITNESS,
            )


def _first_step(arm: BenchArm) -> tuple[Tensor, ...]:
    arm.reset()
    return arm.attend()


def _unnamed(bench: Workbench, arm: BenchArm) -> Iterator[Tensor]:
    """Keys and values of the full-attention layers that the arm lets go, or says so."""
    named = {tensor.untyped_storage().data_ptr() for tensor in arm.tensors()}
    for shape in bench.tables.shapes:
        view = bench.cache.views[shape.layer]
        yield from (r for r in (view.k, view.v) if r.untyped_storage().data_ptr() not in named)


class Left:
    """How much the living tensors grew since this was made."""

    def __init__(self, bench: Workbench) -> None:
        self._kind = bench.device.type
        self._before = living_storage_bytes(self._kind)

    def found(self) -> BrokenArm | None:
        """What to blame an arm for that is gone and left tensors behind; None where it did not."""
        grown = living_storage_bytes(self._kind) - self._before
        if grown <= LEFT_BYTES:
            return None
        said = f"when it was gone, it left {grown:,} bytes of tensors behind"
        return BrokenArm(said, reason=Reason.GLOBAL_STATE)
