"""Runs one task in a fresh worker process and answers for what happens to it.

A worker that dies or says what is no event ends as `WorkerFailed`, one that hangs as `WorkerHung`,
with the end of its standard error; an error that it reports itself is raised here as the class it
was there. On a hang or Ctrl-C the whole process group of the worker is killed, its forked children
with it. `Processes` does the same for workers side by side, and starts one ahead of its task.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from threading import Lock, Thread
from typing import IO, Self

import msgspec

from attnbench import errors
from attnbench.errors import AttnbenchError, WorkerFailed, WorkerHung
from attnbench.measure.answers import TaskResult
from attnbench.measure.events import (
    AHEAD,
    Event,
    Failure,
    Kept,
    Mark,
    Progress,
    Result,
    Wanted,
    decode_event,
)
from attnbench.measure.tasks import ProductTask, Task, TuneTask, has_model

WORKER = (sys.executable, "-m", "attnbench.measure.worker")
STDERR_LINES = 20
_BAR = re.compile(r"\d+%\|")  # of tqdm
EXIT_GRACE_S = 20.0  # tearing down a CUDA context with many graphs takes seconds
INTERRUPT_GRACE_S = 2.0


OnEvent = Callable[[Progress | Mark | Kept], Wanted | None]


def run_task(
    task: Task | TuneTask | ProductTask,
    on_event: OnEvent,
    silence_s: float,
    *,
    command: Sequence[str] = WORKER,
    exit_grace_s: float = EXIT_GRACE_S,
) -> TaskResult:
    """Run `task` in a worker and return its result; `on_event` hears what it says meanwhile.

    What `on_event` returns is sent to the worker. Raises `WorkerHung` when it says nothing for
    `silence_s` seconds (or for as long as its last mark asked for), `WorkerFailed` when it dies or
    sends garbage, and otherwise the error that the worker reported.
    """
    return _done(_Worker(command), task, on_event, silence_s, exit_grace_s)


def _done(
    worker: _Worker,
    task: Task | TuneTask | ProductTask,
    on_event: OnEvent,
    silence_s: float,
    exit_grace_s: float,
) -> TaskResult:
    try:
        worker.say(task)
        return worker.finish(_last_event(worker, silence_s, on_event), exit_grace_s)
    finally:
        worker.kill()


class Processes:
    """Runs tasks as `run_task` does, from any number of threads at once.

    `ahead` starts the next worker before its task is known, and it imports what it needs meanwhile:
    never while another one times. A worker lives no longer than the thread that started it. Use it
    as a context: at its end a worker that got no task is gone.
    """

    def __init__(self, *, command: Sequence[str] = WORKER) -> None:
        self._command = tuple(command)
        self._lock = Lock()
        self._waiting: _Worker | None = None
        self._working: set[_Worker] = set()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.kill(ask=False)

    def __call__(self, task: Task, on_event: OnEvent, silence_s: float) -> TaskResult:
        """What `run_task` returns or raises, and KeyboardInterrupt once `stop` was called."""
        worker = self._taken(task)
        try:
            return _done(worker, task, on_event, silence_s, EXIT_GRACE_S)
        except WorkerFailed:
            if self._stopped:
                raise KeyboardInterrupt from None
            raise
        finally:
            with self._lock:
                self._working.discard(worker)

    def ahead(self) -> None:
        """Start the worker of the next task, where none waits already."""
        with self._lock:
            if self._waiting is None and not self._stopped:
                self._waiting = _Worker((*self._command, AHEAD))

    def stop(self) -> None:
        """End every worker: what waits for one of them, in whichever thread, is interrupted."""
        with self._lock:
            self._stopped = True
            working = tuple(self._working)
        try:
            for worker in working:
                worker.send(signal.SIGINT)
            _wait_until(lambda: all(each.has_ended for each in working), INTERRUPT_GRACE_S)
        finally:
            for worker in working:
                worker.send(signal.SIGKILL)

    def _taken(self, task: Task) -> _Worker:
        """The worker that waits, or a new one: where no model is loaded, that holds less."""
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            if self._waiting is not None and has_model(task):
                worker, self._waiting = self._waiting, None
            else:
                worker = _Worker(self._command)
            self._working.add(worker)
        return worker


def _last_event(worker: _Worker, silence_s: float, on_event: OnEvent) -> Result | Failure | None:
    for event in worker.events(silence_s):
        if isinstance(event, Result | Failure):
            return event
        answer = on_event(event)
        if answer is not None:
            worker.say(answer)
    return None


class _Worker:
    """A worker process in a process group of its own."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=_environment(),
        )
        self._last_lines: deque[str] = deque(maxlen=STDERR_LINES)
        self._gone = False
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def say(self, message: Task | TuneTask | ProductTask | Wanted) -> None:
        """Send one line; a worker that is gone cannot hear, and `events` tells of its end."""
        stdin = _pipe(self._process.stdin)
        try:
            stdin.write(msgspec.json.encode(message) + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return

    def events(self, silence_s: float) -> Iterator[Event]:
        """The worker's events until it closes its output."""
        self._patience_s = silence_s
        for line in _lines(_pipe(self._process.stdout), lambda: self._patience_s):
            if line is None:
                raise self._killed(
                    f"the worker said nothing for {self._patience_s:g} s and was killed",
                    "a smaller context or batch tells whether the cell is too large",
                    kind=WorkerHung,
                )
            event = self._event(line)
            asked_for = event.patience_s if isinstance(event, Mark) else 0.0
            self._patience_s = asked_for or silence_s
            yield event

    def finish(self, last: Result | Failure | None, grace_s: float) -> TaskResult:
        """The result, once the process has ended well."""
        if isinstance(last, Failure):
            _wait_until(lambda: self._process.poll() is not None, INTERRUPT_GRACE_S)
            raise self._reported(last)
        try:
            status = self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            raise self._failed("the worker did not end after its last event") from None
        if last is None or status != 0:
            raise self._ended(status)
        return last.result

    @property
    def has_ended(self) -> bool:
        """Whether the process itself has."""
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """Send it to the process group; the thread that hears the worker sees to its end."""
        _signal_group(self._process.pid, number)

    def kill(self, *, ask: bool = True) -> None:
        """End the process and whatever is left of its group: first asked, then made to."""
        if self._gone:
            return
        try:
            if ask and self._process.poll() is None:
                _signal_group(self._process.pid, signal.SIGINT)
                _wait_until(lambda: self._process.poll() is not None, INTERRUPT_GRACE_S)
        finally:  # also when Ctrl-C is pressed again meanwhile
            _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join(INTERRUPT_GRACE_S)  # a process that left the group may hold the pipe
        _pipe(self._process.stdout).close()
        _close_unread(_pipe(self._process.stdin))
        self._gone = True

    def _event(self, line: bytes) -> Event:
        try:
            return decode_event(line)
        except msgspec.DecodeError as error:
            shown = line[:200].decode("utf-8", "replace").rstrip()
            raise self._failed(f"the worker sent what is no event ({error}): {shown}") from error

    def _reported(self, failure: Failure) -> AttnbenchError:
        kind = getattr(errors, failure.type, None)
        if isinstance(kind, type) and issubclass(kind, AttnbenchError):
            return kind(failure.message, hint=failure.hint, reason=failure.reason)
        return self._failed(f"the worker failed: {failure.type}: {failure.message}", failure.hint)

    def _ended(self, status: int) -> WorkerFailed:
        if status >= 0:
            return self._failed(f"the worker ended with status {status} and without a result")
        name = signal.Signals(-status).name
        hint = ""
        if -status == signal.SIGKILL:
            hint = "most likely the system ran out of memory: try a smaller context or batch"
        return self._killed(f"the worker was killed by {name}", hint)

    def _killed(
        self, message: str, hint: str, kind: type[WorkerFailed] = WorkerFailed
    ) -> WorkerFailed:
        """Of one that had no time for last words: what it said before may be about anything."""
        self.kill()
        raised = last_error(self._last_lines)
        return kind(f"{message}: {raised}" if raised else message, hint=hint)

    def _failed(
        self, message: str, hint: str = "", kind: type[WorkerFailed] = WorkerFailed
    ) -> WorkerFailed:
        self.kill()
        said = "\n".join(self._last_lines)
        return kind(f"{message}\n{said}" if said else message, hint=hint)

    def _listen(self) -> None:
        with _pipe(self._process.stderr) as stderr:
            for line in stderr:
                text = line.decode("utf-8", "replace").rstrip()
                last = text.rpartition("\r")[2]  # a bar as it looked last
                if not _BAR.search(last):
                    self._last_lines.append(last)


def last_error(lines: Iterable[str]) -> str:
    """The last line of the last traceback: what follows the indented lines; empty without one."""
    found = [after for line, after in pairwise(lines) if line[:2] == "  " and after[:1].strip()]
    return found[-1] if found else ""


def _environment() -> dict[str, str]:
    # NVML counts GPUs in PCI order; CUDA does so only when told.
    return {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "TOKENIZERS_PARALLELISM": "false"}


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise WorkerFailed("the worker was started without pipes")
    return stream


def _close_unread(stdin: IO[bytes]) -> None:
    """Close a pipe whose reader may have gone before it read everything."""
    try:
        stdin.close()
    except BrokenPipeError:
        return


def _lines(stream: IO[bytes], patience_s: Callable[[], float]) -> Iterator[bytes | None]:
    """Whole lines as they come; None when nothing came for as long as `patience_s` says."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(patience_s()):
                yield None
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    if rest:
        yield rest


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # nothing is left of it


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
