"""All that a decode run measured: what verdicts are computed from."""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.errors import AttnbenchError
from attnbench.measure.plan import Plan
from attnbench.measure.tasks import MemoryResult, PilotResult, QualityResult, SessionResult
from attnbench.protocol.cell import Arm, Cell

AGAIN = "#2"  # marks the baseline's second arm, A'


@dataclass(frozen=True)
class CellArms:
    """A cell with the arms that its sessions hold, baseline pair first."""

    cell: Cell
    arms: tuple[Arm, ...]

    @property
    def baseline(self) -> Arm:
        """A, the fastest exact arm of this cell's pilot."""
        return self.arms[0]


@dataclass(frozen=True)
class Evidence:
    """What the workers sent, and the ids of the records that hold it.

    `failed` holds why memory or quality is missing: latency counts without them.
    """

    run: str
    plan: Plan
    pilot: PilotResult
    cells: tuple[CellArms, ...]
    sessions: tuple[SessionResult, ...]
    memory: MemoryResult | None
    quality: QualityResult | None
    failed: tuple[AttnbenchError, ...]
    environment: dict[str, str | int | float]
    cites: tuple[str, ...]
