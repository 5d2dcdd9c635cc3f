"""Rows for places that were never measured: void cells stay in the table."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from attnbench.measure.chosen import PilotArm, pilot_alone
from attnbench.measure.conductor import Swept
from attnbench.measure.layout import cell_of
from attnbench.measure.plan import Plan
from attnbench.measure.sweep_plan import SweepPlan
from attnbench.measure.tasks import ArmFailure
from attnbench.measure.verdicts import arm_results, never_measured
from attnbench.methods.base import Family
from attnbench.protocol.cell import Cell, Role
from attnbench.protocol.result import ArmResult


def sweep_results(sweep: SweepPlan, swept: Swept) -> tuple[ArmResult, ...]:
    """One result for every planned arm in every cell of every place, those without figures last."""
    primary = sweep.primary_cell
    lost = [
        result
        for plan, why in (*swept.lost, *sweep.unfit)
        for result in lost_results(plan, why, swept.run, swept.environment)
    ]
    return (
        *arm_results(*swept.evidences, primary=primary),
        *(replace(result, primary=result.cell == primary) for result in lost),
    )


def arms_of_pilots(swept: Swept) -> dict[Cell, tuple[PilotArm, ...]]:
    """By cell, the arms that were in a pilot alone."""
    return {cell: arms for found in swept.evidences for cell, arms in pilot_alone(found).items()}


def lost_results(
    plan: Plan, why: ArmFailure, run: str, environment: Mapping[str, str | int | float]
) -> tuple[ArmResult, ...]:
    """Every arm that a session would have held, VOID in every cell of the plan."""
    return tuple(
        ArmResult(
            run=run,
            cell=cell_of(plan, index),
            arm=arm.label,
            method=arm.label,
            family=arm.family.value,
            role=Role.CONTROL if arm.family is Family.CONTROL else Role.CANDIDATE,
            source_sha256=arm.source_sha256,
            baseline="",
            verdict=never_measured(why),
            protocol=msgspec.to_builtins(plan.request.protocol),
            environment={**environment, "weights": plan.info.weights},
            failure=f"{why.type}: {why.message}",
        )
        for index in range(len(plan.cells))
        for arm in plan.arms
        if not arm.pilot_only
    )
