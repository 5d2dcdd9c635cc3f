"""How long the ledger's commands take on a million records, and how much memory they hold.

    python -m tests.benchmarks.ledger_scale --folder /var/tmp/scale [--records 1000000 --repeat 3]

Makes two ledgers in the folder (see `made_ledger`: the median line has about 1.2 KB, one in a
hundred 50 KB), and runs each command in a process of its own. Prints seconds, the most memory that
a command and its helpers held together (proportional set size), and the load of the machine before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from attnbench.ledger import Kind, Ledger, storage
from tests.benchmarks.made_ledger import write_ledger

MAIN = (sys.executable, "-c", "from attnbench.cli.main import main; main()")
LIMITS_S = {"verify": 15.0, "log": 5.0, "diff": 20.0, "help": 0.3, "small log": 0.3}
LIMIT_MB = 1500
APPENDS = 200
LOOK_EVERY_S = 0.05


def main() -> None:
    """Make the ledgers where they are not there yet, and time the commands on them."""
    options = _options()
    before, after = (options.folder / side / "ledger.jsonl" for side in ("before", "after"))
    for seed, path in enumerate((before, after)):
        if not path.exists():
            write_ledger(path, options.records, seed)
    print(described(before))
    small = Path(__file__).parents[2] / "ledger" / "ledger.jsonl"
    asked = ["--kind", "result", "--cell", "context=600", "--method", "int8"]
    commands = {
        "verify": ["ledger", "verify", "--ledger", str(before)],
        "log": ["ledger", "log", "--ledger", str(before), *asked],
        "diff": ["ledger", "diff", str(before), str(after)],
        "help": ["--help"],
        "small log": ["ledger", "log", "--ledger", str(small)],
    }
    for name, arguments in commands.items():
        for _ in range(options.repeat):
            print(measured(name, arguments), flush=True)
    print(appended(before))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    return parser.parse_args()


def described(path: Path) -> str:
    """How many lines, how long."""
    with path.open("rb") as file:
        sizes = [len(line) for line in file]
    long = sum(size >= 40_000 for size in sizes) / len(sizes)
    return (
        f"{len(sizes)} records, {sum(sizes) / 1e9:.2f} GB, median {statistics.median(sizes):.0f} B,"
        f" {long:.1%} of them about 50 KB"
    )


def measured(name: str, arguments: list[str]) -> str:
    """One row: what a command took."""
    load, before_s = os.getloadavg()[0], _cpu_s()
    start = time.perf_counter()
    command = subprocess.Popen(
        [*MAIN, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    most_mb = max(_memory_mb(command), default=0.0)
    said = command.communicate()[0].splitlines()
    seconds = time.perf_counter() - start
    return (
        f"{name:<10}{seconds:>7.2f} s (limit {LIMITS_S[name]:g}), {_cpu_s() - before_s:.2f} s of "
        f"processors, {most_mb:.0f} MB (limit {LIMIT_MB}), load {load:.1f}, exit "
        f"{command.returncode}: {said[0][:50] if said else ''}"
    )


def _cpu_s() -> float:
    """Seconds that the commands so far and their helpers used of all processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory_mb(command: subprocess.Popen[str]) -> Iterator[float]:
    """What a process and its children hold, again and again until it says its first word."""
    while command.poll() is None:
        yield sum(map(_pss_kb, _family(command.pid))) / 1e3
        if _has_spoken(command):
            return
        time.sleep(LOOK_EVERY_S)


def _has_spoken(command: subprocess.Popen[str]) -> bool:
    return bool(select.select([command.stdout], [], [], 0)[0])


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        own = [int(child) for child in children.read_text().split()]
    except FileNotFoundError:
        return []
    return [pid, *(each for child in own for each in _family(child))]


def _pss_kb(pid: int) -> float:
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    return next((float(row.split()[1]) for row in rows if row.startswith("Pss:")), 0.0)


def appended(path: Path) -> str:
    """What appending to a long ledger takes beyond the sync itself."""
    syncs: list[float] = []
    ledger, real = Ledger(path), os.fsync

    def timed_sync(fd: int) -> None:
        start = time.perf_counter()
        real(fd)
        syncs.append(time.perf_counter() - start)

    ledger.append(Kind.CLAIM, {"claim": "the commit of the source is asked for once"})
    storage.os.fsync = timed_sync
    try:
        beyond = []
        for i in range(APPENDS):
            syncs.clear()
            start = time.perf_counter()
            ledger.append(Kind.CLAIM, {"claim": "x" * 1000, "number": i})
            beyond.append(time.perf_counter() - start - sum(syncs))
    finally:
        storage.os.fsync = real
    figures = {
        "median_ms": statistics.median(beyond) * 1e3,
        "p99_ms": sorted(beyond)[int(0.99 * APPENDS)] * 1e3,
    }
    return f"append, beyond its sync: {json.dumps(figures)} (limit 2 ms)"


if __name__ == "__main__":
    main()
