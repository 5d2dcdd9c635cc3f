"""Which runs a page shows: the results of a long ledger do not fit one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from attnbench.ledger import Kind, Record
from attnbench.ledger.lookup import require_run

OF_RUNS = frozenset({Kind.SESSION, Kind.RESULT})
LAST = 100


@dataclass(frozen=True)
class Selection:
    """The runs whose ids begin so (empty: all), that recorded something since then, and of these
    the last ones; `last` 0 means all. Claims, remarks and registrations are always all there."""

    runs: tuple[str, ...] = ()
    since: datetime | None = None
    last: int = 0


@dataclass(frozen=True)
class Chosen:
    """The runs that are shown, of how many."""

    runs: frozenset[str]
    of: int

    @property
    def is_all(self) -> bool:
        return len(self.runs) == self.of

    def holds(self, record: Record) -> bool:
        """Whether a record is of no run, or of one that is shown."""
        return self.is_all or record.kind not in OF_RUNS or run_of(record) in self.runs


def choose(records: Sequence[Record], selection: Selection) -> Chosen:
    """The runs that a selection means; raises UnknownRecord for one that is not there."""
    ended = _last_records(records)
    for prefix in selection.runs:
        require_run(prefix, ended.keys())
    begins = selection.runs or ("",)
    found = [run for run in ended if run.startswith(begins)]
    if selection.since is not None:
        found = [run for run in found if datetime.fromisoformat(ended[run].utc) >= selection.since]
    return Chosen(frozenset(found[-selection.last :]), len(ended))


def run_of(record: Record) -> str:
    return str(record.body.get("run", ""))


def _last_records(records: Sequence[Record]) -> dict[str, Record]:
    """By run, in the order in which they ended."""
    ended: dict[str, Record] = {}
    for record in records:
        if record.kind in OF_RUNS:
            ended.pop(run_of(record), None)
            ended[run_of(record)] = record
    return ended
