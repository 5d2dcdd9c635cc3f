"""What a run of several contexts and batches would do, before it does it."""

from __future__ import annotations

import json

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.measure.estimate import in_words, minutes
from attnbench.measure.plan import Plan
from attnbench.measure.sweep_plan import SweepPlan
from attnbench.report.plan_table import GIB, plan_data, plan_table


def sweep_plan_table(sweep: SweepPlan) -> RenderableType:
    """Every place with its memory and minutes, then the plan of the primary one in full."""
    if not sweep.is_sweep:
        return plan_table(sweep.plans[0])
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("context", "batch", "cache GiB", "needed GiB", "time"):
        table.add_column(column, justify="right")
    table.add_column("note")
    for plan in sweep.plans:
        time = in_words(minutes(plan))
        table.add_row(*_figures(plan), time, "primary" if plan is sweep.primary else "")
    for plan, why in sweep.unfit:
        note = f"VOID: does not fit; {why.hint}"
        table.add_row(*_figures(plan), "", note, style="dim")
    first = sweep.plans[0]
    total = (
        f"{in_words(sweep.minutes)} in all (a guess): every process holds the model once and goes "
        f"from place to place; {first.facts.memory_free_bytes / GIB:.1f} GiB free on "
        f"{first.facts.name}"
    )
    return Group(table, Text(total), Text(), Text("the primary cell:"), plan_table(sweep.primary))


def _figures(plan: Plan) -> tuple[str, ...]:
    return (
        str(plan.context),
        str(plan.request.batch),
        f"{plan.cache_bytes / GIB:.2f}",
        f"{plan.needed_bytes / GIB:.2f}",
    )


def sweep_plan_json(sweep: SweepPlan) -> str:
    """The same for machines; of one place alone its plan."""
    if not sweep.is_sweep:
        return json.dumps(plan_data(sweep.plans[0]))
    return json.dumps(
        {
            "places": [
                *({**plan_data(plan), "fits": True} for plan in sweep.plans),
                *({**plan_data(p), "fits": False, "why": why.message} for p, why in sweep.unfit),
            ],
            "primary": {
                "context": sweep.primary.context,
                "batch": sweep.primary.request.batch,
            },
            "minutes": round(sweep.minutes, 2),
        }
    )
