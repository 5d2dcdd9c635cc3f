"""What a worker process says on its standard output: one JSON line an event.

Any number of `Progress`, then exactly one `Result` or `Failure` as the last line.
"""

from __future__ import annotations

import os
from typing import BinaryIO

import msgspec

from attnbench.measure.tasks import TaskResult


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """So many of so many are done; also the sign of life that the supervisor waits for."""

    done: int
    total: int
    detail: str


class Result(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="result"):
    """What the task came to."""

    result: TaskResult


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """Why the task came to nothing; `type` is the name of the exception's class."""

    type: str
    message: str
    hint: str


Event = Progress | Result | Failure


def decode_event(line: bytes) -> Event:
    """One line of a worker's output; raises `msgspec.DecodeError` on anything else."""
    event: Event = msgspec.json.decode(line, type=Event)
    return event


class EventWriter:
    """Writes events, each at once, to the stream that the supervisor reads."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, event: Event) -> None:
        self._stream.write(msgspec.json.encode(event) + b"\n")
        self._stream.flush()

    def progress(self, done: int, total: int, detail: str) -> None:
        """Send `Progress`."""
        self.send(Progress(done=done, total=total, detail=detail))


def take_stdout() -> EventWriter:
    """Keep the real standard output for events and point `stdout` at `stderr`.

    A stray print of a library, a kernel or a third-party method, from Python or native code,
    then cannot corrupt the stream of events.
    """
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return EventWriter(stream)
