"""From what a run measured to one result per arm and cell: statistics, gates, verdicts.

A pure function of the evidence: nothing is measured here, and nothing is asked of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from attnbench.errors import DoesNotFit, Unsupported
from attnbench.measure.answers import CellSamples
from attnbench.measure.conduct import conduct_of
from attnbench.measure.evidence import AGAIN, CellArms, Evidence, JudgedArm
from attnbench.measure.figures import CEILING, Figures, ceiling_of
from attnbench.measure.gated import (
    memory_body,
    memory_figures,
    memory_verdict_of,
    quality_body,
    quality_verdict,
)
from attnbench.measure.tasks import ArmFailure
from attnbench.protocol.ceiling import ceiling_for
from attnbench.protocol.cell import Arm, Cell, Role
from attnbench.protocol.costs import costs_of
from attnbench.protocol.decide import adjusted, latency_verdict
from attnbench.protocol.family import Family
from attnbench.protocol.integrity import failure_finding, misconduct
from attnbench.protocol.memory import not_measured
from attnbench.protocol.result import (
    ArmResult,
    Statistics,
    Verdicts,
)
from attnbench.protocol.validity import ByteFloor
from attnbench.protocol.verdict import Finding, LatencyVerdict, Reason, Verdict
from attnbench.quality.gates import not_evaluated


def arm_results(*evidences: Evidence, primary: Cell | None = None) -> tuple[ArmResult, ...]:
    """One result for every planned arm in every cell of a run, failed and void ones too.

    Every `Evidence` is of one place; `primary` is the run's primary cell, its first where none is
    named. The candidates of the primary cell share one error rate, and so do those of all others.
    """
    cells = [
        _CellResults(evidence, index, cell)
        for evidence in evidences
        for index, cell in enumerate(evidence.cells)
    ]
    first = primary or cells[0].cell.cell
    verdicts = _under_two_error_rates(
        [cell.latency_verdicts() for cell in cells],
        [cell.cell.cell == first for cell in cells],
        evidences[0].protocol.level,
    )
    return tuple(
        replace(result, primary=result.cell == first)
        for cell, found in zip(cells, verdicts, strict=True)
        for result in cell.results(found)
    )


@dataclass(frozen=True)
class _Found:
    """Latency verdicts of one cell by arm, and which of them are claims."""

    by_arm: dict[str, LatencyVerdict]
    candidates: tuple[str, ...]


def _under_two_error_rates(
    cells: Sequence[_Found], is_primary: Sequence[bool], level: float
) -> list[dict[str, LatencyVerdict]]:
    """Holm's adjustment over the candidates of the primary cell, and over those of all others."""
    found = [dict(cell.by_arm) for cell in cells]
    for primary in (True, False):
        claims = [
            (i, label)
            for i, cell in enumerate(cells)
            if is_primary[i] is primary
            for label in cell.candidates
        ]
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
        ceiling = ceiling_of(verdicts.get(CEILING))
        for arm in self.cell.arms:
            yield replace(self._result(arm, verdicts[arm.label]), ceiling=ceiling)
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

    @property
    def _figures(self) -> Figures:
        return Figures(self.evidence, self.index, self.cell)

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
            return failure_finding(_reason(failure), failure.message)
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
        read = self._figures.read_bytes(arm)
        cache = int(self.evidence.pilot.device.get("cache_bytes", 0))
        return None if read is None else ByteFloor(read_bytes=read, l2_bytes=cache)

    def _result(self, arm: Arm, verdict: LatencyVerdict) -> ArmResult:
        method, planned = arm.label.removesuffix(AGAIN), self._planned(arm)
        context = self.cell.cell.context
        quality = quality_verdict(self.evidence, planned, self._timed_share(arm), context)
        figures = memory_figures(self.evidence, method)
        of_baseline = memory_figures(self.evidence, self.cell.baseline.label)
        memory = memory_verdict_of(figures, of_baseline)
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
        failure, captured = self._failure(arm.label), self._figures.captured(arm)
        return replace(
            self._bare(planned, arm.label, arm.role, said),
            latency_ms=verdict.latency_ms,
            ratio=UNSET if arm.role is Role.BASELINE else verdict.ratio,
            robust_ratio=UNSET if arm.role is Role.BASELINE else verdict.robust_ratio,
            statistics=_statistics(verdict),
            floor=self._figures.floor(arm),
            captured_share=UNSET if captured is None else captured.share,
            captured_interval=UNSET if captured is None else captured.interval,
            tokens_per_s=self._figures.tokens_per_s(verdict),
            energy=self._figures.energy(arm),
            beside=self._figures.beside(arm),
            breakdown=self._figures.breakdown(arm, verdict),
            memory=memory_body(figures),
            quality=quality_body(quality, self.evidence),
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
        role = Role.CONTROL if planned.family is Family.CONTROL else Role.CANDIDATE
        return replace(
            self._bare(planned, planned.label, role, never_measured(failure)),
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

    def _witness(self, arm: Arm) -> dict[str, float] | UnsetType:
        seen = [
            c.samples.witness[arm.label] for c in self._samples if arm.label in c.samples.witness
        ]
        return seen[0] if seen else UNSET

    def _timed_share(self, arm: Arm) -> float | None:
        """Of the tokens, the least that a session's timed steps say they attended to."""
        seen = (c.samples.witness.get(arm.label, {}).get("kept_share") for c in self._samples)
        return min((share for share in seen if share is not None), default=None)


def never_measured(failure: ArmFailure | None) -> Verdicts:
    """On an arm without a figure, and why it has none."""
    finding = failure_finding(_reason(failure) if failure else "", "")
    return Verdicts(
        latency=finding.verdict.value,
        latency_reason=finding.reason.value,
        quality=not_evaluated("not-measured", "").verdict.value,
        quality_reason="not-measured",
        memory=not_measured().verdict.value,
        memory_reason=not_measured().reason.value,
        next_step=(failure.hint if failure else "") or finding.next_step,
    )


def _reason(failure: ArmFailure) -> str:
    """Of the verdict that follows; who ran out of memory has not been measured for that reason."""
    out_of_memory = failure.type == DoesNotFit.__name__ and not failure.reason
    return Reason.DOES_NOT_FIT.value if out_of_memory else failure.reason


def _statistics(verdict: LatencyVerdict) -> Statistics:
    shared = {name: getattr(verdict, name) for name in Statistics.__struct_fields__[:-3]}
    spread = {} if verdict.spread is UNSET else msgspec.structs.asdict(verdict.spread)
    return Statistics(**shared, **spread)
