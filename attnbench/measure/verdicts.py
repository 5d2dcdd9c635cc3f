"""From what a run measured to one result per arm and cell: statistics, gates, verdicts.

A pure function of the evidence: nothing is measured here, and nothing is asked of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from attnbench.errors import Unsupported
from attnbench.measure.conduct import conduct_of
from attnbench.measure.evidence import AGAIN, CellArms, Evidence, JudgedArm
from attnbench.measure.tasks import ArmFailure, CellSamples, MemoryFigures
from attnbench.protocol.ceiling import ceiling_for
from attnbench.protocol.cell import Arm, Role
from attnbench.protocol.costs import costs_of
from attnbench.protocol.decide import adjusted, latency_verdict
from attnbench.protocol.family import Family
from attnbench.protocol.integrity import failure_finding, misconduct
from attnbench.protocol.memory import MemoryVerdict, memory_verdict, not_measured
from attnbench.protocol.result import ArmResult, Floor, Statistics, Verdicts, read_ms
from attnbench.protocol.validity import ByteFloor
from attnbench.protocol.verdict import Finding, LatencyVerdict, Reason, Verdict
from attnbench.quality.gates import QualityVerdict, judge, not_evaluated, random_weights

CEILING = "zero_cost"


def arm_results(evidence: Evidence) -> tuple[ArmResult, ...]:
    """One result for every planned arm in every cell, failed and void ones too."""
    cells = [_CellResults(evidence, index, cell) for index, cell in enumerate(evidence.cells)]
    verdicts = _under_one_error_rate(
        [cell.latency_verdicts() for cell in cells], evidence.protocol.level
    )
    return tuple(
        result
        for cell, found in zip(cells, verdicts, strict=True)
        for result in cell.results(found)
    )


@dataclass(frozen=True)
class _Found:
    """Latency verdicts of one cell by arm, and which of them are claims."""

    by_arm: dict[str, LatencyVerdict]
    candidates: tuple[str, ...]


def _under_one_error_rate(cells: Sequence[_Found], level: float) -> list[dict[str, LatencyVerdict]]:
    """Holm's adjustment over the candidates of all cells of the run together."""
    claims = [(i, label) for i, cell in enumerate(cells) for label in cell.candidates]
    found = [dict(cell.by_arm) for cell in cells]
    judged = adjusted([found[i][label] for i, label in claims], level=level)
    for (i, label), verdict in zip(claims, judged, strict=True):
        found[i][label] = verdict
    return found


