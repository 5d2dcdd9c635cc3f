"""The records that filters let pass, a batch at a time, each with its standing."""

from __future__ import annotations

from collections.abc import Iterator

from attnbench.cli.ledger_filters import Filters
from attnbench.ledger import Record, State
from attnbench.ledger.bearing import shaken, standing
from attnbench.ledger.survey import Survey

BATCH = 20_000  # records that are held at a time


def listed(
    walk: Survey[bool], filters: Filters, *, citing: bool = False
) -> Iterator[tuple[Record, State]]:
    """The records that `walk` found by `filters`, each with a state that knows its standing, and
    what cites it only with `citing`."""
    seqs = [find.seq for find in walk.finds]
    if filters.tainted:
        may = shaken(walk)
        seqs = [seq for seq in seqs if seq in may]
    for start in range(0, len(seqs), BATCH):
        records = walk.records(seqs[start : start + BATCH])
        state = standing(walk, records, citing=citing)
        yield from ((r, state) for r in records if filters.accept_standing(r, state))
