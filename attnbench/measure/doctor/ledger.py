"""Whether the ledger can take a run, and whether it is still what was recorded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from attnbench.errors import Exit, LedgerError
from attnbench.ledger import verify
from attnbench.measure.doctor.finding import Finding, bad, ok, warn

MIB, GIB = 1 << 20, 1 << 30
LEAST_BYTES = 64 * MIB  # the raw samples of a run with many cells
AMPLE_BYTES = 2 * GIB  # compiled kernels, and models that are downloaded


def ledger_findings(path: Path) -> Iterator[Finding]:
    """Room, the right to write, and the chain."""
    yield writable(path)
    yield disk(path, shutil.disk_usage(_nearest(path)).free)
    yield chain(path)


def writable(path: Path) -> Finding:
    """Whether a record could be appended; nothing is written to find out."""
    place = path if path.exists() else _nearest(path)
    if os.access(place, os.W_OK):
        return ok("ledger file", f"{path} can be written")
    return bad(
        "ledger file",
        f"{place} cannot be written",
        "a run is recorded before it is timed, and would end there",
        "export ATTNBENCH_LEDGER=$HOME/attnbench/ledger.jsonl",
    )


def disk(path: Path, free_bytes: int) -> Finding:
    """Whether there is room for samples and compiled kernels."""
    seen = f"{free_bytes / GIB:,.1f} GiB free where the ledger lies"
    show = f"du -xh --max-depth=2 {_nearest(path)} | sort -h | tail"
    if free_bytes < LEAST_BYTES:
        why = f"the samples of a run take up to {LEAST_BYTES // MIB} MiB"
        return bad("disk", seen, why, show)
    if free_bytes < AMPLE_BYTES:
        return warn("disk", seen, "kernels, samples and downloaded models need room", show)
    return ok("disk", seen)


def chain(path: Path) -> Finding:
    """Whether every record and every blob is what was appended."""
    if not path.exists():
        return ok("ledger", f"{path} does not exist yet; the first run makes it")
    try:
        report = verify(path)
    except LedgerError as error:
        broken = error.exit_code is Exit.LEDGER_BROKEN
        code = Exit.LEDGER_BROKEN if broken else Exit.VOID
        return bad("ledger", error.message, error.hint, exit_code=code)
    if report.is_sound:
        return ok("ledger", f"{report.records:,} records and {report.blobs:,} blobs hold")
    problem = report.problems[0]
    return bad(
        "ledger",
        f"line {problem.line}: {problem.reason}",
        problem.hint,
        f"attnbench ledger verify --ledger {path}",
        report.exit_code,
    )


def _nearest(path: Path) -> Path:
    """The folder that the ledger lies in, or the nearest one above that is there."""
    return next(folder for folder in path.resolve().parents if folder.is_dir())
