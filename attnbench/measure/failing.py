"""What an arm that failed leaves to do: say it as data, and make the bench whole for the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attnbench.errors import AttnbenchError, DoesNotFit, SessionLost
from attnbench.measure.tasks import ArmFailure

CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


class Guard(Protocol):
    """The process that the arms share."""

    def require_unchanged(self, *, thoroughly: bool = True) -> None:
        """Put back what the last arm changed, and raise for it.

        Without `thoroughly`, what takes long to read is left out.
        """


def recover(label: str, outcome: object, reclaim: Callable[[], None]) -> None:
    """Make the bench whole after an arm's turn; `SessionLost` where the device is lost to all."""
    try:
        reclaim()
    except RuntimeError as error:
        said = outcome.message if isinstance(outcome, ArmFailure) else str(error)
        raise SessionLost(
            f"{label} made the device unusable for every arm: {said}",
            hint=f"leave {label} out and run again",
        ) from error


def failure_of(error: Exception, during: str, guard: Guard) -> ArmFailure:
    """The error as data; what the arm changed before it raised is its doing, whatever it raised."""
    failure = arm_failure(error, during)
    try:
        guard.require_unchanged()
    except SessionLost:
        raise
    except AttnbenchError as changed:
        return failure if failure.reason else arm_failure(changed, during)
    return failure


def arm_failure(error: Exception, during: str) -> ArmFailure:
    """The error as data; running out of memory is `DoesNotFit` whoever raised it."""
    kind = type(error).__name__
    if isinstance(error, AttnbenchError):
        return ArmFailure(
            type=kind,
            message=error.message,
            hint=error.hint,
            during=during,
            reason=str(error.reason),
        )
    if is_out_of_memory(error):
        kind = DoesNotFit.__name__
    return ArmFailure(type=kind, message=str(error)[:500], hint="", during=during)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch tells it by a class of its own on a GPU, by words on a CPU."""
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return True
    return isinstance(error, RuntimeError) and CPU_OUT_OF_MEMORY in str(error)
