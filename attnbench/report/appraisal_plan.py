"""What a quality run would do, before it does it."""

from __future__ import annotations

import json

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.measure.appraising import FLOOR, QualityPlan
from attnbench.measure.estimate import in_words
from attnbench.quality.levels import facts_in
from attnbench.report.plan_table import GIB


def plan_table(plan: QualityPlan) -> RenderableType:
    """Arms, text, memory and minutes as people read them."""
    cell, counts = plan.cell, plan.counts
    facts = Table.grid(padding=(0, 2))
    asked = counts.haystacks * facts_in(counts.context)
    for name, value in (
        ("model", f"{cell.info.spec}: {cell.info.architecture}, {cell.info.weights} weights"),
        ("cell", f"{cell.context} tokens · {cell.dtype} · {cell.facts.name}"),
        ("text", str(cell.request.text or "numpy's documentation")),
        (
            plan.request.level.value,
            (
                f"{counts.windows} offsets, {counts.steps} steps compared in each layer, "
                f"{counts.logit_steps} inside the model, {asked} facts asked for"
            ),
        ),
        ("memory", f"{cell.needed_bytes / GIB:.1f} GiB, and what an arm keeps of its own"),
        ("time", f"{in_words(plan.minutes)} (a guess from bytes and launches)"),
    ):
        facts.add_row(Text(name, style="bold"), Text(value))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "family", "note"):
        table.add_column(column, overflow="fold")
    for arm in plan.arms:
        note = "the floor: exact attention by another way" if arm.label == FLOOR else ""
        table.add_row(arm.label, arm.family.value, note)
    remarks = [Text(f"note: {remark}") for remark in cell.remarks]
    return Group(facts, Text(), *remarks, table)


def plan_json(plan: QualityPlan) -> str:
    """The same for machines."""
    cell = plan.cell
    return json.dumps(
        {
            "model": cell.info.spec,
            "weights": cell.info.weights,
            "context": cell.context,
            "dtype": cell.dtype,
            "device": cell.facts.name,
            "level": plan.request.level.value,
            "counts": msgspec.structs.asdict(plan.counts),
            "arms": [{"arm": arm.label, "family": arm.family.value} for arm in plan.arms],
            "text": str(cell.request.text or ""),
            "needed_bytes": cell.needed_bytes,
            "remarks": cell.remarks,
            "minutes": round(plan.minutes, 2),
        }
    )
