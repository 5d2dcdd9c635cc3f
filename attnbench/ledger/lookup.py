"""Finding what somebody means by the beginning of an id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from attnbench.ledger.faults import UnknownRecord
from attnbench.ledger.record import Envelope, Kind, Record, content
from attnbench.ledger.survey import Survey, survey

MOST_COMPARED = 20_000  # ids; to look for the nearest among more takes longer than typing it again


@dataclass(frozen=True)
class Begins:
    """A look for records whose id, or whose run, begins so."""

    prefix: str

    def __call__(self, text: bytes, about: Envelope) -> bool | None:
        prefix = self.prefix.encode()
        if about.id.startswith(prefix):
            return True
        if b'"run":"%b' % prefix not in text:
            return None
        return str(content(text, about)["body"].get("run", "")).startswith(self.prefix) or None


def matching(path: Path, prefix: str) -> tuple[Survey[bool], list[Record]]:
    """Walk a ledger, and read what `find_record` and `find_results` need to find `prefix`: what
    begins so or, where nothing does, all of it, so that they can name what is near."""
    walk = survey(path, Begins(prefix))
    seqs: Iterable[int] = (find.seq for find in walk.finds)
    if not walk.finds and len(walk) <= MOST_COMPARED:
        seqs = range(1, len(walk) + 1)
    return walk, walk.records(seqs)


def find_record(records: Iterable[Record], prefix: str) -> Record:
    """Return the one record whose id begins with `prefix`; raises UnknownRecord."""
    by_id: dict[str, Record] = {}
    runs: set[str] = set()
    for record in records:
        by_id[record.id] = record
        runs.add(str(record.body.get("run", "")))
    if prefix and prefix in runs and prefix not in by_id:
        raise UnknownRecord(
            f"{prefix} is a run, not a record",
            hint=f"`attnbench ledger log --run {prefix}` lists its records.",
        )
    return by_id[_only_match(by_id, prefix, "record")]


def find_results(records: Sequence[Record], prefix: str) -> tuple[Record, ...]:
    """Return the results of the one run, or the one result, whose id begins with `prefix`.

    Raises UnknownRecord where nothing or more than one fits, or the record is no result.
    """
    by_id = {record.id: record for record in records}
    runs = dict.fromkeys(str(record.body["run"]) for record in records if "run" in record.body)
    match = _only_match([*by_id, *runs], prefix, "record or run")
    if match in runs:
        return results_of(records, match)
    record = by_id[match]
    if record.kind is Kind.RESULT and not is_of_an_arm(record):
        raise UnknownRecord(
            f"{match[:12]} is a calibration or of memory or quality alone, not a result of an arm",
            hint="`attnbench ledger show` prints it.",
        )
    if record.kind is not Kind.RESULT:
        run = record.body.get("run")
        hint = f"Its run is {run}: compare that." if run else "Name a result or a run."
        raise UnknownRecord(f"{match[:12]} is a {record.kind}, not a result", hint=hint)
    return (record,)


def require_run(prefix: str, runs: Set[str]) -> None:
    """Raise UnknownRecord where no run begins so; an empty beginning is that of all."""
    if prefix and not any(run.startswith(prefix) for run in runs):
        few = sorted(runs - {""}) if len(runs) <= MOST_COMPARED else []
        raise UnknownRecord(
            f"no run begins with {prefix!r}",
            hint=_nearest(few, prefix) or "`attnbench ledger log` lists the runs.",
        )


def results_of(records: Iterable[Record], run: str) -> tuple[Record, ...]:
    """Return the results of a run's arms, oldest first."""
    return tuple(r for r in records if is_of_an_arm(r) and r.body.get("run") == run)


def is_of_an_arm(record: Record) -> bool:
    """Whether this is a result that says something of one arm in one cell; a calibration is a
    result about the instrument, one of memory, of quality alone or of training about a part of what
    counts."""
    others = {"calibration", "footprint", "appraisal", "training"}
    return record.kind is Kind.RESULT and not others & record.body.keys()


def _only_match(ids: Iterable[str], prefix: str, what: str) -> str:
    known = list(ids)
    if prefix in known:
        return prefix
    matches = [id for id in known if prefix and id.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UnknownRecord(
            f"{prefix!r} begins {len(matches)} ids",
            hint=f"Give more of it: {', '.join(_short(id, prefix) for id in matches[:4])}",
        )
    hint = _nearest(known, prefix) or "`attnbench ledger log` lists the ids."
    raise UnknownRecord(f"no {what} begins with {prefix!r}", hint=hint)


def _short(id: str, prefix: str) -> str:
    return id[: len(prefix) + 8]


def _nearest(ids: Sequence[str], prefix: str) -> str:
    """The ids that look most like it, in words; empty where none does."""
    heads = {id[: max(len(prefix), 8)]: id for id in ids}
    near = get_close_matches(prefix.lower(), heads, n=3, cutoff=0.5)
    return f"Nearest: {', '.join(heads[head][:12] for head in near)}" if near else ""
