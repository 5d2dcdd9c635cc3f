"""What the ledger holds of a run that stopped, so that it can go on."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from attnbench.errors import UsageError
from attnbench.ledger import Json, Ledger, Record, Status, fold
from attnbench.ledger.promises import is_opening
from attnbench.measure.answers import TaskResult
from attnbench.measure.tasks import ArmFailure

MAY_CHANGE = ("device_uuid", "driver", "platform")  # another machine of the same kind


@dataclass(frozen=True)
class Past:
    """The closed sessions of a run, by their name in the ledger, and what they were measured with.

    A session that was aborted, failed, was abandoned or retracted is not among them: it stays in
    the ledger as it is, and another one is measured in its place. Of two that were closed under one
    name (two processes went on with one run) the first counts, so that nobody can choose.
    """

    run: str
    results: Mapping[str, TaskResult]
    cites: tuple[str, ...]
    left_out: Mapping[str, ArmFailure]
    environment: Mapping[str, Any]
    sources: Mapping[str, str]

    @property
    def sessions(self) -> int:
        """As many as its last closed session says, which are numbered from 0."""
        numbers = (name.split()[-1] for name in self.results)
        return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)

    def differences(
        self, sources: Mapping[str, str], environment: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """What is another one than before and may be: a card of the same name, its driver.

        Raises `UsageError` where the kind of device, packages or sources are not those of the run.
        """
        changed = {
            name: f"{name} {self.environment.get(name)} → {value}"
            for name, value in environment.items()
            if self.environment.get(name) != value
        }
        refused = [said for name, said in changed.items() if name not in MAY_CHANGE]
        refused += [
            f"the source of {name} changed"
            for name, sha256 in sources.items()
            if self.sources.get(name) != sha256
        ]
        if refused:
            raise UsageError(
                f"run {self.run} cannot go on here: {'; '.join(refused)}",
                hint="sessions of one run are alike; start a new one without --resume",
            )
        return tuple(changed.values())


def past_sessions(
    ledger: Ledger, records: Sequence[Record], run: str, cell: Json = None
) -> Past | None:
    """What was measured of a run (and, of several cells, in this one); None where no session of it
    was opened."""
    ours = [r for r in records if r.body.get("run") == run and r.body.get("cell") == cell]
    opened = [record for record in ours if is_opening(record)]
    if not opened:
        return None
    statuses = fold(records).statuses
    closed: dict[str, Record] = {}
    for record in ours:
        if record.body.get("phase") == "closed" and statuses[record.id] is Status.LIVE:
            closed.setdefault(str(record.body["session"]), record)
    left_out = opened[-1].body["task"]["bench"].get("left_out", {})
    return Past(
        run=run,
        results={name: _result(ledger, record) for name, record in closed.items()},
        cites=tuple(record.id for record in closed.values()),
        left_out=msgspec.convert(left_out, dict[str, ArmFailure]),
        environment=opened[0].body["environment"],
        sources=opened[0].body["sources"],
    )


def _result(ledger: Ledger, record: Record) -> TaskResult:
    data = gzip.decompress(ledger.get_blob(record.body["samples"]))
    result: TaskResult = msgspec.json.decode(data, type=TaskResult)
    return result
