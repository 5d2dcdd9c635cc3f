"""What can be wrong with a ledger, as errors that say what to do."""

from __future__ import annotations

from attnbench.errors import AttnbenchError, Exit, LedgerError


class NotCanonical(AttnbenchError):
    """A value that has no canonical JSON form; `where` is its path inside the document."""

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(
            f"{where or 'the value'}: {reason}",
            hint="Records hold strings, booleans, finite numbers, whole numbers up to 2^53, "
            "lists and objects; leave a missing measurement out.",
        )
        self.reason = reason
        self.where = where

    def inside(self, key: str) -> NotCanonical:
        """The same refusal, seen from the object or list that holds the value."""
        separator = "" if self.where.startswith("[") or not self.where else "."
        return NotCanonical(self.reason, f"{key}{separator}{self.where}")


class BadLine(LedgerError):
    """One line that cannot be trusted, and why; whoever walks the file adds which line."""


UPGRADE = "upgrade to read it"
"""How a reason ends that is no damage: a later attnbench wrote the line."""


class BrokenLedger(LedgerError):
    """The first line of a ledger that is not what was appended, or that cannot be read here."""

    def __init__(self, source: str, line: int, reason: str) -> None:
        super().__init__(
            f"{source}, line {line}: {reason}",
            hint=_LATER if reason.endswith(UPGRADE) else _DAMAGED,
        )
        self.line = line
        self.reason = reason


_DAMAGED = (
    "Nothing after the line before can be trusted. Restore the file from a copy or from git; "
    "`attnbench ledger verify --against CHECKPOINT` tells whether a copy is the one you knew."
)
_LATER = (
    "A later attnbench wrote this line. Read the ledger with that version (each record "
    "names its own as `tool`); leave the file as it is."
)


class TornTail(LedgerError):
    """The last line was not written to its end; everything before it is intact."""

    def __init__(self, source: str, line: int, intact_bytes: int, *, only_newline: bool) -> None:
        what = "lacks only its newline" if only_newline else "was not written to its end"
        super().__init__(
            f"{source}, line {line}: the last record {what} (a crash or a full disk)",
            hint=f"The {line - 1} records before it are intact. `attnbench ledger repair` says "
            "what it would do, and with --apply does it.",
        )
        self.line = line
        self.intact_bytes = intact_bytes
        self.only_newline = only_newline


class LedgerUnavailable(LedgerError):
    """The file system does not let us read or write the ledger; the ledger itself is sound."""

    exit_code = Exit.RUNTIME


class UnknownRecord(LedgerError):
    """No record or run of that id, or more than one."""

    exit_code = Exit.USAGE


class Refused(LedgerError):
    """A record that would make no sense, such as the retraction of a retraction."""

    exit_code = Exit.USAGE


class BadBlob(LedgerError):
    """Raw samples that are gone, or are no longer what was recorded."""
