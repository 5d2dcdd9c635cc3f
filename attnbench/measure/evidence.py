"""All that a decode run measured: what verdicts are computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

import msgspec

from attnbench.errors import AttnbenchError
from attnbench.measure.answers import (
    MemoryResult,
    PilotResult,
    ProfileResult,
    QualityResult,
    SessionResult,
)
from attnbench.protocol.bands import Bands, Gate
from attnbench.protocol.cell import Arm, Cell
from attnbench.protocol.family import Family
from attnbench.protocol.looks import protocol_at
from attnbench.protocol.presets import Protocol
from attnbench.protocol.result import Promise

AGAIN = "#2"  # marks the baseline's second arm, A'


class JudgedArm(Interface):
    """What a verdict has to know of an arm beside its samples; see `plan.PlannedArm`."""

    @property
    def label(self) -> str: ...
    @property
    def family(self) -> Family: ...
    @property
    def asked_for(self) -> bool: ...
    @property
    def source_sha256(self) -> str: ...
    @property
    def pilot_only(self) -> bool: ...
    @property
    def twin(self) -> str: ...
    @property
    def built_in(self) -> bool: ...
    @property
    def named_baseline(self) -> bool: ...
    @property
    def claim(self) -> float: ...


class JudgedRequest(Interface):
    """What was asked for, as far as a verdict depends on it; see `plan.DecodeRequest`."""

    @property
    def protocol(self) -> Protocol: ...
    @property
    def wants_quality(self) -> bool: ...
    @property
    def bands(self) -> Mapping[Gate, tuple[Bands, ...]]: ...
    @property
    def promise(self) -> Promise | None: ...


class Weights(Interface):
    """Whether the model's weights are "trained" or "random"."""

    @property
    def weights(self) -> str: ...


class Terms(Interface):
    """What was fixed before anything was measured, as far as a verdict depends on it.

    A plan is such terms, and so is what the records of a run say (`recompute`).
    """

    @property
    def arms(self) -> Sequence[JudgedArm]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def info(self) -> Weights: ...
    @property
    def request(self) -> JudgedRequest: ...


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

    `failed` holds why memory, quality or profile is missing: latency counts without them.
    """

    run: str
    plan: Terms
    pilot: PilotResult
    cells: tuple[CellArms, ...]
    sessions: tuple[SessionResult, ...]
    environment: dict[str, str | int | float]
    memory: MemoryResult | None = None
    quality: QualityResult | None = None
    profile: ProfileResult | None = None
    failed: tuple[AttnbenchError, ...] = ()
    cites: tuple[str, ...] = ()

    @property
    def protocol(self) -> Protocol:
        """By which these sessions are judged: that of the look at which they ended."""
        return protocol_at(self.plan.request.protocol, len(self.sessions))
