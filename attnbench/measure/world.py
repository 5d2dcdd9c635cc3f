"""The process that all arms of a session share, held still: settings, functions and threads.

An arm that changes them slows or speeds up the others, or the clock itself. What can be put back is
put back, and the arm that changed it is out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from os import waitid  # an arm may replace that of the module
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from attnbench.errors import SessionLost
from attnbench.measure.arms import BrokenArm
from attnbench.measure.functions import guarded, names_of_model
from attnbench.measure.settings import flags
from attnbench.protocol.verdict import Reason

PROC = Path("/proc")
TASKS = PROC / "self" / "task"
SHOWN = 80  # characters of a setting that a message holds
MOST_CHILDREN_BYTES = 1 << 16
ALL_KINDS = 0x40000000  # Linux' __WALL: children that end without a signal too
LOOKS, LOOK_S = 6, 0.004  # while this thread sleeps so often and long
LEAST_SHARE = 0.05  # of a processor; others may want it too
LINGER_S = 1.0  # beside what is still at work after so long nobody can be measured


class World:
    """The process as it was when this settled; make it before a method is imported."""

    def __init__(self, device: torch.device) -> None:
        self._held = guarded()
        self._device = device
        self._flags = flags(device)

    def settle(self, model: nn.Module | None = None) -> Self:
        """Take settings and threads as they are now: the model is loaded, no arm set up.

        What `model` computes with is watched from now on.
        """
        if model is not None:
            self._held.watch(names_of_model(model))
        _order_backends(self._device)
        self._before = {flag.name: flag.read() for flag in self._flags}
        self._tasks = tasks()
        self._children = children()
        self._rested_ns: dict[Path, int] = {}
        return self

    def require_unchanged(self, *, thoroughly: bool = True) -> None:
        """Put back what changed and raise `BrokenArm` for it, or `SessionLost` where it stays.

        Without `thoroughly`, settings that take long to read are left out.
        """
        patched, replaced = self._patched(thoroughly)
        running, goes_on = self._left_running()
        changed, stays = self._changed(thoroughly)
        kind = SessionLost if replaced or goes_on or stays else BrokenArm
        if patched:
            raise kind(f"it replaced {', '.join(patched)}", reason=Reason.PATCHED.value)
        if running:
            raise kind(f"it left {running} running", reason=Reason.LEFT_RUNNING.value)
        if changed:
            raise kind(
                f"it changed the process for every arm: {'; '.join(changed)}",
                reason=Reason.GLOBAL_STATE.value,
            )

    def _patched(self, thoroughly: bool) -> tuple[list[str], bool]:
        """What was replaced or filled with something else, and whether it could not be put back."""
        return (
            ([], False) if self._held.is_unchanged(thoroughly=thoroughly) else self._held.put_back()
        )

    def _left_running(self) -> tuple[str, bool]:
        """New threads and child processes that are at work, each told once; whether they go on."""
        threads = {TASKS / str(task): task for task in tasks() - self._tasks}
        processes = {PROC / str(pid): pid for pid in children() - self._children}
        working = _at_work([place for place in (*threads, *processes) if self._moved(place)])
        self._tasks |= {threads[place] for place in working & threads.keys()}
        self._children |= {processes[place] for place in working & processes.keys()}
        kinds = ((threads, "thread"), (processes, "child process"))
        counts = [(len(working & places.keys()), kind) for places, kind in kinds]
        told = " and ".join(f"{count} {kind}(s)" for count, kind in counts if count)
        return told, _go_on(working)

    def _moved(self, place: Path) -> bool:
        """Whether it took processor time since the last look, or is about to: what rested all the
        while need not be watched, which takes milliseconds."""
        now_ns, before_ns = _processor_ns(place), self._rested_ns.get(place)
        self._rested_ns[place] = now_ns
        return now_ns != before_ns or _is_runnable(place)

    def _changed(self, thoroughly: bool) -> tuple[list[str], bool]:
        """Settings that are not as they were, and whether one of them could not be put back."""
        found, stays = [], False
        for flag in self._flags:
            if flag.slow and not thoroughly:
                continue
            now, before = flag.read(), self._before[flag.name]
            if now != before:
                found.append(f"{flag.name} {_shown(before, now)}")
                if flag.write is not None:
                    flag.write(before)
                self._before[flag.name] = flag.read()  # what cannot be put back is told once
                stays |= self._before[flag.name] != before
        return found, stays


def _order_backends(device: torch.device) -> None:
    """Let PyTorch put SDPA's backends in the order that it prefers on this GPU, which it does when
    it is first asked to choose one: it is no change that an arm makes."""
    if device.type == "cuda":
        row = torch.empty((1, 1, 1, 8), dtype=torch.float16, device=device)
        torch._fused_sdp_choice(row, row, row)


def tasks() -> set[int]:
    """Threads of this process, native ones too; only Python's own where the system has no /proc."""
    if TASKS.exists():
        with os.scandir(TASKS) as threads:
            return {int(thread.name) for thread in threads}
    return {thread.native_id for thread in threading.enumerate() if thread.native_id is not None}


def _at_work(tasks: Iterable[Path]) -> set[Path]:
    """Which take processor time while this thread sleeps: one that waits takes none."""
    began_ns, before_ns = time.monotonic_ns(), {task: _processor_ns(task) for task in tasks}
    taken_ns = dict.fromkeys(before_ns, 0)
    for _ in range(LOOKS):
        if not taken_ns:
            break
        time.sleep(LOOK_S)
        now_ns = {task: _processor_ns(task) - before_ns[task] for task in taken_ns}
        taken_ns = {task: ns for task, ns in now_ns.items() if ns > 0 or _is_runnable(task)}
    enough_ns = LEAST_SHARE * (time.monotonic_ns() - began_ns)
    return {task for task, ns in taken_ns.items() if ns > enough_ns}


def _is_runnable(task: Path) -> bool:
    """Whether it runs or waits for a processor; not where it has ended."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False


def _processor_ns(task: Path) -> int:
    """Nanoseconds on a processor so far; 0 for one that has ended."""
    try:
        return int((task / "schedstat").read_text().split()[0])
    except OSError:
        return 0


def _go_on(working: set[Path]) -> bool:
    """Whether one of these threads or processes is still at work after a while."""
    until = time.monotonic() + LINGER_S
    while working:
        if time.monotonic() > until:
            return True
        working = _at_work(working)
    return False


def children() -> set[int]:
    """Child processes of this one; empty where the system does not tell."""
    if not _has_children():
        return set()
    found: set[int] = set()
    for task in tasks():
        found.update(_children_of(task))
    return found


def _has_children() -> bool:
    """One question, where to ask every thread for its own takes milliseconds."""
    try:
        waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | ALL_KINDS)
    except ChildProcessError:
        return False
    return True


def _children_of(task: int) -> set[int]:
    # Not by pathlib: a worker has a hundred threads, and all are looked at around every visit.
    try:
        file = os.open(f"{TASKS}/{task}/children", os.O_RDONLY)
    except OSError:
        return set()  # that thread has ended, or the system does not tell
    try:
        return set(map(int, os.read(file, MOST_CHILDREN_BYTES).split()))
    except OSError:
        return set()
    finally:
        os.close(file)


def _shown(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        return ", ".join(sorted(k for k in {*before, *now} if before.get(k) != now.get(k)))
    if isinstance(before, str) and len(before) > SHOWN:
        return "is not as it was"
    return f"from {before} to {now}"
