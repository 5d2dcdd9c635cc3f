"""The figures of one arm in one cell that decide nothing: floor, ceiling, rate, energy, parts."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from msgspec import UNSET, UnsetType

from attnbench.measure.answers import CellProfile, CellSamples
from attnbench.measure.evidence import CellArms, Evidence
from attnbench.protocol.beside import beside
from attnbench.protocol.breakdown import by_attention_alone, by_kernels
from attnbench.protocol.captured import Captured, captured
from attnbench.protocol.cell import Arm, Role, Scope
from attnbench.protocol.result import Beside, Breakdown, Ceiling, Energy, Floor, read_ms
from attnbench.protocol.verdict import LatencyVerdict

CEILING = "zero_cost"
FEWEST_UPDATES = 10  # of the energy counter: fewer know it to worse than a tenth


@dataclass(frozen=True)
class Figures:
    """Of one cell, the `index`-th of its evidence."""

    evidence: Evidence
    index: int
    cell: CellArms

    @property
    def _samples(self) -> list[CellSamples]:
        return [session.cells[self.index] for session in self.evidence.sessions]

    def read_bytes(self, arm: Arm) -> int | None:
        """That a step must read at least; None for an arm that never ran."""
        seen = [c.read_bytes[arm.label] for c in self._samples if arm.label in c.read_bytes]
        return seen[0] if seen else None

    def floor(self, arm: Arm) -> Floor | UnsetType:
        """Those bytes, of weights and of keys and values, and the time that they take."""
        read = self.read_bytes(arm)
        if read is None:
            return UNSET
        first = self.evidence.sessions[0]
        bandwidth = median(cell.samples.bandwidth_gb_s for cell in self._samples)
        weights = first.weight_bytes if self.cell.cell.scope is Scope.STEP else 0
        return Floor(
            read_bytes=read,
            weight_bytes=weights,
            kv_bytes=read - weights,
            bandwidth_gb_s=bandwidth,
            theoretical_gb_s=first.bandwidth.theoretical_gb_s,
            ms=read_ms(read, bandwidth),
        )

    def captured(self, arm: Arm) -> Captured | None:
        """Of the way from the baseline to the ceiling."""
        if arm.role in (Role.BASELINE, Role.BASELINE_AGAIN):
            return None
        return captured(
            [cell.samples for cell in self._samples],
            arm.label,
            self.cell.baseline.label,
            CEILING,
            self.evidence.protocol.level,
        )

    def tokens_per_s(self, verdict: LatencyVerdict) -> float | UnsetType:
        """Of all sequences together, from the median step."""
        if self.cell.cell.scope is not Scope.STEP or verdict.latency_ms is UNSET:
            return UNSET
        return self.cell.cell.batch * 1e3 / verdict.latency_ms["median"]

    def beside(self, arm: Arm) -> Beside | UnsetType:
        """What its median step does not show."""
        samples, set_up_us = zip(*((c.samples, c.set_up_us) for c in self._samples), strict=True)
        return beside(samples, set_up_us, arm.label, self.cell.baseline.label) or UNSET

    @property
    def _profile(self) -> CellProfile | None:
        profile = self.evidence.profile
        return None if profile is None else profile.cells[self.index]

    def energy(self, arm: Arm) -> Energy | UnsetType:
        """Of a counter that moved often enough; A′ is the method that A is."""
        label = self.cell.baseline.label if arm.role is Role.BASELINE_AGAIN else arm.label
        sample = None if self._profile is None else self._profile.energy.get(label)
        if sample is None or sample.updates < FEWEST_UPDATES or not sample.steps:
            return UNSET
        return Energy(
            joules_per_token=sample.joules / sample.steps / self.cell.cell.batch,
            seconds=sample.seconds,
            steps=sample.steps,
            updates=sample.updates,
        )

    def breakdown(self, arm: Arm, verdict: LatencyVerdict) -> Breakdown | UnsetType:
        """Of the baseline's whole step, by kernels where a profile told them."""
        if arm.role is not Role.BASELINE or self.cell.cell.scope is not Scope.STEP:
            return UNSET
        seen = None if self._profile is None else self._profile.steps
        if seen is not None and verdict.latency_ms is not UNSET:
            return by_kernels(seen, verdict.latency_ms["median"] * 1e3)
        alone = [(cell.samples, cell.attention_us) for cell in self._samples]
        return by_attention_alone(alone, arm.label, self.evidence.protocol.level) or UNSET


def ceiling_of(verdict: LatencyVerdict | None) -> Ceiling | UnsetType:
    """What the zero-cost arm of the cell says of all others."""
    if verdict is None or verdict.latency_ms is UNSET:
        return UNSET
    return Ceiling(ms=verdict.latency_ms["median"], speed_up=verdict.ratio)
