"""Memory of several methods: four figures at a cell, or the largest context that fits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from msgspec import UNSET
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.measure.memory_plan import MemoryPlan
from attnbench.protocol.footprint import CELL, FootprintResult, PlaceFootprint
from attnbench.report.words import ABSENT

GIB, MIB = 1 << 30, 1 << 20
FIGURES = {
    "reachable": "reachable_bytes",
    "allocated": "allocated_bytes",
    "reserved": "reserved_bytes",
    "process": "process_bytes",
    "prefill peak": "prefill_peak_bytes",
    "decode peak": "decode_peak_bytes",
}


def memory_table(result: FootprintResult) -> RenderableType:
    """A table for every place, and what the figures are."""
    at = _cell if result.footprint == CELL else _fit
    parts: list[RenderableType] = []
    for place in result.places:
        parts += [Text(_title(result, place), style="bold"), at(place)]
        parts += [Text(line) for line in _notes(place)]
        parts.append(Text())
    return Group(*parts, *(Text(f"note: {remark}") for remark in result.remarks))


def memory_plan_table(plan: MemoryPlan) -> RenderableType:
    """What would be measured."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("context", "batch", "exact cache GiB", "weights GiB"):
        table.add_column(column, justify="right")
    for place in plan.plans:
        largest = plan.predicted(place)
        context = f"about {largest} (exact)" if plan.request.fit else str(place.context)
        cache = plan.limit_bytes - place.weight_bytes if plan.request.fit else place.cache_bytes
        table.add_row(
            context,
            str(place.request.batch),
            f"{cache / GIB:.2f}",
            f"{place.weight_bytes / GIB:.2f}",
        )
    first = plan.plans[0]
    lines = [f"{plan.info.spec}, {first.dtype}, on {first.facts.name}"]
    if plan.request.fit:
        lines.append(f"limit for weights and caches: {plan.limit_bytes / GIB:.2f} GiB")
    lines.append(f"arms: {', '.join(arm.label for arm in plan.arms)}")
    lines += [f"note: {remark}" for remark in plan.remarks]
    return Group(*map(Text, lines), table)


def memory_plan_json(plan: MemoryPlan) -> str:
    """The same for machines."""
    return json.dumps(
        {
            "model": plan.info.spec,
            "device": plan.plans[0].facts.name,
            "dtype": plan.plans[0].dtype,
            "fit": plan.request.fit,
            "limit_bytes": plan.limit_bytes,
            "arms": [arm.label for arm in plan.arms],
            "places": [
                {
                    "context": plan.predicted(place) if plan.request.fit else place.context,
                    "batch": place.request.batch,
                    "cache_bytes": place.cache_bytes,
                    "weight_bytes": place.weight_bytes,
                }
                for place in plan.plans
            ],
            "remarks": plan.remarks,
        }
    )


def _title(result: FootprintResult, place: PlaceFootprint) -> str:
    where = f"{result.model} · batch {place.batch} · {result.dtype} · {result.device}"
    if place.context is not UNSET:
        return f"{where} · {place.context} tokens, MiB"
    limit = 0 if place.limit_bytes is UNSET else place.limit_bytes
    return (
        f"{where} · largest context within {limit / GIB:.2f} GiB, "
        f"{place.weight_bytes / GIB:.2f} of them weights"
    )


def _cell(place: PlaceFootprint) -> Table:
    table = _table("arm", *FIGURES, "verdict")
    for label, figures in place.figures.items():
        values = (_mib(figures, name) for name in FIGURES.values())
        table.add_row(label, *values, place.verdicts.get(label, ABSENT))
    for label in place.failures:
        table.add_row(label, *(ABSENT for _ in FIGURES), "VOID", style="dim")
    return table


def _fit(place: PlaceFootprint) -> Table:
    columns = ("largest context", "does not fit", "predicted", "found/predicted", "bytes/token")
    table = _table("arm", *columns, "trials")
    for label, fit in place.fits.items():
        table.add_row(
            label,
            f"{fit.context:,}" if fit.context else "none",
            f"{fit.fails_at:,}" if fit.fails_at else ABSENT,
            f"{fit.predicted:,}",
            f"{fit.context / fit.predicted:.3f}" if fit.predicted else ABSENT,
            f"{fit.bytes_a_token:,.0f}",
            str(fit.trials),
        )
    for label in place.failures:
        table.add_row(label, *(ABSENT for _ in (*columns, "")), style="dim")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _mib(figures: Mapping[str, int | str | bool], name: str) -> str:
    return f"{int(figures[name]) / MIB:,.1f}" if name in figures else ABSENT


def _notes(place: PlaceFootprint) -> Iterator[str]:
    for label, why in place.failures.items():
        yield f"{label}: {why.splitlines()[0]}"
    if place.figures:
        some = next(iter(place.figures.values()))
        yield (
            f"reachable: the method's own tensors; allocated: {some['allocated_source']}; peaks: "
            f"{some['peak_source']}; process: {some['process_source']}. No weights are loaded."
        )
    if place.fits:
        yield (
            "largest context: weights, the arm's cache and one decoded token, each tried in a "
            "process of its own; predicted: from the bytes it holds of two short contexts."
        )
    before, after = place.free_before_bytes, place.free_after_bytes
    if before is not UNSET and after is not UNSET:
        yield f"free before the trials {before / GIB:.2f} GiB, after them {after / GIB:.2f} GiB."
