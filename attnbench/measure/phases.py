"""Where a worker's seconds go: what of a session is measuring, and what is the harness."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Took:
    """Seconds of one stretch, once it is over."""

    seconds: float = 0.0


class Phases:
    """Seconds by phase, on a clock taken when this was made (an arm may patch the module's)."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = now()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[Took]:
        """What happens in the context belongs to `phase`."""
        took, began = Took(), self._now()
        try:
            yield took
        finally:
            took.seconds = self._now() - began
            self._seconds[phase] += took.seconds

    def seconds(self) -> dict[str, float]:
        """So far, by phase, and the total since this was made."""
        return {**self._seconds, "total": self._now() - self._began}
