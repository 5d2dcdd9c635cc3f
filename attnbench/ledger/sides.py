"""Which results somebody means to compare: a file, a git revision of it, a run, one record."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Sequence
from pathlib import Path

from attnbench.errors import UsageError
from attnbench.ledger.book import Ledger
from attnbench.ledger.chain import walk
from attnbench.ledger.comparison import Side
from attnbench.ledger.entry import cell_key
from attnbench.ledger.folding import fold
from attnbench.ledger.lookup import find_results, is_of_an_arm, results_of
from attnbench.ledger.record import Record


def side_of(name: str, ledger: Ledger) -> Side:
    """Return what `name` means: a ledger file, `REV:path` in git, or a run or result of `ledger`.

    Raises UsageError and UnknownRecord where it means nothing, and what reading a ledger raises.
    """
    if Path(name).is_file():
        return _whole(name, list(Ledger(Path(name)).records()))
    if ":" in name:
        return _whole(name, _records_in_git(name))
    records = list(ledger.records())
    results = find_results(records, name)
    return Side(_label(name, results), results, fold(records))


def latest_two(ledger: Ledger) -> tuple[Side, Side] | str:
    """Return the run before the latest one that has the same cells, and the latest run.

    Returns why not, in words, where there is no such pair.
    """
    records = list(ledger.records())
    runs = _runs(records)
    return _with_earlier(records, runs[-1]) if runs else "there is no run with results yet"


def run_and_earlier(name: str, ledger: Ledger) -> tuple[Side, Side] | str:
    """Return the latest run of the same cells before the run that `name` begins, and that run.

    Returns why not, in words, where there is no such pair. Raises UsageError where `name` means
    something else than a run, and UnknownRecord where it means nothing.
    """
    if Path(name).is_file() or ":" in name:
        raise UsageError(
            f"{name} is a whole ledger, and only a run is compared with the one before it",
            hint=f"Name what to compare it with: `attnbench ledger diff BEFORE {name}`.",
        )
    records = list(ledger.records())
    results = find_results(records, name)
    if results and not str(results[0].body.get("run", "")).startswith(name):
        raise UsageError(
            f"{name} is one result, and only a run is compared with the one before it",
            hint=f"Its run is {results[0].body.get('run')}; or name a second result.",
        )
    if not results:
        return f"run {name} holds no results"
    return _with_earlier(records, str(results[0].body["run"]))


def _with_earlier(records: Sequence[Record], run: str) -> tuple[Side, Side] | str:
    runs, cells = _runs(records), _cells(records, run)
    same = [other for other in runs[: runs.index(run)] if _cells(records, other) == cells]
    if not same:
        return f"run {run} is the first one of its cells: there is no earlier run to compare with"
    state = fold(records)
    before, after = (Side(f"run {it}", results_of(records, it), state) for it in (same[-1], run))
    return before, after


def _label(name: str, results: Sequence[Record]) -> str:
    if len(results) == 1:
        return f"result {results[0].id[:12]}"
    return f"run {results[0].body['run']}" if results else f"run {name}"


def _runs(records: Sequence[Record]) -> list[str]:
    """Return the runs that have results, in the order of their last one."""
    last = {str(r.body.get("run")): r.seq for r in records if is_of_an_arm(r)}
    return sorted(last, key=lambda run: last[run])


def _cells(records: Sequence[Record], run: str) -> frozenset[str]:
    return frozenset(cell_key(record) for record in results_of(records, run))


def _whole(label: str, records: Sequence[Record]) -> Side:
    results = tuple(record for record in records if is_of_an_arm(record))
    return Side(label, results, fold(records))


def _records_in_git(name: str) -> list[Record]:
    shown = subprocess.run(["git", "show", name], capture_output=True, check=False)
    if shown.returncode != 0:
        raise UsageError(
            f"git cannot show {name}: {shown.stderr.decode(errors='replace').strip()}",
            hint="Give REVISION:PATH with the path from the root of the repository, or ./PATH.",
        )
    return list(walk(io.BytesIO(shown.stdout), len(shown.stdout), name))