@dataclass(frozen=True)
class _CellResults:
    """The results of one cell."""

    evidence: Evidence
    index: int
    cell: CellArms

    def results(self, verdicts: Mapping[str, LatencyVerdict]) -> Iterator[ArmResult]:
        for arm in self.cell.arms:
            yield self._result(arm, verdicts[arm.label])
        for planned in self.evidence.plan.arms:
            if planned.label not in verdicts and self._was_expected(planned):
                yield self._never_ran(planned)

    def _was_expected(self, planned: JudgedArm) -> bool:
        """A default arm that does not exist here, or stays in the pilot, is no failed one."""
        if planned.pilot_only:
            return False
        failure = self._failure(planned.label)
        return planned.asked_for or failure is None or failure.type != Unsupported.__name__

    @property
    def _samples(self) -> list[CellSamples]:
        return [session.cells[self.index] for session in self.evidence.sessions]

    def latency_verdicts(self) -> _Found:
        """Each arm judged alone."""
        candidates = tuple(arm.label for arm in self.cell.arms if arm.role is Role.CANDIDATE)
        return _Found({arm.label: self._latency_verdict(arm) for arm in self.cell.arms}, candidates)

    def _latency_verdict(self, arm: Arm) -> LatencyVerdict:
        pair, protocol = self.cell.arms[:2], self.evidence.protocol
        exact = {a.label for a in self.evidence.plan.arms if a.family is Family.EXACT}
        samples = [cell.samples for cell in self._samples]
        verdict = latency_verdict(
            samples,
            arm.label,
            baseline=pair[0].label,
            baseline_again=pair[1].label,
            protocol=protocol,
            claim=self._planned(arm).claim,
            exact_arms=[a.label for a in self.cell.arms if a.label in exact],
            floor=self._byte_floor(arm),
            ceiling=ceiling_for(arm, self.cell.cell.scope, self.cell.arms, CEILING),
            costs=costs_of(
                samples,
                [session.phases_s for session in self.evidence.sessions],
                groups=protocol.groups,
                blocks=protocol.blocks,
                cells=len(self.evidence.cells),
            ),
        )
        finding = self._doubt() or self._conduct(arm)
        if finding is None:
            return verdict
        return replace(
            verdict,
            verdict=finding.verdict,
            reason=finding.reason,
            next_step=finding.next_step,
            equivalent=False,
        )

    def _doubt(self) -> Finding | None:
        """What makes every time of this cell doubtful."""
        doubt = next((s.bandwidth.note for s in self.evidence.sessions if s.bandwidth.note), "")
        if doubt:
            return Finding(Verdict.VOID, Reason.PROBE_DOUBTFUL, doubt)
        pair = ((arm, self._conduct(arm)) for arm in self.cell.arms[:2])
        return next((replace(f, detail=f"{a.label}: {f.detail}") for a, f in pair if f), None)

    def _conduct(self, arm: Arm) -> Finding | None:
        """What this arm did that an honest one would not; a failure of its own is no such thing."""
        failure = self._failure(arm.label)
        if failure is not None:
            return failure_finding(failure.reason, failure.message)
        if arm.role is Role.CONTROL and self._planned(arm).built_in:
            return None
        return misconduct(
            conduct_of(
                arm.label,
                self.cell.baseline.label,
                self.evidence.sessions,
                self.index,
                dtype=self.evidence.plan.dtype,
                exact=self._planned(arm).family is Family.EXACT,
            )
        )

    def _planned(self, arm: Arm) -> JudgedArm:
        method = arm.label.removesuffix(AGAIN)
        return next(planned for planned in self.evidence.plan.arms if planned.label == method)

    def _byte_floor(self, arm: Arm) -> ByteFloor | None:
        """Nothing to check where an arm never ran, or, for a control, where little is read."""
        read = self._read_bytes(arm)
        cache = int(self.evidence.pilot.device.get("cache_bytes", 0))
        return None if read is None else ByteFloor(read_bytes=read, l2_bytes=cache)

    def _read_bytes(self, arm: Arm) -> int | None:
        seen = [c.read_bytes[arm.label] for c in self._samples if arm.label in c.read_bytes]
        return seen[0] if seen else None

    def _result(self, arm: Arm, verdict: LatencyVerdict) -> ArmResult:
        method, planned = arm.label.removesuffix(AGAIN), self._planned(arm)
        quality = _quality_verdict(self.evidence, planned)
        memory = _memory_verdict(self.evidence, method, self.cell.baseline.label)
        judged = arm.role in (Role.CANDIDATE, Role.CONTROL)  # the baseline has no ratio to itself
        said = Verdicts(
            latency=verdict.verdict.value if judged else "",
            latency_reason=verdict.reason.value if judged else "",
            quality=quality.verdict.value,
            quality_reason=quality.reason,
            memory=memory.verdict.value,
            memory_reason=memory.reason.value,
            next_step=verdict.next_step if judged else "",
        )
        failure = self._failure(arm.label)
        return replace(
            self._bare(planned, arm.label, arm.role, said),
            latency_ms=verdict.latency_ms,
            ratio=UNSET if arm.role is Role.BASELINE else verdict.ratio,
            robust_ratio=UNSET if arm.role is Role.BASELINE else verdict.robust_ratio,
            statistics=_statistics(verdict),
            floor=self._floor(arm),
            captured_share=self._captured_share(arm),
            memory=_memory_body(_memory_figures(self.evidence, method)),
            quality=_quality_body(quality, self.evidence),
            witness=self._witness(arm),
            kernel=self.evidence.pilot.arms[method].fastest or UNSET,
            kernel_source=self.evidence.pilot.arms[method].source or UNSET,
            launched=self._launched(arm),
            failure=f"{failure.type}: {failure.message}" if failure else UNSET,
        )

    def _launched(self, arm: Arm) -> dict[str, int] | UnsetType:
        """Of the strongest exact arm: a reader can see what the others were compared with."""
        if arm.role is not Role.BASELINE:
            return UNSET
        return self.evidence.pilot.arms[arm.label].launched or UNSET

    def _never_ran(self, planned: JudgedArm) -> ArmResult:
        failure = self._failure(planned.label)
        finding = failure_finding(failure.reason if failure else "", "")
        role = Role.CONTROL if planned.family is Family.CONTROL else Role.CANDIDATE
        said = Verdicts(
            latency=finding.verdict.value,
            latency_reason=finding.reason.value,
            quality=not_evaluated("not-measured", "").verdict.value,
            quality_reason="not-measured",
            memory=not_measured().verdict.value,
            memory_reason=not_measured().reason.value,
            next_step=(failure.hint if failure else "") or finding.next_step,
        )
        return replace(
            self._bare(planned, planned.label, role, said),
            failure=f"{failure.type}: {failure.message}" if failure else "it never ran",
        )

    def _bare(self, planned: JudgedArm, label: str, role: Role, said: Verdicts) -> ArmResult:
        """What is known of an arm without a figure."""
        evidence = self.evidence
        return ArmResult(
            run=evidence.run,
            cell=self.cell.cell,
            arm=label,
            method=planned.label,
            family=planned.family.value,
            role=role,
            source_sha256=planned.source_sha256,
            baseline=self.cell.baseline.label,
            verdict=said,
            protocol=msgspec.to_builtins(evidence.protocol),
            environment=self._environment(),
            promise=evidence.plan.request.promise or UNSET,
        )

    def _environment(self) -> dict[str, str | int | float]:
        """The parent's and the workers', with the model's identity and the kind of fill."""
        first = self.evidence.sessions[0]
        return {
            **self.evidence.environment,
            **first.cells[self.index].samples.environment,
            "model_identity": first.model_identity,
            "weights": self.evidence.plan.info.weights,
            "cache_sha256": first.cache_sha256,
        }

    def _failure(self, label: str) -> ArmFailure | None:
        """The first thing that went wrong with an arm: in the pilot, or in a session."""
        method = label.removesuffix(AGAIN)
        pilot = self.evidence.pilot
        places: list[Mapping[str, ArmFailure]] = [
            pilot.session.cells[self.index].failures,
            *(cell.failures for cell in self._samples),
            *(session.failures for session in self.evidence.sessions),
        ]
        found = [place[label] for place in places if label in place]
        return pilot.arms[method].failure or (found[0] if found else None)

    def _floor(self, arm: Arm) -> Floor | UnsetType:
        read = self._read_bytes(arm)
        if read is None:
            return UNSET
        bandwidth = median(cell.samples.bandwidth_gb_s for cell in self._samples)
        return Floor(
            read_bytes=read,
            bandwidth_gb_s=bandwidth,
            theoretical_gb_s=self.evidence.sessions[0].bandwidth.theoretical_gb_s,
            ms=read_ms(read, bandwidth),
        )

    def _captured_share(self, arm: Arm) -> float | UnsetType:
        """(baseline - arm) / (baseline - ceiling), of mean latencies."""
        if arm.role in (Role.BASELINE, Role.BASELINE_AGAIN):
            return UNSET
        base = self._mean_ms(self.cell.baseline.label)
        ceiling = self._mean_ms(CEILING)
        own = self._mean_ms(arm.label)
        if base is None or ceiling is None or own is None or base <= ceiling:
            return UNSET
        return (base - own) / (base - ceiling)

    def _mean_ms(self, label: str) -> float | None:
        values = [
            fsum(visit.steps_us) / len(visit.steps_us) / 1e3
            for cell in self._samples
            for visit in cell.samples.visits
            if visit.arm == label
        ]
        return fsum(values) / len(values) if values else None

    def _witness(self, arm: Arm) -> dict[str, float] | UnsetType:
        seen = [
            c.samples.witness[arm.label] for c in self._samples if arm.label in c.samples.witness
        ]
        return seen[0] if seen else UNSET


