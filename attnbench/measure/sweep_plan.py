"""What a run of several contexts and batches will do, decided before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnbench.errors import DoesNotFit, UsageError
from attnbench.measure.estimate import between_places_s, minutes
from attnbench.measure.layout import cell_of
from attnbench.measure.plan import (
    DecodeRequest,
    Plan,
    check_fit,
    check_request,
    model_info,
    planned,
)
from attnbench.measure.tasks import ArmFailure
from attnbench.protocol.cell import Cell


@dataclass(frozen=True)
class SweepPlan:
    """A plan for each place (a context and a batch) that fits, and why others do not.

    `primary` is of the place whose verdicts stand alone; those of all other cells share one error
    rate.
    """

    plans: tuple[Plan, ...]
    unfit: tuple[tuple[Plan, ArmFailure], ...]
    primary: Plan

    @property
    def primary_cell(self) -> Cell:
        """The first cell of the primary place."""
        return cell_of(self.primary, 0)

    @property
    def is_sweep(self) -> bool:
        """Whether there is more than one place."""
        return len(self.plans) + len(self.unfit) > 1

    @property
    def minutes(self) -> float:
        """About how long it takes: a process is started and the model loaded once for all."""
        shared_s = sum(between_places_s(plan) for plan in self.plans[1:])
        return sum(minutes(plan) for plan in self.plans) - shared_s / 60


def plan_sweep(
    request: DecodeRequest,
    places: Sequence[tuple[int | None, int]],
    primary: tuple[int, int] | None = None,
) -> SweepPlan:
    """Plan every place, a context and a batch each; the primary one is the largest that fits.

    Raises what `plan_decode` raises; `DoesNotFit` only where no place fits, and `UsageError` where
    `primary` is none of the places.
    """
    plans, unfit, refusals = [], [], []
    check_request(replace(request, batch=places[0][1]))
    info = model_info(request.model)
    for context, batch in dict.fromkeys(places):
        plan = planned(replace(request, context=context, batch=batch), info)
        try:
            check_fit(plan)
            plans.append(plan)
        except DoesNotFit as error:
            unfit.append((plan, _failure(error)))
            refusals.append(error)
    if not plans:
        raise refusals[0]
    return SweepPlan(tuple(plans), tuple(unfit), _primary(plans, unfit, primary))


def _primary(
    plans: Sequence[Plan],
    unfit: Sequence[tuple[Plan, ArmFailure]],
    asked: tuple[int, int] | None,
) -> Plan:
    if asked is None:
        return max(plans, key=lambda plan: (plan.cache_bytes, plan.context))
    everywhere = [*plans, *(plan for plan, _ in unfit)]
    found = [plan for plan in everywhere if (plan.context, plan.request.batch) == asked]
    if not found:
        names = ", ".join(f"{plan.context}x{plan.request.batch}" for plan in everywhere)
        raise UsageError(
            f"--primary {asked[0]}x{asked[1]} is none of the run's cells",
            hint=f"there are {names}",
        )
    return found[0]


def _failure(error: DoesNotFit) -> ArmFailure:
    return ArmFailure(
        type=DoesNotFit.__name__, message=error.message, hint=error.hint, during="plan"
    )
