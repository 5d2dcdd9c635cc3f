"""A worker process: `python -m attnbench.measure.worker`, a task as JSON in, events as JSON out.

It does one task in a fresh process, decides nothing, and does not outlive its parent. Every error
ends here as one event, with its traceback on standard error.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module

import msgspec

from attnbench import errors
from attnbench.errors import AttnbenchError, Exit
from attnbench.measure.answers import TaskResult
from attnbench.measure.events import AHEAD, EventWriter, Failure, Result, take_stdout
from attnbench.measure.imports import import_models, uncollected
from attnbench.measure.lifeline import end_with_parent, leave
from attnbench.measure.tasks import (
    Bench,
    FitTask,
    MemoryTask,
    PilotTask,
    ProductTask,
    ProfileTask,
    SessionTask,
    SweepTask,
    Task,
    TuneTask,
    has_model,
    parts_of,
)


def main() -> int:
    """Do the task on standard input; returns the exit status."""
    end_with_parent()
    events = take_stdout()
    try:
        if AHEAD in sys.argv[1:]:
            import_ahead()
        task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task | TuneTask | ProductTask)
        import_ahead(models=has_model(task))
        prepare(task)
        events.send(Result(result=perform(task, events)))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place where a worker's errors end
        traceback.print_exc()
        events.send(failure_event(error))
        return Exit.RUNTIME
    return Exit.DONE


def import_ahead(*, models: bool = True) -> None:
    """Import what a task needs, with `models` what one with a model does."""
    # Processes of torch's compilers would be taken for an arm's: they work in this thread.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with uncollected():
        import_module("attnbench.measure.session")
        if models:
            import_models()


def prepare(task: Task | TuneTask | ProductTask) -> None:
    """Fix what must not differ between sessions: threads and seeds."""
    import torch

    if isinstance(task, TuneTask):
        settings: TuneTask | Bench = task
    else:
        settings = task.bench if isinstance(task, ProductTask) else parts_of(task)[0].bench
    torch.set_num_threads(settings.threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(settings.seed)


def perform(task: Task | TuneTask | ProductTask, events: EventWriter) -> TaskResult:
    """The task's result; only what this kind of task needs is imported."""
    if isinstance(task, SweepTask):
        from attnbench.measure.sweep import run_sweep

        return run_sweep(task, events)
    if isinstance(task, SessionTask):
        from attnbench.measure.session import run_session

        return run_session(task, events)
    if isinstance(task, PilotTask):
        from attnbench.measure.pilot import run_pilot

        return run_pilot(task, events)
    if isinstance(task, MemoryTask):
        from attnbench.measure.memory import run_memory

        return run_memory(task, events.progress)
    if isinstance(task, TuneTask):
        from attnbench.measure.tuning import run_tuning

        return run_tuning(task, events.progress)
    if isinstance(task, ProductTask):
        from attnbench.measure.product_tuning import run_product_tuning

        return run_product_tuning(task, events.progress)
    if isinstance(task, ProfileTask):
        from attnbench.measure.profiling import run_profile

        return run_profile(task, events)
    if isinstance(task, FitTask):
        from attnbench.measure.fit import run_fit

        return run_fit(task, events.progress)
    from attnbench.measure.judging import run_judging

    return run_judging(task, events)


def failure_event(error: Exception) -> Failure:
    """The error by the name of its nearest class in `attnbench.errors`, which the parent knows."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
    if isinstance(error, AttnbenchError):
        return Failure(type=kinds[0], message=error.message, hint=error.hint, reason=error.reason)
    return Failure(type=type(error).__name__, message=str(error), hint="")


if __name__ == "__main__":
    leave(main())
