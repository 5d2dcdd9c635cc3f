"""What a worker process says on its standard output: one JSON line an event.

Any number of `Progress`, `Mark` and `Kept`, then exactly one `Result` or `Failure` as the last
line. `Kept` is a question: the parent answers with one line of JSON, `Wanted`, on standard input.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import BinaryIO, Protocol

import msgspec

from attnbench.measure.answers import TaskResult

AHEAD = "ahead"  # argument of a worker that has no task yet: it imports what most tasks need


class Doing(StrEnum):
    """What an arm is at."""

    SET_UP = "set-up"
    WARM_UP = "warm-up"
    TIMED = "timed steps"
    VISITED = "checks"  # the timed steps are over
    PROBED = "probe"
    JUDGED = "quality"


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """So many of so many are done; also the sign of life that the supervisor waits for."""

    done: int
    total: int
    detail: str


class Mark(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="mark"):
    """What an arm begins now: the parent reads its own clock, and knows whom to blame for silence.

    `patience_s` is how long it may last; 0 leaves that to the parent.
    """

    arm: str
    doing: Doing
    cell: int
    block: int = 0
    patience_s: float = 0.0


class Pick(msgspec.Struct, frozen=True, kw_only=True):
    """A timed step to check: the last one of an arm's `visit`, in full-attention layer `layer`."""

    arm: str
    visit: int
    layer: int


class Kept(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="kept"):
    """What the last steps of visits left behind is kept: so many visits of each arm, of so many
    layers. `rehearsed`: which of them ended at a step that was drawn from all. `cell` numbers the
    cell among all that the worker walks."""

    visits: dict[str, int]
    layers: int
    rehearsed: dict[str, tuple[int, ...]] = {}
    cell: int = 0


class Wanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which of them the parent wants to have checked, and whether the session's arms are probed on
    planted caches too; nobody knew before they were timed."""

    picks: tuple[Pick, ...]
    probe: bool = True


class Result(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="result"):
    """What the task came to."""

    result: TaskResult


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """Why the task came to nothing; `type` is the name of the exception's class."""

    type: str
    message: str
    hint: str
    reason: str = ""


Event = Progress | Mark | Kept | Result | Failure


def decode_event(line: bytes) -> Event:
    """One line of a worker's output; raises `msgspec.DecodeError` on anything else."""
    event: Event = msgspec.json.decode(line, type=Event)
    return event


Tell = Callable[[int, int, str], None]  # done, total, what runs now


class Talk(Protocol):
    """What a worker can say while it works, and ask."""

    def progress(self, done: int, total: int, detail: str) -> None:
        """So many of so many are done, and what runs now."""

    def mark(self, mark: Mark) -> None:
        """An arm begins something."""

    def ask(self, kept: Kept) -> Wanted:
        """Which timed steps are to be checked."""


class EventWriter:
    """Writes events, each at once, to the stream that the supervisor reads; its answers come in
    on `answers`, a line each."""

    def __init__(self, stream: BinaryIO, answers: BinaryIO) -> None:
        self._stream = stream
        self._answers = answers

    def send(self, event: Event) -> None:
        self._stream.write(msgspec.json.encode(event) + b"\n")
        self._stream.flush()

    def progress(self, done: int, total: int, detail: str) -> None:
        """Send `Progress`."""
        self.send(Progress(done=done, total=total, detail=detail))

    def mark(self, mark: Mark) -> None:
        """Send it."""
        self.send(mark)

    def ask(self, kept: Kept) -> Wanted:
        """Send it and wait for the answer; raises `EOFError` where the parent is gone."""
        self.send(kept)
        line = self._answers.readline()
        if not line:
            raise EOFError("nobody answered which steps to check")
        wanted: Wanted = msgspec.json.decode(line, type=Wanted)
        return wanted


def take_stdout() -> EventWriter:
    """Keep the real standard output for events and point `stdout` at `stderr`.

    A stray print of a library, a kernel or a third-party method, from Python or native code,
    then cannot corrupt the stream of events.
    """
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return EventWriter(stream, sys.stdin.buffer)
