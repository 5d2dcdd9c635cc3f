"""Following what methods select in a trained model: a report, which judges and records nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch

from attnbench.errors import UsageError
from attnbench.measure.appraising import QualityRequest, plan_quality
from attnbench.methods.registry import parse
from attnbench.models.sources import load
from attnbench.quality.selecting import (
    SelectionReport,
    default_arms,
    followed,
    report_selections,
)

Progress = Callable[[int, int, str], None]


def follow_selections(request: QualityRequest, progress: Progress) -> SelectionReport:
    """In this process. Raises what `plan_quality` raises, UsageError for a context without room for
    the steps that are followed, and Unsupported where a method cannot run."""
    plan = plan_quality(request)
    counts = followed(plan.counts)
    fitting = counts.within(plan.cell.info.max_context).context
    if request.context is not None and fitting < request.context:
        raise UsageError(
            f"--ctx {request.context} leaves no room for the {counts.steps} steps that are "
            f"followed: {plan.cell.info.spec} has {plan.cell.info.max_context} positions",
            hint=f"use at most --ctx {fitting}",
        )
    methods = [parse(spec) for spec in request.methods]
    parts = counts.windows * (2 + len(methods or default_arms(fitting))) + 1
    begun = count()
    progress(0, parts, f"loading {request.model}")
    torch.set_num_threads(request.threads)
    dtype, device = getattr(torch, plan.cell.dtype), torch.device(plan.cell.device)
    return report_selections(
        load(request.model, dtype, device, request.seed),
        methods,
        counts,
        dtype=dtype,
        device=device,
        seed=request.seed,
        progress=lambda part: progress(next(begun), parts, part),
        text_path=None if request.text is None else str(request.text),
    )
