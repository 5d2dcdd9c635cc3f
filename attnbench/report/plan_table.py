"""What a run would do, before it does it."""

from __future__ import annotations

import json
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.measure.estimate import in_words, minutes
from attnbench.measure.plan import SLACK_BYTES, Plan, PlannedArm

GIB = 1 << 30


def plan_table(plan: Plan) -> RenderableType:
    """Arms, cells, memory and minutes as people read them."""
    protocol = plan.request.protocol
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("model", f"{plan.info.spec}: {plan.info.architecture}, {plan.info.weights} weights"),
        ("cell", f"{plan.context} tokens · batch {plan.request.batch} · {plan.dtype}"),
        ("measured as", ", ".join(f"{scope.value} · {mode.value}" for scope, mode in plan.cells)),
        ("on", plan.facts.name),
        (
            "protocol",
            (
                f"{protocol.name}: {protocol.sessions} sessions of {protocol.blocks} blocks in "
                f"{protocol.groups} groups, {protocol.warmup_steps} warm-up and at least "
                f"{protocol.timed_steps} timed steps a visit"
            ),
        ),
        ("cache", f"{plan.fill.value}"),
        ("memory", _memory(plan)),
        ("time", f"{in_words(minutes(plan))} (a guess from bytes and launches)"),
    ):
        facts.add_row(Text(name, style="bold"), Text(value))
    remarks = [Text(f"note: {remark}") for remark in plan.remarks]
    return Group(facts, Text(), *remarks, _arms(plan))


def _memory(plan: Plan) -> str:
    return (
        f"{plan.needed_bytes / GIB:.1f} GiB: {plan.weight_bytes / GIB:.2f} of weights, "
        f"{plan.cache_bytes / GIB:.2f} of cache, {SLACK_BYTES[plan.device] / GIB:.0f} for the "
        f"process; {plan.facts.memory_free_bytes / GIB:.1f} GiB free; arms that keep caches of "
        "their own come on top"
    )


def _arms(plan: Plan) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", no_wrap=True, overflow="fold")
    table.add_column("family")
    table.add_column("note")
    for arm in plan.arms:
        table.add_row(arm.label, arm.family.value, _note(arm))
    for label, why in plan.skipped:
        table.add_row(label, "", f"left out: {why}", style="dim")
    return table


def _note(arm: PlannedArm) -> str:
    if arm.twin:
        return f"in the pilot alone: the kernel of {arm.twin}"
    if arm.pilot_only:
        return "in the pilot alone, unless it is the fastest exact arm"
    return "may become the baseline" if arm.family.value == "exact" else ""


def plan_json(plan: Plan) -> str:
    """The same for machines."""
    return json.dumps(plan_data(plan))


def plan_data(plan: Plan) -> dict[str, Any]:
    """The same as JSON knows it."""
    return {
        "model": plan.info.spec,
        "architecture": plan.info.architecture,
        "weights": plan.info.weights,
        "context": plan.context,
        "batch": plan.request.batch,
        "dtype": plan.dtype,
        "device": plan.facts.name,
        "cells": [{"scope": scope.value, "mode": mode.value} for scope, mode in plan.cells],
        "fill": plan.fill.value,
        "protocol": plan.request.protocol.name,
        "arms": [{"arm": arm.label, "family": arm.family.value} for arm in plan.arms],
        "left_out": [{"arm": label, "why": why} for label, why in plan.skipped],
        "weight_bytes": plan.weight_bytes,
        "cache_bytes": plan.cache_bytes,
        "needed_bytes": plan.needed_bytes,
        "free_bytes": plan.facts.memory_free_bytes,
        "remarks": plan.remarks,
        "minutes": round(minutes(plan), 2),
    }
