"""The process that all arms of a session share, held still: settings, functions and threads.

An arm that changes them slows or speeds up the others, or the clock itself. What can be put back is
put back, and the arm that changed it is out.
"""

from __future__ import annotations

import importlib
import math
import os
import random
import statistics
import threading
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.nn import functional

from attnbench.measure.arms import BrokenArm
from attnbench.measure.settings import flags
from attnbench.protocol.verdict import Reason

PROC = Path("/proc")
TASKS = PROC / "self" / "task"
SHOWN = 80  # characters of a setting that a message holds
LOOKS, LOOK_S = 8, 0.004  # a thread that is at work at each of so many looks is left running
# What measures: no name in these modules may change its meaning, no function its code.
INSTRUMENTS = (
    "measure.clock",
    "measure.visits",
    "measure.arms",
    "measure.taps",
    "measure.recheck",
    "measure.influence",
    "measure.phases",
    "measure.session",
    "measure.events",
    "measure.workbench",
    "methods.reference",
    "methods.exact_cache",
    "models.step",
    "models.tables",
    "stats.warmup",
)


def guarded_names() -> dict[tuple[Any, str], Any]:
    """What timing, statistics and attention are made of, by owner and name."""
    owners: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (time, ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time", "sleep")),
        (statistics, ("median", "fmean", "mean")),
        (math, ("fsum", "sqrt", "exp", "log")),
        (os, ("urandom",)),
        (random.SystemRandom, ("random", "getrandbits")),
        (torch.cuda, ("Event", "synchronize", "CUDAGraph", "current_stream")),
        (torch.cuda.Event, ("record", "elapsed_time", "synchronize", "query")),
        (torch.cuda.CUDAGraph, ("replay", "capture_begin", "capture_end")),
        (functional, ("scaled_dot_product_attention", "softmax")),
        (torch, ("softmax", "matmul", "isfinite", "equal", "set_num_threads")),
        (torch.Tensor, ("__matmul__", "cpu", "clone", "copy_", "double", "norm", "sum", "zero_")),
    )
    named = {(owner, name): getattr(owner, name) for owner, names in owners for name in names}
    for module in _instruments():
        named |= {(module, name): value for name, value in vars(module).items() if callable(value)}
    return named


def _instruments() -> list[ModuleType]:
    return [importlib.import_module(f"attnbench.{name}") for name in INSTRUMENTS]


def guarded_code(named: dict[tuple[Any, str], Any]) -> dict[FunctionType, Any]:
    """The code of every Python function among them, and of the methods of their classes."""
    functions = [value for value in named.values() if isinstance(value, FunctionType)]
    classes = [value for value in named.values() if isinstance(value, type)]
    functions += [
        member
        for kind in classes
        if kind.__module__.startswith("attnbench.")
        for member in vars(kind).values()
        if isinstance(member, FunctionType)
    ]
    return {function: function.__code__ for function in functions}


class World:
    """The process as it was when this was made; make it before a method is imported."""

    def __init__(self, device: torch.device) -> None:
        self._named = guarded_names()
        self._code = guarded_code(self._named)
        self._flags = flags(device)
        self.settle()

    def settle(self) -> None:
        """Take settings and threads as they are now: the model is loaded, no arm set up."""
        self._before = {flag.name: flag.read() for flag in self._flags}
        self._tasks = tasks()
        self._children = children()

    def require_unchanged(self) -> None:
        """Put back what changed and raise `BrokenArm` for it."""
        patched = self._patched()
        running = self._left_running()
        changed = self._changed()
        if patched:
            raise BrokenArm(f"it replaced {', '.join(patched)}", reason=Reason.PATCHED)
        if running:
            raise BrokenArm(f"it left {running} running", reason=Reason.LEFT_RUNNING)
        if changed:
            raise BrokenArm(
                f"it changed the process for every arm: {'; '.join(changed)}",
                reason=Reason.GLOBAL_STATE,
            )

    def _patched(self) -> list[str]:
        places = [place for place, own in self._named.items() if _now(place) is not own]
        for owner, name in places:
            setattr(owner, name, self._named[owner, name])
        rewritten = [
            function for function, code in self._code.items() if function.__code__ is not code
        ]
        for function in rewritten:
            function.__code__ = self._code[function]
        names = [f"{owner.__name__}.{name}" for owner, name in places]
        return names + [f"the code of {function.__qualname__}" for function in rewritten]

    def _left_running(self) -> str:
        """New threads and child processes that are at work; each is told once."""
        threads = {task for task in tasks() - self._tasks if _is_at_work(TASKS / str(task))}
        processes = {pid for pid in children() - self._children if _is_at_work(PROC / str(pid))}
        self._tasks |= threads
        self._children |= processes
        kinds = ((len(threads), "thread"), (len(processes), "child process"))
        return " and ".join(f"{count} {kind}(s)" for count, kind in kinds if count)

    def _changed(self) -> list[str]:
        found = []
        for flag in self._flags:
            now, before = flag.read(), self._before[flag.name]
            if now != before:
                found.append(f"{flag.name} {_shown(before, now)}")
                if flag.write is not None:
                    flag.write(before)
                self._before[flag.name] = flag.read()  # what cannot be put back is told once
        return found


def _now(place: tuple[Any, str]) -> Any:
    owner, name = place
    return getattr(owner, name, None)


def tasks() -> set[int]:
    """Threads of this process, native ones too; only Python's own where the system has no /proc."""
    if TASKS.exists():
        return {int(task.name) for task in TASKS.iterdir()}
    return {thread.native_id for thread in threading.enumerate() if thread.native_id is not None}


def _is_at_work(task: Path) -> bool:
    """Running at every look: one that waits for work, or is just ending, is not."""
    for _ in range(LOOKS):
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False  # it has ended
        if state not in "RD":
            return False
        time.sleep(LOOK_S)
    return True


def children() -> set[int]:
    """Child processes of this one; empty where the system does not tell."""
    found: set[int] = set()
    for task in TASKS.glob("*/children"):
        try:
            found.update(map(int, task.read_text().split()))
        except OSError:
            continue  # that thread has ended
    return found


def _shown(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        return ", ".join(sorted(k for k in {*before, *now} if before.get(k) != now.get(k)))
    if isinstance(before, str) and len(before) > SHOWN:
        return "is not as it was"
    return f"from {before} to {now}"
