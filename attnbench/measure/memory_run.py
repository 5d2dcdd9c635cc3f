"""Carries a run of memory alone out: one worker, one record of sessions, one result."""

from __future__ import annotations

import msgspec

from attnbench.errors import AttnbenchError
from attnbench.ledger import Kind, Ledger
from attnbench.measure.answers import Fit, FitResult, MemoryResult, PartFailure, SweepResult
from attnbench.measure.device import environment
from attnbench.measure.gated import memory_body, memory_verdict_of
from attnbench.measure.memory_plan import REFERENCE, MemoryPlan
from attnbench.measure.plan import Plan
from attnbench.measure.reporter import Reporter, Stage
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import FitTask, SweepTask
from attnbench.measure.workers import RunTask, Workers
from attnbench.protocol.footprint import CELL, FIT, Fitted, FootprintResult, PlaceFootprint

Part = MemoryResult | FitResult


def measure_memory(
    plan: MemoryPlan, ledger: Ledger, reporter: Reporter, *, run: RunTask = run_task
) -> FootprintResult:
    """Measure every place and record what was found; raises what the worker raises."""
    first = plan.plans[0]
    where = environment(first.facts)
    sources = {arm.label: arm.source_sha256 for arm in plan.arms}
    workers = Workers(
        ledger,
        reporter,
        about={"environment": dict(where), "protocol": "memory", "sources": sources},
        run=run,
    )
    kind = FIT if plan.request.fit else CELL
    title = "memory: contexts tried" if plan.request.fit else "memory: each arm in its own process"
    with reporter.stage(title) as stage:
        parts = _parts(plan, workers, kind, stage)
    result = FootprintResult(
        footprint=kind,
        run=workers.run,
        model=plan.info.name,
        dtype=first.dtype,
        device=first.facts.name,
        places=tuple(
            _place(plan, each, part) for each, part in zip(plan.plans, parts, strict=True)
        ),
        arms={arm.label: arm.spec for arm in plan.arms},
        sources=sources,
        environment={**where, "weights": plan.info.weights, "model_identity": plan.info.identity},
        remarks=plan.remarks,
    )
    ledger.append(Kind.RESULT, msgspec.to_builtins(result), cites=workers.cites)
    return result


def _parts(plan: MemoryPlan, workers: Workers, kind: str, stage: Stage) -> tuple[Part, ...]:
    tasks = plan.tasks()
    if len(tasks) == 1:
        task = tasks[0]
        if isinstance(task, FitTask):
            return (workers.work(kind, task, FitResult, stage.update),)
        return (workers.work(kind, task, MemoryResult, stage.update),)
    swept = workers.work(kind, SweepTask(parts=tasks), SweepResult, stage.update)
    return tuple(_part(part) for part in swept.parts)


def _part(part: object) -> Part:
    if isinstance(part, PartFailure):
        raise AttnbenchError(part.why.message, hint=part.why.hint)
    if not isinstance(part, MemoryResult | FitResult):
        raise AttnbenchError(f"the worker sent a {type(part).__name__}, not figures of memory")
    return part


def _place(plan: MemoryPlan, place: Plan, part: Part) -> PlaceFootprint:
    failures = {label: f"{why.type}: {why.message}" for label, why in part.failures.items()}
    if isinstance(part, FitResult):
        return PlaceFootprint(
            batch=place.request.batch,
            weight_bytes=place.weight_bytes,
            limit_bytes=plan.limit_bytes,
            free_before_bytes=part.free_before_bytes,
            free_after_bytes=part.free_after_bytes,
            fits={label: _fitted(fit) for label, fit in part.arms.items()},
            failures=failures,
        )
    return PlaceFootprint(
        batch=place.request.batch,
        weight_bytes=place.weight_bytes,
        context=place.context,
        figures={label: memory_body(figures) or {} for label, figures in part.arms.items()},
        verdicts={
            label: memory_verdict_of(figures, part.arms.get(REFERENCE)).verdict.value
            for label, figures in part.arms.items()
            if label != REFERENCE
        },
        failures=failures,
    )


def _fitted(fit: Fit) -> Fitted:
    return Fitted(
        context=fit.context,
        fails_at=fit.fails_at,
        predicted=fit.predicted,
        bytes_a_token=fit.bytes_a_token,
        fixed_bytes=fit.fixed_bytes,
        keeps_exact_cache=fit.keeps_exact_cache,
        trials=len(fit.trials),
    )
