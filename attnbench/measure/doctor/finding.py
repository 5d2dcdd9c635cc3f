"""What a check found: how grave it is, what was seen, why it matters, what fixes it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from attnbench.errors import Exit


class Severity(StrEnum):
    """How a finding bears on a measurement, the gravest first."""

    BAD = "bad"  # a measurement would be void, or would not come about
    WARN = "warn"  # it would be noisier or slower than it need be
    UNKNOWN = "unknown"  # it cannot be asked here, so that nothing can be said or voided
    OK = "ok"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check's answer.

    `why` is one line and empty where all is well; `fix` is a command to copy, empty where none
    helps. `exit_code` is what a script shall learn of it.
    """

    check: str
    severity: Severity
    seen: str
    why: str = ""
    fix: str = ""
    exit_code: Exit = Exit.DONE


def ok(check: str, seen: str) -> Finding:
    """All is well."""
    return Finding(check=check, severity=Severity.OK, seen=seen)


def unknown(check: str, seen: str, why: str = "", fix: str = "") -> Finding:
    """It cannot be asked here."""
    return Finding(check=check, severity=Severity.UNKNOWN, seen=seen, why=why, fix=fix)


def warn(check: str, seen: str, why: str, fix: str = "") -> Finding:
    """It counts, but could be better."""
    return Finding(check=check, severity=Severity.WARN, seen=seen, why=why, fix=fix)


def bad(check: str, seen: str, why: str, fix: str = "", exit_code: Exit = Exit.VOID) -> Finding:
    """It would not count."""
    return Finding(
        check=check, severity=Severity.BAD, seen=seen, why=why, fix=fix, exit_code=exit_code
    )
