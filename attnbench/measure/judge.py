"""The process that plans, judges and records, held still: it imports methods' modules too."""

from __future__ import annotations

from collections.abc import Iterable

from attnbench.errors import AttnbenchError, JudgeChanged
from attnbench.measure.functions import ARITHMETIC, callables_of, own_modules
from attnbench.measure.held import Held
from attnbench.measure.tasks import ArmFailure
from attnbench.methods.registry import parse
from attnbench.protocol.verdict import Reason

# What brings in all that judges.
ENTRANCES = ("measure.lost", "measure.promised", "measure.appraising", "measure.recompute")


def nothing() -> None:
    """Where no method is imported, nothing changes."""


class Judge:
    """This process as it is now; make it before a method is imported that is not built in."""

    def __init__(self) -> None:
        self._held = Held(callables_of(*ARITHMETIC), modules=own_modules(ENTRANCES))

    def tried(self, specs: Iterable[str]) -> dict[str, ArmFailure]:
        """Import methods one after the other: what one of them changes is put back, and it is not
        to be measured, for the reason given under the place where it is defined.

        Raises `JudgeChanged` where something cannot be put back, and what `registry.parse` raises.
        """
        why: dict[str, ArmFailure] = {}
        for spec in specs:
            try:
                parse(spec)
            finally:
                told, stays = self._looked()
            if stays:
                raise _changed(f"{spec} replaced {', '.join(told)}")
            if told:
                why[place_of(spec)] = ArmFailure(
                    type="BrokenArm",
                    message=f"it replaced {', '.join(told)}",
                    hint="",
                    during="import",
                    reason=Reason.PATCHED.value,
                )
        return why

    def require_unchanged(self) -> None:
        """Raise `JudgeChanged` where a method changed anything, which no arm can be named for."""
        told, _ = self._looked()
        if told:
            raise _changed(f"a method that was imported replaced {', '.join(told)}")

    def _looked(self) -> tuple[list[str], bool]:
        return ([], False) if self._held.is_unchanged() else self._held.put_back()


def place_of(spec: str) -> str:
    """Where a method is defined, without its class and parameters."""
    target = spec.split(",")[0].strip()
    return target.rpartition(":")[0] or target


def _changed(message: str) -> AttnbenchError:
    return JudgeChanged(
        f"{message}, in the process that judges",
        hint="nothing is recorded that it judged; leave the methods out one by one to see which",
        reason=Reason.PATCHED.value,
    )
