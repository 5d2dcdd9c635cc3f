"""Where a run tells what it does; the ways of showing it live in `report`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Stage(Protocol):
    """One long part of a run."""

    def update(self, done: int, total: int, detail: str = "") -> None:
        """So many of so many are done; `detail` says what runs now."""


class Reporter(Protocol):
    """Where a run tells what it does."""

    def stage(self, title: str) -> AbstractContextManager[Stage]:
        """A part of the run begins; it ends with the context."""

    def note(self, text: str) -> None:
        """Something the user should know now."""
