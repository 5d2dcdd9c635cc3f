"""Quality alone: plans the gates of some methods, runs them in one worker, judges and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import UNSET

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Ledger
from attnbench.measure.answers import QualityResult
from attnbench.measure.appraised import judged
from attnbench.measure.device import environment
from attnbench.measure.estimate import quality_s
from attnbench.measure.judge import nothing
from attnbench.measure.layout import bench_of, cell_of, quality_counts
from attnbench.measure.past import Past
from attnbench.measure.plan import DecodeRequest, Plan, PlannedArm, plan_decode
from attnbench.measure.reporter import Reporter
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import QualityTask
from attnbench.measure.workers import RunTask, Workers
from attnbench.methods.base import Family
from attnbench.protocol.appraisal import ArmQuality, QualityCell, Said
from attnbench.protocol.band_options import bands_of
from attnbench.protocol.cell import Arm, Mode, Role
from attnbench.protocol.presets import preset
from attnbench.protocol.result import Promise
from attnbench.quality.gates import RANDOM
from attnbench.quality.levels import Level, QualityCounts
from attnbench.quality.samples import GateArrays

FLOOR = "sdpa,backend=math"  # the same attention, computed in another way


@dataclass(frozen=True)
class QualityRequest:
    """What the user asked for; empty and None leave the choice to the plan."""

    model: str
    methods: tuple[str, ...] = ()
    level: Level = Level.QUICK
    context: int | None = None
    dtype: str = ""
    device: str = ""
    text: Path | None = None
    seed: int = 0
    threads: int = 1
    bands: tuple[str, ...] = ()  # that are not the default, as `band_options` reads them
    contrast: bool = False  # with made-up data and random weights
    kept_map: bool = False  # with a map of the tokens that are kept
    bounds: bool = False  # with bounds that methods hold, held against the logits


@dataclass(frozen=True)
class QualityPlan:
    """What is fixed before the worker starts; `cell` is the plan of a decode run of the same."""

    request: QualityRequest
    cell: Plan
    arms: tuple[PlannedArm, ...]

    @property
    def counts(self) -> QualityCounts:
        counts = quality_counts(self.cell)
        return msgspec.structs.replace(
            counts,
            contrast=self.request.contrast,
            kept_map=self.request.kept_map,
            bounds=self.request.bounds,
        )

    @property
    def minutes(self) -> float:
        """About how long it takes."""
        return quality_s(self.cell, list(self.arms), kept_map=self.request.kept_map) / 60


def plan_quality(request: QualityRequest) -> QualityPlan:
    """Decide device, dtype and arms.

    Raises what `plan_decode` raises, and UsageError for bands that make no sense and for random
    weights: nothing that a method does to them says what it does to a trained model.
    """
    bands_of(request.bands)
    plan = plan_decode(
        DecodeRequest(
            model=request.model,
            protocol=preset("quick"),
            context=request.context,
            dtype=request.dtype,
            device=request.device,
            modes=(Mode.EAGER,),
            methods=request.methods,
            quality=request.level,
            text=request.text,
            seed=request.seed,
            threads=request.threads,
        )
    )
    if plan.info.weights == RANDOM:
        raise UsageError(
            f"{plan.info.spec} has random weights, on which any method may look excellent",
            hint="judge quality on a trained model: --model embedded, a folder, a .gguf file",
        )
    _refuse_shorter(request, plan)
    return QualityPlan(request, plan, tuple(arm for arm in plan.arms if _is_judged(arm, request)))


def _refuse_shorter(request: QualityRequest, plan: Plan) -> None:
    """A context that was asked for is the one that is judged, or none is."""
    largest = quality_counts(plan).context
    if request.context is not None and largest < request.context:
        raise UsageError(
            f"--ctx {request.context} leaves no room for the steps that are judged after it: "
            f"{plan.info.spec} has {plan.info.max_context} positions",
            hint=f"use at most --ctx {largest}",
        )


def _is_judged(arm: PlannedArm, request: QualityRequest) -> bool:
    """What was asked for, or else the lossy arms of a bare run; and the floor beside them."""
    by_default = not request.methods and arm.family is Family.APPROXIMATE
    return arm.asked_for or by_default or (arm.label == FLOOR and not request.contrast)


@dataclass(frozen=True)
class Appraisal:
    """The results in the order of the arms, and the samples that they rest on, by arm."""

    results: tuple[ArmQuality, ...]
    samples: Mapping[str, GateArrays]


class Appraiser:
    """One run of one plan; `run` does a task in a process of its own, and `unchanged` raises where
    this one, which judges, is not what it was."""

    def __init__(
        self,
        plan: QualityPlan,
        ledger: Ledger,
        reporter: Reporter,
        *,
        run: RunTask = run_task,
        unchanged: Callable[[], None] = nothing,
        promise: Promise | None = None,
        past: Past | None = None,
        name: str = "",
    ) -> None:
        self._require_unchanged = unchanged
        self._promise = promise
        self._plan = plan
        self._ledger = ledger
        self._reporter = reporter
        self._environment = environment(plan.cell.facts)
        self._workers = Workers(
            ledger,
            reporter,
            about={
                "environment": dict(self._environment),
                "sources": {arm.label: arm.source_sha256 for arm in plan.arms},
            },
            run=run,
            promise=promise,
            cell=cell_of(plan.cell, 0) if promise else None,
            name=name,
        )
        if past is not None:
            self._workers.go_on(past)

    @property
    def cites(self) -> list[str]:
        """The closed sessions that the results rest on."""
        return self._workers.cites

    def appraise(self) -> Appraisal:
        """Run, judge and record; raises what the worker raises, before any verdict."""
        found = self.judged()
        for result in found.results:
            self._ledger.append(Kind.RESULT, msgspec.to_builtins(result), cites=self.cites)
        return found

    def judged(self) -> Appraisal:
        """Run and judge."""
        self._require_unchanged()
        bench = bench_of(self._plan.cell, tuple(_arm(arm) for arm in self._plan.arms))
        task = QualityTask(bench=bench, counts=self._plan.counts)
        with self._reporter.stage("quality: every gate against SDPA on real text") as stage:
            found = self._workers.work("quality", task, QualityResult, stage.update)
        self._require_unchanged()
        results = tuple(self._result(arm, found) for arm in self._plan.arms)
        return Appraisal(results, {label: arm.arrays() for label, arm in found.arms.items()})

    def _result(self, arm: PlannedArm, found: QualityResult) -> ArmQuality:
        weights = self._plan.cell.info.weights
        bare = self._bare(arm, {"model_identity": found.model_identity, "weights": weights})
        return judged(bare, found, weights)

    def _bare(self, arm: PlannedArm, of_model: Mapping[str, str]) -> ArmQuality:
        """What is known of an arm before it is judged."""
        plan = self._plan
        return ArmQuality(
            appraisal=plan.request.level.value,
            run=self._workers.run,
            cell=QualityCell(
                model=plan.cell.info.name,
                context=plan.cell.context,
                dtype=plan.cell.dtype,
                device=plan.cell.facts.name,
            ),
            arm=arm.label,
            method=arm.label,
            family=arm.family.value,
            role=_role(arm),
            floor=arm.label == FLOOR,
            source_sha256=arm.source_sha256,
            verdict=Said(quality="NOT_EVALUATED", quality_reason="not-measured", next_step=""),
            environment={
                **self._environment,
                "threads": plan.request.threads,
                "seed": plan.request.seed,
                **of_model,
            },
            counts=msgspec.structs.asdict(plan.counts),
            bands=plan.request.bands,
            promise=self._promise or UNSET,
        )


def _role(arm: PlannedArm) -> Role:
    return Role.CONTROL if arm.family is Family.CONTROL else Role.CANDIDATE


def _arm(arm: PlannedArm) -> Arm:
    return Arm(label=arm.label, method=arm.spec, role=_role(arm))
