"""Which results somebody means to compare: a file, a git revision of it, a run, one record."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from attnbench.errors import UsageError
from attnbench.ledger.bearing import standing
from attnbench.ledger.book import Ledger
from attnbench.ledger.canonical import canonical_bytes
from attnbench.ledger.comparison import Side
from attnbench.ledger.entry import model_key
from attnbench.ledger.folding import Status
from attnbench.ledger.lookup import find_results, matching
from attnbench.ledger.record import Envelope, Kind, Record
from attnbench.ledger.survey import Find, Survey, survey


class OfAnArm(NamedTuple):
    """What places a result: its run, its cell as text (equal for equal cells), and its arm."""

    run: str
    cell: bytes
    arm: str


class _Body(msgspec.Struct):
    run: Any = ""
    arm: Any = ""
    cell: msgspec.Raw = msgspec.Raw(b"null")
    environment: msgspec.Raw = msgspec.Raw(b"{}")
    calibration: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Environment(msgspec.Struct):
    model_identity: Any = ""


class _Members(msgspec.Struct):
    body: _Body


_DECODER = msgspec.json.Decoder(_Members)
_CELL = msgspec.json.Decoder(dict[str, Any])
_ENVIRONMENT = msgspec.json.Decoder(_Environment)
_OF_A_FILE = re.compile(rb'"model":"(?:[/.~]|[^"]*\.gguf")')
_RESULT = Kind.RESULT.value.encode()
_SEEN: dict[bytes, bytes] = {}
"""Equal cells as one object, which is sent to another process once."""


def arm_results(text: bytes, about: Envelope) -> OfAnArm | None:
    """A look for the results of arms; a calibration is a result about the instrument."""
    if about.kind != _RESULT:
        return None
    body = _DECODER.decode(text).body
    if body.calibration is not msgspec.UNSET:
        return None
    cell = _anywhere(bytes(body.cell), bytes(body.environment))
    return OfAnArm(str(body.run), _SEEN.setdefault(cell, cell), str(body.arm))


def _anywhere(cell: bytes, environment: bytes) -> bytes:
    """The cell, with a model's file by its name and content, wherever it lay."""
    if not _OF_A_FILE.search(cell):
        return cell
    members, content = _CELL.decode(cell), _ENVIRONMENT.decode(environment).model_identity
    return canonical_bytes({**members, "model": model_key(str(members["model"]), str(content))})


def side_of(name: str, ledger: Ledger) -> Side:
    """Return what `name` means: a ledger file, `REV:path` in git, or a run or result of `ledger`.

    Raises UsageError and UnknownRecord where it means nothing, and what reading a ledger raises.
    """
    if Path(name).is_file():
        return _whole(Path(name), name)
    if ":" in name:
        return _whole_in_git(name)
    walk, records = matching(ledger.path, name)
    results = find_results(records, name)
    return Side(_label(name, results), results, standing(walk, results))


def latest_two(ledger: Ledger) -> tuple[Side, Side] | str:
    """Return the run before the latest one that has the same cells, and the latest run.

    Returns why not, in words, where there is no such pair.
    """
    walk = survey(ledger.path, arm_results)
    runs = _runs(walk.finds)
    return _with_earlier(walk, runs[-1]) if runs else "there is no run with results yet"


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
    results = find_results(matching(ledger.path, name)[1], name)
    if results and not str(results[0].body.get("run", "")).startswith(name):
        raise UsageError(
            f"{name} is one result, and only a run is compared with the one before it",
            hint=f"Its run is {results[0].body.get('run')}; or name a second result.",
        )
    if not results:
        return f"run {name} holds no results"
    return _with_earlier(survey(ledger.path, arm_results), str(results[0].body["run"]))


def _with_earlier(walk: Survey[OfAnArm], run: str) -> tuple[Side, Side] | str:
    runs, cells = _runs(walk.finds), _cells(walk.finds)
    same = [other for other in runs[: runs.index(run)] if cells[other] == cells[run]]
    if not same:
        return f"run {run} is the first one of its cells: there is no earlier run to compare with"
    return _run_side(walk, same[-1]), _run_side(walk, run)


def _run_side(walk: Survey[OfAnArm], run: str) -> Side:
    results = walk.records(find.seq for find in walk.finds if find.what.run == run)
    return Side(f"run {run}", tuple(results), standing(walk, results))


def _label(name: str, results: Sequence[Record]) -> str:
    if len(results) == 1:
        return f"result {results[0].id[:12]}"
    return f"run {results[0].body['run']}" if results else f"run {name}"


def _runs(finds: Iterable[Find[OfAnArm]]) -> list[str]:
    """Return the runs that have results, in the order of their last one."""
    last = {find.what.run: find.seq for find in finds}
    return sorted(last, key=lambda run: last[run])


def _cells(finds: Iterable[Find[OfAnArm]]) -> dict[str, set[bytes]]:
    cells: defaultdict[str, set[bytes]] = defaultdict(set)
    for find in finds:
        cells[find.what.run].add(find.what.cell)
    return cells


def _whole(path: Path, label: str) -> Side:
    """The results of a whole ledger that a comparison may choose from: the last one of each arm in
    each cell and, where that is not live, all of them."""
    walk = survey(path, arm_results, source=label)
    seqs: defaultdict[tuple[bytes, str], list[int]] = defaultdict(list)
    for seq, (_, cell, arm) in walk.finds:
        seqs[cell, arm].append(seq)
    last = {of_an_arm[-1]: of_an_arm for of_an_arm in seqs.values()}
    results = walk.records(sorted(last))
    state = standing(walk, results)
    fallen = [r.seq for r in results if state.statuses[r.id] is not Status.LIVE]
    earlier = [seq for number in fallen for seq in last[number][:-1]]
    if earlier:
        results = walk.records(sorted([*last, *earlier]))
        state = standing(walk, results)
    return Side(label, tuple(results), state)


def _whole_in_git(name: str) -> Side:
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        command = ["git", "show", name]
        shown = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, check=False)
        if shown.returncode != 0:
            raise UsageError(
                f"git cannot show {name}: {shown.stderr.decode(errors='replace').strip()}",
                hint="Give REVISION:PATH with the path from the root of the repository, or ./PATH.",
            )
        return _whole(Path(file.name), name)
