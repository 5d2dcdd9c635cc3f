"""From a plan to what a worker is sent: the bench, the cell, the steps of a session."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.measure.plan import Plan
from attnbench.measure.tasks import Bench, Launch, StepCounts
from attnbench.protocol.cell import Arm, Cell, Mode
from attnbench.protocol.presets import Protocol
from attnbench.quality.levels import Level, QualityCounts, counts_of

REHEARSALS = 2  # of an arm in a session, on average


def bench_of(plan: Plan, arms: Sequence[Arm], kernels: dict[str, Launch] | None = None) -> Bench:
    """Model, cache and these arms, with the configurations chosen for them."""
    request = plan.request
    compiled = any(mode is Mode.COMPILED for _, mode in plan.cells)
    return Bench(
        model=request.model,
        dtype=plan.dtype,
        device=plan.device,
        context=plan.context,
        batch=request.batch,
        arms=tuple(arms),
        fill=plan.fill,
        seed=request.seed,
        threads=request.threads,
        kernels=kernels or {},
        text=str(request.text) if request.text else None,
        products=plan.products if compiled else (),
        products_source=plan.products_source if compiled else "",
    )


def cell_of(plan: Plan, index: int) -> Cell:
    """One of the plan's cells, as records name it."""
    scope, mode = plan.cells[index]
    return Cell(
        model=plan.info.name,
        context=plan.context,
        batch=plan.request.batch,
        dtype=plan.dtype,
        scope=scope,
        mode=mode,
        device=plan.facts.name,
    )


def place_title(plan: Plan) -> str:
    """One context and batch, in words."""
    return f"{plan.context} tokens × {plan.request.batch}"


def steps_of(protocol: Protocol) -> StepCounts:
    """Warm-up, untimed and timed steps as the protocol has them."""
    return StepCounts(
        rehearsals=REHEARSALS,
        warmup_steps=protocol.warmup_steps,
        untimed_steps=protocol.untimed_steps,
        timed_steps=protocol.timed_steps,
        min_visit_ms=protocol.min_visit_ms,
    )


def quality_counts(plan: Plan) -> QualityCounts:
    """How much of each quality gate the plan runs; its prompt is shorter than the plan's context
    where the model has too few positions for that and the steps after it."""
    return counts_of(plan.request.quality or Level.BRIEF, plan.context).within(
        plan.info.max_context
    )
