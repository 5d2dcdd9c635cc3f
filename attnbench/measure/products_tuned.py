"""The parent's side of tuning products: what a worker is asked, and what its raw figures say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import msgspec

from attnbench.errors import Unsupported
from attnbench.kernels.product_launch import MOST_ROWS, ChosenProduct
from attnbench.ledger.source import source_commit
from attnbench.measure.answers import ProductResult
from attnbench.measure.device import has_gpu, package_versions
from attnbench.measure.layout import bench_of
from attnbench.measure.overseer import Overseer
from attnbench.measure.plan import DecodeRequest, Plan, planned
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import ProductTask
from attnbench.measure.workers import SILENCE_S, Show
from attnbench.models.product_table import ProductEntry, ProductProvenance, product_place
from attnbench.protocol.cell import Arm, Mode, Role
from attnbench.protocol.presets import preset

CONTEXT = 1024  # attention costs nothing here, whatever the context


@dataclass(frozen=True)
class ProductTuning:
    """A request made definite."""

    plan: Plan
    task: ProductTask


def plan_products(
    model: str, *, batch: int, dtype: str, within_s: float, seed: int
) -> ProductTuning:
    """What a worker is to do; raises `Unsupported` without a CUDA GPU and for more rows than own
    kernels take, and what planning a run of the model raises."""
    if not has_gpu():
        raise Unsupported(
            "products are tuned on a CUDA GPU, and there is none here",
            hint="without one a model is not compiled for what it would run on",
        )
    if batch > MOST_ROWS:
        raise Unsupported(
            f"own kernels take at most {MOST_ROWS} rows, and batch {batch} has more",
            hint="the library's products are made for that",
        )
    request = DecodeRequest(
        model=model,
        protocol=preset("quick"),
        context=CONTEXT,
        batch=batch,
        dtype=dtype,
        device="cuda",
        modes=(Mode.COMPILED,),
        methods=("zero_cost",),
        quality=None,
        seed=seed,
        products="none",
    )
    plan = planned(request)
    arm = Arm(label="zero_cost", method="zero_cost", role=Role.CANDIDATE)
    task = ProductTask(bench=bench_of(plan, (arm,)), within_s=within_s)
    return ProductTuning(plan, task)


def run_products(tuning: ProductTuning, show: Show) -> ProductResult:
    """The worker's raw figures."""
    result = run_task(tuning.task, Overseer(show), SILENCE_S)
    if not isinstance(result, ProductResult):
        raise TypeError(f"the worker sent a {type(result).__name__}")
    return result


class ProductSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the raw figures say; `saved_percent` of the library's step, by rounds beside each other,
    with the worst and the best round. None of it where own kernels were not faster."""

    library_us: float
    library_gb_s: float
    own_us: float | None
    own_gb_s: float | None
    saved_percent: float | None
    saved_percent_range: tuple[float, float] | None
    products: tuple[ChosenProduct, ...]
    tried: int
    untried: int
    failures: tuple[str, ...]


def summary_of(result: ProductResult) -> ProductSummary:
    """The best set of products beside the library's."""
    own_us, library_us, saved = None, result.library_us, list[float]()
    if result.best:
        own_us, library_us = median(result.rounds_us), median(result.library_rounds_us)
        pairs = zip(result.rounds_us, result.library_rounds_us, strict=True)
        saved = [100 * (1 - own / library) for own, library in pairs]
    return ProductSummary(
        library_us=library_us,
        library_gb_s=result.weight_bytes / library_us / 1e3,
        own_us=own_us,
        own_gb_s=None if own_us is None else result.weight_bytes / own_us / 1e3,
        saved_percent=median(saved) if saved else None,
        saved_percent_range=(min(saved), max(saved)) if saved else None,
        products=result.best,
        tried=len(result.tried),
        untried=result.untried,
        failures=tuple(
            dict.fromkeys(each.failure.message for each in result.tried if each.failure is not None)
        ),
    )


def entry_of(
    tuning: ProductTuning,
    result: ProductResult,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ProductEntry | None:
    """The table's entry; None where own kernels were not faster in every round."""
    found = summary_of(result)
    if found.own_us is None or found.saved_percent_range is None:
        return None
    if found.saved_percent_range[0] <= 0:
        return None
    plan, versions = tuning.plan, package_versions()
    return ProductEntry(
        place=product_place(
            plan.info,
            gpu=plan.facts.name,
            compute_capability=plan.facts.compute_capability,
            dtype=plan.dtype,
            batch=plan.request.batch,
        ),
        products=result.best,
        measured=ProductProvenance(
            step_us=found.own_us,
            library_us=found.library_us,
            tried=found.tried,
            utc=now().isoformat(),
            torch=versions["torch"],
            triton=versions["triton"],
            driver=plan.facts.driver,
            commit=source_commit(),
        ),
    )
