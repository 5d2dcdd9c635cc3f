"""Every error that attnbench raises on purpose: what was wrong, what to do, and the exit code."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a script learns from attnbench; where several apply: 13, 12, 10, 11, 0."""

    DONE = 0
    RUNTIME = 1
    USAGE = 2
    FALSIFIED = 10
    INCONCLUSIVE = 11
    VOID = 12
    LEDGER_BROKEN = 13
    INTERRUPTED = 130


class AttnbenchError(Exception):
    """An error whose text a user can act on; `hint` says how."""

    exit_code: Exit = Exit.RUNTIME
    reason: str = ""  # of the verdict that follows from it, where one does

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.reason = reason


class UsageError(AttnbenchError):
    """The command line asks for something that does not exist or makes no sense."""

    exit_code = Exit.USAGE


class Unsupported(AttnbenchError):
    """A method, kernel or mode that cannot run for this shape, dtype, model or device."""


class ModelError(AttnbenchError):
    """A model that cannot be found, fetched, read or driven faithfully."""


class NoSuchModel(ModelError):
    """The command line names a model that is not there."""

    exit_code = Exit.USAGE


class DoesNotFit(AttnbenchError):
    """More memory is needed than there is; the hint names the largest context that fits."""


class WorkerFailed(AttnbenchError):
    """A worker process died, hung or sent something that is no event."""


class SessionLost(WorkerFailed):
    """What one arm did to the process or the device leaves nothing to measure the others with."""


class WorkerHung(WorkerFailed):
    """A worker that said nothing for longer than what it was at may take."""


class JudgeChanged(AttnbenchError):
    """A method changed the process that judges it: what that would say counts for nothing."""

    exit_code = Exit.VOID


class LedgerError(AttnbenchError):
    """The ledger cannot be read, written or trusted."""

    exit_code = Exit.LEDGER_BROKEN
