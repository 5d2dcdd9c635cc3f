"""The body of a `session` record, for its JSON Schema: a session opens, and ends in some way."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Opened(msgspec.Struct):
    """Before the first timing: what a worker was asked to do, and with what.

    `task` is as `measure.tasks` had it at the time; `protocol` is the protocol's name.
    """

    phase: Literal["opened"]
    run: str
    session: int | str
    task: dict[str, Any]
    environment: dict[str, str | int | float]
    protocol: str
    sources: dict[str, str] | UnsetType = UNSET


class Closed(msgspec.Struct):
    """It ended well: `samples` names the blob that holds what the worker sent."""

    phase: Literal["closed"]
    run: str
    session: int | str
    samples: str


class Failed(msgspec.Struct):
    """It ended with an error."""

    phase: Literal["failed"]
    run: str
    session: int | str
    error: str


class Aborted(msgspec.Struct):
    """It was interrupted."""

    phase: Literal["aborted"]
    run: str
    session: int | str
    why: str | UnsetType = UNSET


SESSION_BODIES: tuple[type, ...] = (Opened, Closed, Failed, Aborted)
