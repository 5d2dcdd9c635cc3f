"""Something done in a forked child, its result sent back: what it held is gone when it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import torch

from attnbench.measure.lifeline import end_with_parent

_R = TypeVar("_R", bound=msgspec.Struct)


@dataclass(frozen=True)
class Ended:
    """A child that ended without a result: its exit status, negative for a signal."""

    status: int

    @property
    def how(self) -> str:
        """In words."""
        if self.status < 0:
            return f"by {signal.Signals(-self.status).name}"
        return f"with status {self.status}"


def in_child(work: Callable[[], _R], kind: type[_R]) -> _R | Ended:
    """What `work` returns in a forked child, of this type, or how the child ended instead.

    CUDA must not be in use in this process.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        _report(work, writes)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        return msgspec.json.decode(said, type=kind)
    return Ended(os.waitstatus_to_exitcode(status))


def _report(work: Callable[[], msgspec.Struct], pipe: int) -> None:
    """Runs in the child and ends it, without what the parent has registered for its own end."""
    status = 1
    # A pool of threads does not survive a fork: the child would wait for threads that are gone.
    torch.set_num_threads(1)
    try:
        end_with_parent()
        with os.fdopen(pipe, "wb") as stream:
            stream.write(msgspec.json.encode(work()))
        status = 0
    finally:
        os._exit(status)