def _statistics(verdict: LatencyVerdict) -> Statistics:
    shared = {name: getattr(verdict, name) for name in Statistics.__struct_fields__[:-3]}
    spread = {} if verdict.spread is UNSET else msgspec.structs.asdict(verdict.spread)
    return Statistics(**shared, **spread)


def _quality_verdict(evidence: Evidence, planned: JudgedArm) -> QualityVerdict:
    if evidence.plan.info.weights == "random":
        return random_weights()
    if not evidence.plan.request.quality:
        return not_evaluated("not-asked", "run again without --no-quality")
    if evidence.quality is None:
        return not_evaluated("not-measured", "see why the quality part of the run failed")
    samples = evidence.quality.arms.get(planned.label)
    if samples is None:
        why = evidence.quality.failures.get(planned.label)
        return not_evaluated("not-measured", why.message if why else "the arm did not run")
    bands = evidence.plan.request.bands
    return judge(samples, planned.family.value, evidence.plan.info.weights, bands)


def _quality_body(
    verdict: QualityVerdict, evidence: Evidence
) -> dict[str, float | int | str] | UnsetType:
    if not verdict.figures or evidence.quality is None:
        return UNSET
    return {
        **verdict.figures,
        "worst_gate": verdict.worst_gate or "",
        "worst_layer": -1 if verdict.worst_layer is None else verdict.worst_layer,
        "worst_head": -1 if verdict.worst_head is None else verdict.worst_head,
        "gates_run": ", ".join(verdict.gates_run),
        "gates_not_run": ", ".join(verdict.gates_not_run),
        "windows": verdict.windows,
        "steps": verdict.steps,
        "context": verdict.context,
        "text": evidence.quality.text_name,
        "text_sha256": evidence.quality.text_sha256,
    }


def _memory_figures(evidence: Evidence, method: str) -> MemoryFigures | None:
    return None if evidence.memory is None else evidence.memory.arms.get(method)


def _memory_verdict(evidence: Evidence, method: str, baseline: str) -> MemoryVerdict:
    own, base = (_memory_figures(evidence, name) for name in (method, baseline))
    if own is None or base is None:
        return not_measured()
    return memory_verdict(
        baseline_bytes=base.reachable_bytes,
        reachable_saving=base.reachable_bytes - own.reachable_bytes,
        allocated_saving=base.allocated_bytes - own.allocated_bytes,
        host_bytes=own.host_bytes - base.host_bytes,
    )


def _memory_body(figures: MemoryFigures | None) -> dict[str, int | str | bool] | UnsetType:
    if figures is None:
        return UNSET
    body: dict[str, int | str | bool | None] = msgspec.to_builtins(figures)
    return {name: value for name, value in body.items() if value is not None}
