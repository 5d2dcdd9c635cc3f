"""What runs now and how long to go: live on a terminal, a plain log elsewhere, silent for JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from attnbench.measure.reporter import Reporter, Stage

LOG_S = 30.0


class SilentReporter:
    """For `--json`: the result is the only output."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        del title
        yield self

    def update(self, done: int, total: int, detail: str = "") -> None:
        del done, total, detail

    def note(self, text: str) -> None:
        del text


class LogReporter:
    """For pipes and files: a line when a part begins, one when it has ended, and of a long one how
    far it is, every `LOG_S` seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        began = self._clock()
        self._print(f"{title} …")
        yield _LogStage(title.partition(": ")[0], self._clock, self._print)
        self._print(f"{title}: {self._clock() - began:.1f} s")

    def note(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _LogStage:
    def __init__(self, name: str, clock: Callable[[], float], tell: Callable[[str], None]) -> None:
        self._name, self._clock, self._tell = name, clock, tell
        self._began = self._told = clock()

    def update(self, done: int, total: int, detail: str = "") -> None:
        now = self._clock()
        if total and now - self._told >= LOG_S:
            self._told = now
            share = f"{done / total:.0%} after {now - self._began:.0f} s"
            self._tell(f"{self._name}: {share}{detail and f', {detail}'}")


class LiveReporter:
    """For terminals: one bar a part, with the time it has taken and has left.

    What a part is for stands beside its bar until there is something more to say.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        name, _, purpose = title.partition(": ")
        task = self._progress.add_task(name, total=None, detail=purpose)
        yield _Bar(self._progress, task)
        self._progress.update(task, total=1, completed=1, detail="")

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, total: int, detail: str = "") -> None:
        self._progress.update(self._task, total=total, completed=done, detail=detail)


@contextmanager
def reporter(console: Console, *, json: bool) -> Iterator[Reporter]:
    """The reporter that suits where the output goes."""
    if json:
        yield SilentReporter()
    elif console.is_terminal:
        with LiveReporter(console) as live:
            yield live
    else:
        yield LogReporter(console)
