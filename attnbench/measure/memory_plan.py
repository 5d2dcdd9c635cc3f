"""What a run of memory alone will do: which arms, at which places, within which limit."""

from __future__ import annotations

import re
from dataclasses import dataclass

from attnbench.errors import DoesNotFit, UsageError
from attnbench.measure.layout import bench_of
from attnbench.measure.plan import (
    DTYPES,
    SLACK_BYTES,
    SPARE_ROWS,
    DecodeRequest,
    Plan,
    PlannedArm,
    model_info,
    planned,
    token_bytes,
)
from attnbench.measure.tasks import FitTask, LayerFacts, MemoryTask
from attnbench.measure.workbench import layer_facts
from attnbench.methods.base import Family
from attnbench.models.info import ModelInfo, beyond_positions
from attnbench.models.skeleton import surveyed_skeleton
from attnbench.protocol.cell import Arm, Role
from attnbench.protocol.presets import QUICK

# Of free memory, what trials may use unless they are told: a machine that swaps measures nothing,
# and on a CPU others need some of it.
SHARE_OF_FREE = {"cuda": 1.0, "cpu": 0.7}
RESOLUTION = 0.01
MOST_CONTEXT = 1 << 26
REFERENCE = "sdpa"  # what the others are compared with
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class MemoryRequest:
    """What the user asked for; `contexts` are of no account with `fit`, None and empty leave the
    choice to the plan."""

    model: str
    contexts: tuple[int | None, ...] = (None,)
    batches: tuple[int, ...] = (1,)
    methods: tuple[str, ...] = ()
    dtype: str = ""
    device: str = ""
    fit: bool = False
    limit_bytes: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Places with their arms, the exact one first; `limit_bytes` is for weights and caches."""

    request: MemoryRequest
    info: ModelInfo
    plans: tuple[Plan, ...]
    arms: tuple[PlannedArm, ...]
    limit_bytes: int
    remarks: tuple[str, ...] = ()

    def predicted(self, plan: Plan) -> int:
        """The context at which weights and an exact cache are all of the limit."""
        room = self.limit_bytes - plan.weight_bytes
        return max(0, room // token_bytes(self.info, plan.request.batch, plan.dtype))

    def tasks(self) -> tuple[MemoryTask, ...] | tuple[FitTask, ...]:
        """A task for every place. Raises `ModelError` for a model that methods cannot be put
        into."""
        if self.request.fit:
            return tuple(self._fit_task(plan) for plan in self.plans)
        return tuple(
            MemoryTask(bench=bench_of(plan, self._arms), layers=self._layers(plan, plan.context))
            for plan in self.plans
        )

    def _fit_task(self, plan: Plan) -> FitTask:
        return FitTask(
            bench=bench_of(plan, self._arms),
            layers=self._layers(plan, self.info.max_context),
            weight_bytes=plan.weight_bytes,
            limit_bytes=self.limit_bytes,
            resolution=RESOLUTION,
            most=MOST_CONTEXT,
        )

    @property
    def _arms(self) -> tuple[Arm, ...]:
        return tuple(
            Arm(label=arm.label, method=arm.spec, role=Role.CANDIDATE) for arm in self.arms
        )

    def _layers(self, plan: Plan, context: int) -> tuple[LayerFacts, ...]:
        dtype = DTYPES[plan.dtype]
        return layer_facts(
            surveyed_skeleton(self.info, plan.request.batch, context + SPARE_ROWS, dtype)
        )


def plan_memory(request: MemoryRequest) -> MemoryPlan:
    """Decide device, dtype, arms and limit.

    Raises what `plan.planned` raises, `UsageError` for a limit that makes no sense, `DoesNotFit`
    where the weights alone, or a cell's cache, exceed what there is.
    """
    info = model_info(request.model)
    contexts = (None,) if request.fit else request.contexts
    plans = tuple(
        planned(_decode_request(request, context, batch), info)
        for batch in request.batches
        for context in contexts
    )
    first = plans[0]
    free = first.facts.memory_free_bytes
    limit = _limit(request, first, free)
    if request.fit and first.weight_bytes >= limit:
        raise DoesNotFit(
            f"the weights of {info.spec} in {first.dtype} are {first.weight_bytes / 1e9:.1f} GB, "
            f"and the limit is {limit / 1e9:.1f} GB ({free / 1e9:.1f} GB are free)",
            hint="use a smaller model or dtype, or another --limit",
        )
    if not request.fit:
        for plan in plans:
            _check_cache(plan)
    remarks = (beyond_positions(info, plan.context) for plan in plans if not request.fit)
    return MemoryPlan(
        request=request,
        info=info,
        plans=plans,
        arms=_arms(request, first),
        limit_bytes=limit,
        remarks=tuple(dict.fromkeys(filter(None, remarks))),
    )


def bytes_of(text: str) -> int:
    """A size as people write it: 8GiB, 500 MB, 1e9; B, kB and GB are powers of 1024 too.

    Raises `UsageError` for anything else.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if found is None:
        raise UsageError(f"--limit {text} is no size", hint="--limit 8GiB, for example")
    return int(float(found[1]) * UNITS[found[2]])


def _limit(request: MemoryRequest, plan: Plan, free: int) -> int:
    if request.limit_bytes is None:
        return int(free * SHARE_OF_FREE[plan.device])
    if request.limit_bytes <= 0:
        raise UsageError("--limit 0 leaves room for nothing", hint="--limit 8GiB, for example")
    if free and request.limit_bytes > free:
        raise DoesNotFit(
            f"--limit {request.limit_bytes / 1e9:.1f} GB is more than the {free / 1e9:.1f} GB that "
            f"are free on {plan.facts.name}",
            hint="use a lower --limit, or free some memory",
        )
    return request.limit_bytes


def _check_cache(plan: Plan) -> None:
    """An exact cache is filled for every arm: refuse one that would take the machine with it."""
    free, needed = plan.facts.memory_free_bytes, plan.cache_bytes + SLACK_BYTES[plan.device]
    if free and needed > free:
        raise DoesNotFit(
            f"a cache of {plan.context} tokens at batch {plan.request.batch} in {plan.dtype} needs "
            f"{needed / 1e9:.1f} GB with the process; {free / 1e9:.1f} GB are free on "
            f"{plan.facts.name}",
            hint="use a smaller context or batch; `attnbench memory --fit` finds the largest",
        )


def _arms(request: MemoryRequest, plan: Plan) -> tuple[PlannedArm, ...]:
    """The exact one first; slow twins and controls only where they are asked for."""
    wanted = [
        arm
        for arm in plan.arms
        if arm.asked_for
        or arm.label == REFERENCE
        or not (request.methods or arm.pilot_only or arm.twin or arm.family is Family.CONTROL)
    ]
    return tuple(sorted(wanted, key=lambda arm: arm.label != REFERENCE))


def _decode_request(request: MemoryRequest, context: int | None, batch: int) -> DecodeRequest:
    return DecodeRequest(
        model=request.model,
        protocol=QUICK,
        context=context,
        batch=batch,
        dtype=request.dtype,
        device=request.device,
        methods=request.methods,
        quality=None,
        seed=request.seed,
    )
