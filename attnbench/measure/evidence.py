"""All that a decode run measured: what verdicts are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from attnbench.errors import AttnbenchError
from attnbench.measure.plan import Plan
from attnbench.measure.tasks import MemoryResult, PilotResult, QualityResult, SessionResult
from attnbench.protocol.cell import Arm, Cell
from attnbench.protocol.looks import protocol_at
from attnbench.protocol.presets import Protocol

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


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers sent, and the ids of the records that hold it.

    `failed` holds why memory or quality is missing: latency counts without them.
    """

    run: str
    plan: Plan
    pilot: PilotResult
    cells: tuple[CellArms, ...]
    sessions: tuple[SessionResult, ...]
    environment: dict[str, str | int | float]
    memory: MemoryResult | None = None
    quality: QualityResult | None = None
    failed: tuple[AttnbenchError, ...] = ()
    cites: tuple[str, ...] = ()

    @property
    def protocol(self) -> Protocol:
        """By which these sessions are judged: that of the look at which they ended."""
        return protocol_at(self.plan.request.protocol, len(self.sessions))
