"""From a protocol file to plans: one for each of its cells, made before anything is measured."""

from __future__ import annotations

from pathlib import Path

import torch

from attnbench.errors import Unsupported
from attnbench.measure.appraising import QualityPlan, QualityRequest, plan_quality
from attnbench.measure.calibration_plan import (
    CalibrationPlan,
    CalibrationRequest,
    plan_calibration,
)
from attnbench.measure.device import DeviceFacts
from attnbench.measure.plan import DecodeRequest, Plan, plan_decode
from attnbench.methods.registry import parse
from attnbench.protocol.document import CellPart, ProtocolFile, Quantity
from attnbench.protocol.result import Promise
from attnbench.quality.levels import Level
from attnbench.quality.sources import text_file


def plans_of(file: ProtocolFile, promise: Promise) -> tuple[Plan, ...]:
    """One plan a cell; an order effect is planned by `order_plan`.

    Raises what `plan_decode` raises, and `Unsupported` on another GPU than a cell names, unless the
    run is exploratory.
    """
    if file.claim.quantity is Quantity.ORDER_EFFECT:
        return (order_plan(file, promise).cell,)
    if file.is_of_quality:
        return tuple(plan.cell for plan in quality_plans(file, promise))
    return tuple(
        _on_its_gpu(plan_decode(request_of(file, part, promise)), part, promise)
        for part in file.cell
    )


def order_plan(file: ProtocolFile, promise: Promise) -> CalibrationPlan:
    """The plan of an order effect."""
    part, protocol = file.cell[0], file.protocol()
    request = CalibrationRequest(
        model=part.model,
        ctx=part.context,
        batch=part.batch,
        scope=part.scope,
        mode=part.mode,
        protocol=file.schedule.preset,
        sessions=protocol.sessions,
        dtype=part.dtype,
        device=part.device,
        threads=part.threads,
        seed=file.schedule.seed,
        order_effect=True,
    )
    plan = plan_calibration(request, promise)
    _on_its_gpu(plan.cell, part, promise)
    return plan


def quality_plans(file: ProtocolFile, promise: Promise) -> tuple[QualityPlan, ...]:
    """One a cell, of a quantity of the quality gates."""
    plans = []
    for part in file.cell:
        plan = plan_quality(
            QualityRequest(
                model=part.model,
                methods=file.arms,
                level=Level.FULL if file.is_thorough else Level.QUICK,
                context=part.context,
                dtype=part.dtype,
                device=part.device,
                text=text_file(part.text),
                seed=file.schedule.seed,
                threads=part.threads,
                bounds=file.asks_for_bounds,
            )
        )
        _on_its_gpu(plan.cell, part, promise)
        plans.append(plan)
    return tuple(plans)


def request_of(file: ProtocolFile, part: CellPart, promise: Promise) -> DecodeRequest:
    """What `decode` would be asked for in this cell."""
    return DecodeRequest(
        model=part.model,
        protocol=file.protocol(),
        context=part.context,
        batch=part.batch,
        dtype=part.dtype,
        device=part.device,
        scopes=(part.scope,),
        modes=(part.mode,),
        methods=file.arms,
        quality=_level(file),
        text=Path(part.text) if part.text else None,
        seed=file.schedule.seed,
        threads=part.threads,
        baseline=file.named_baseline,
        claims={file.claim.arm: file.to_clear()},
        bands=file.bands(),
        promise=promise,
    )


def _level(file: ProtocolFile) -> Level | None:
    """A claim that quality is kept needs every gate: one that is not run can show nothing."""
    if not file.quality:
        return None
    return Level.QUICK if file.claim.keeps_quality else Level.BRIEF


def labels_of(file: ProtocolFile, device: str) -> dict[str, str]:
    """What each arm of the file is called in a run on this device."""
    here = torch.device(device)
    return {spec: parse(spec).resolved(here).label for spec in file.arms}


def _on_its_gpu(plan: Plan, part: CellPart, promise: Promise) -> Plan:
    if part.gpu and not promise.exploratory and not _is_named(plan.facts, part.gpu):
        raise Unsupported(
            f"protocol {promise.protocol} is about {part.gpu}, and here is {plan.facts.name}",
            hint="run it there; --exploratory runs it here, and can say nothing of its claim",
        )
    return plan


def _is_named(facts: DeviceFacts, gpu: str) -> bool:
    return facts.name == gpu
