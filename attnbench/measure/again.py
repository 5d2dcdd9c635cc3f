"""`python -m attnbench.measure.again LEDGER RUN`: a run's results once more, where no method was.

A process that imported methods has judged; this one imports none, builds each result again from the
raw samples that the ledger holds, and says which differ. One that today's source cannot read is for
`ledger verify --recompute` to tell.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from attnbench.errors import LedgerError
from attnbench.ledger import Ledger
from attnbench.measure.recompute import Outcome, Rechecked, recompute

COMMAND = (sys.executable, "-m", "attnbench.measure.again")
SHOWN = 3


def require_same(path: Path, run: str) -> None:
    """Raise `LedgerError` where a fresh process builds other results of this run than it has."""
    done = subprocess.run([*COMMAND, str(path), run], capture_output=True, text=True, check=False)
    try:
        differing = msgspec.json.decode(done.stdout, type=list[str])
    except msgspec.DecodeError:
        said = done.stderr.strip().rpartition("\n")[2]
        raise LedgerError(f"the results of run {run} could not be built again: {said}") from None
    if differing:
        more = f" and {len(differing) - SHOWN} more" * (len(differing) > SHOWN)
        raise LedgerError(
            f"not what the samples say, built again where no method was imported: "
            f"{'; '.join(differing[:SHOWN])}{more}",
            hint=f"`attnbench ledger verify --recompute` shows them; retract run {run}, which a "
            "method has tampered with",
        )


def differing(path: Path, run: str) -> list[str]:
    """What of the results of a run their samples say otherwise today."""
    differ = [r for r in recompute(Ledger(path), run).results if r.outcome is Outcome.DIFFERS]
    return [f"{result.what}: {', '.join(_members(result))}" for result in differ]


def _members(result: Rechecked) -> list[str]:
    return [each.member for each in result.differences if each.outcome is Outcome.DIFFERS]


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(differing(Path(sys.argv[1]), sys.argv[2])).decode())
