"""What a decode run will do, decided before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attnbench.errors import DoesNotFit, Unsupported, UsageError
from attnbench.kernels.product_launch import ChosenProduct
from attnbench.measure.aliases import refuse_aliases
from attnbench.measure.device import DeviceFacts, device_facts, has_gpu
from attnbench.measure.known import (
    chosen_products,
    chosen_table,
    known_launches,
    known_products,
    place_of,
)
from attnbench.measure.prompts import refuse_early
from attnbench.measure.tasks import Fill, KnownLaunch
from attnbench.methods.base import Family, Method
from attnbench.methods.registry import exact_methods, parse, source_sha256
from attnbench.models.info import ModelInfo, beyond_positions, check_context
from attnbench.models.sources import inspect
from attnbench.protocol.bands import DEFAULT_BANDS, Bands, Gate
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.presets import Protocol
from attnbench.protocol.result import Promise
from attnbench.quality.gates import refuse_replacement
from attnbench.quality.levels import Level, counts_of
from attnbench.quality.text import read_text

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEFAULT_CONTEXT = 1024
SPARE_ROWS = 64  # cache rows beyond the context: every timed step writes only the first
# A process's own needs beside weights and cache: CUDA context, libraries, one layer's workspaces.
SLACK_BYTES = {"cuda": 2 << 30, "cpu": 1 << 30}
# PyTorch's reference implementation: many times slower than its fused kernels wherever those run.
# On a CPU the slow ways would take a third of the run.
PILOT_ONLY = {
    "cuda": ("sdpa,backend=math",),
    "cpu": ("sdpa,backend=math", "sdpa,backend=flash", "sdpa_repeat_kv", "eager_repeat_kv"),
}
# By arm, the one that runs the same kernel: which of the two is faster is luck.
TWINS = {"cuda": {}, "cpu": {"sdpa,backend=flash": "sdpa"}}


@dataclass(frozen=True)
class DecodeRequest:
    """What the user asked for; empty and None leave the choice to the plan.

    A protocol file may name the baseline, say by how much more (a ratio minus one) a method is to
    be faster, by the method as it is asked for, and register bands of the quality gates.
    """

    model: str
    protocol: Protocol
    context: int | None = None
    batch: int = 1
    dtype: str = ""
    device: str = ""
    scopes: tuple[Scope, ...] = (Scope.STEP,)
    modes: tuple[Mode, ...] = ()
    methods: tuple[str, ...] = ()
    quality: Level | None = Level.BRIEF  # None: not judged
    text: Path | None = None
    seed: int = 0
    threads: int = 1
    baseline: str = ""
    claims: Mapping[str, float] = field(default_factory=dict)
    bands: Mapping[Gate, tuple[Bands, ...]] = field(default_factory=lambda: DEFAULT_BANDS)
    promise: Promise | None = None
    table: str = ""  # of kernel configurations: a path, "none", or empty for the package's own
    products: str = ""  # the table of products by own kernels, likewise

    @property
    def wants_quality(self) -> bool:
        """Whether outputs are to be judged."""
        return self.quality is not None


@dataclass(frozen=True)
class PlannedArm:
    """A method of the run: `spec` is what a worker parses, `label` its name in the run."""

    label: str
    spec: str
    family: Family
    asked_for: bool
    source_sha256: str = ""  # of the method and its kernels, when the run was planned
    pilot_only: bool = False  # timed in the pilot; not worth its place in every session
    twin: str = ""  # the arm that runs the same kernel: this one is no baseline beside it
    built_in: bool = True  # a control from outside this package is judged like any other method
    named_baseline: bool = False  # the request names it: the pilot does not choose
    claim: float = 0.0  # the speed-up minus one that its verdict has to clear
    period: int = 1  # steps: its visits are whole ones


@dataclass(frozen=True)
class Plan:
    """Everything that is fixed before the first worker starts."""

    request: DecodeRequest
    info: ModelInfo
    facts: DeviceFacts
    device: str
    dtype: str
    context: int
    fill: Fill
    cells: tuple[tuple[Scope, Mode], ...]
    arms: tuple[PlannedArm, ...]
    skipped: tuple[tuple[str, str], ...]  # label and why it cannot run here
    weight_bytes: int
    cache_bytes: int
    known: dict[str, KnownLaunch] = field(default_factory=dict)  # by arm label, from the table
    products: tuple[ChosenProduct, ...] = ()  # of a compiled step by own kernels, from the table
    products_source: str = ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of this plan beside its figures."""
        return tuple(filter(None, (beyond_positions(self.info, self.context), self._shortened())))

    def _shortened(self) -> str:
        """Where quality is judged on a shorter prompt than the plan's context."""
        if not self.request.wants_quality or self.info.weights != "trained":
            return ""
        asked = counts_of(self.request.quality or Level.BRIEF, self.context)
        judged = asked.within(self.info.max_context).context
        if judged == self.context:
            return ""
        return (
            f"quality is judged after {judged} tokens, not {self.context}: the model has "
            f"{self.info.max_context} positions, and {asked.room} steps follow the prompt"
        )

    @property
    def needed_bytes(self) -> int:
        """Weights, exact cache and what a process needs beside them."""
        return self.weight_bytes + self.cache_bytes + SLACK_BYTES[self.device]


def plan_decode(request: DecodeRequest) -> Plan:
    """Decide device, dtype, cells and arms; raise where the run cannot be.

    Raises UsageError for numbers that make no sense and unknown methods, `ModelError` for the
    model, `DoesNotFit` where weights and cache exceed free memory, `Unsupported` where an arm that
    was asked for cannot run on this device.
    """
    plan = planned(request)
    check_fit(plan)
    return plan


def planned(request: DecodeRequest, info: ModelInfo | None = None) -> Plan:
    """The same whether or not it fits; `info` is what is known of the model already."""
    check_request(request)
    device = _device(request.device)
    facts = device_facts(device)
    _check_threads(request.threads, facts)
    info = info or model_info(request.model)
    context = _context(request, info)
    dtype = request.dtype or ("bfloat16" if device == "cuda" else "float32")
    cells = _cells(request, device)
    arms, skipped = _arms(request, torch.device(device), context)
    place = place_of(facts, info, context=context, batch=request.batch, dtype=dtype, cells=cells)
    known = known_launches(chosen_table(request.table), place, [arm.label for arm in arms])
    products, products_source = known_products(
        chosen_products(request.products), facts, info, batch=request.batch, dtype=dtype
    )
    refuse_early(request, info, context)
    return Plan(
        request=request,
        info=info,
        facts=facts,
        device=device,
        dtype=dtype,
        context=context,
        fill=Fill.PREFILLED if info.weights == "trained" else Fill.SYNTHETIC,
        cells=cells,
        arms=arms,
        skipped=skipped,
        weight_bytes=info.parameters * DTYPES[dtype].itemsize,
        cache_bytes=token_bytes(info, request.batch, dtype) * (context + SPARE_ROWS),
        known=known,
        products=products,
        products_source=products_source,
    )


def model_info(spec: str) -> ModelInfo:
    """Facts of a model; raises `ModelError`, and `UsageError` for the file of a method."""
    file, _, name = spec.partition(":")
    if file.endswith(".py") and not Path(file).is_dir():
        raise UsageError(
            f"{spec} is Python source, not a model",
            hint=f"a method that is defined there is `--method {file}:{name or 'Class'}`; --model "
            "takes a hub id, a folder, a .gguf file, preset:NAME or embedded",
        )
    return inspect(spec)


def check_request(request: DecodeRequest) -> None:
    """Refuse now what a worker would stumble over in minutes."""
    counts = (
        ("batch", request.batch, 1),
        ("threads", request.threads, 1),
        ("seed", request.seed, 0),
    )
    for name, value, least in counts:
        if value < least:
            raise UsageError(f"--{name} {value} makes no sense", hint=f"use at least {least}")
    if request.text is not None:
        read_text(request.text)
    if request.dtype and request.dtype not in DTYPES:
        raise UsageError(
            f"no dtype is called {request.dtype!r}", hint=f"there are {', '.join(DTYPES)}"
        )


def _check_threads(threads: int, facts: DeviceFacts) -> None:
    cores = facts.cores or len(os.sched_getaffinity(0))
    if threads > cores:
        raise UsageError(
            f"--threads {threads} is more than the {cores} cores that this process may use",
            hint=f"use at most {cores}",
        )


def _device(asked: str) -> str:
    if asked not in ("", "cuda", "cpu"):
        raise UsageError(f"no device is called {asked!r}", hint="there are cuda and cpu")
    return asked or ("cuda" if has_gpu() else "cpu")


def _context(request: DecodeRequest, info: ModelInfo) -> int:
    context = request.context
    if context is None:
        context = min(DEFAULT_CONTEXT, info.max_context - SPARE_ROWS)
    check_context(info, context)
    return context


def _cells(request: DecodeRequest, device: str) -> tuple[tuple[Scope, Mode], ...]:
    on_gpu = [mode for mode in request.modes if mode is not Mode.EAGER]
    if on_gpu and device != "cuda":
        raise Unsupported(
            f"mode {on_gpu[0].value} needs a CUDA GPU",
            hint="leave --mode out, or use --mode eager",
        )
    return tuple(
        (scope, mode) for scope in request.scopes for mode in _modes(request, scope, device)
    )


def _modes(request: DecodeRequest, scope: Scope, device: str) -> tuple[Mode, ...]:
    """The modes of one scope: those asked for, or the one nearest to what an engine runs."""
    if not request.modes and device != "cuda":
        return (Mode.EAGER,)
    if scope is Scope.STEP:
        return request.modes or (Mode.COMPILED,)
    modes = tuple(mode for mode in request.modes or (Mode.GRAPH,) if mode is not Mode.COMPILED)
    if not modes:
        raise UsageError(
            "scope attention has nothing to compile", hint="add --mode graph, or use --scope step"
        )
    return modes


def default_methods(device: str, context: int) -> list[Method]:
    """The arms of a bare run: every exact arm, a quantised cache, a sparse one, the ceiling."""
    window = max(64, context // 8)
    lossy = [parse("int8_kv"), parse(f"sink_window,window={window}"), parse("zero_cost")]
    return [*exact_methods(device), *lossy]


def _arms(
    request: DecodeRequest, device: torch.device, context: int
) -> tuple[tuple[PlannedArm, ...], tuple[tuple[str, str], ...]]:
    named = [request.baseline] if request.baseline else []
    asked = list(dict.fromkeys((*request.methods, *named)))
    found = [(spec, parse(spec), True) for spec in asked]
    defaults = default_methods(device.type, context)
    if asked:  # beside what was asked for: what may become the baseline, and the ceiling
        defaults = [m for m in defaults if m.family is Family.EXACT or m.name == "zero_cost"]
    found += [(method.label, method, False) for method in defaults]
    arms: dict[str, PlannedArm] = {}
    skipped: list[tuple[str, str]] = []
    for spec, method, wanted in found:
        refuse_replacement(method.label, method.family.value)
        try:
            runs = _resolved(method, device)
        except Unsupported as error:
            if wanted:
                raise
            skipped.append((method.label, error.message))
            continue
        arm = PlannedArm(
            label=runs.label,
            spec=_spec(spec, runs),
            family=runs.family,
            asked_for=wanted,
            source_sha256=source_sha256(runs),
            pilot_only=not wanted and runs.label in PILOT_ONLY[device.type],
            twin="" if wanted else TWINS[device.type].get(runs.label, ""),
            built_in=type(runs).__module__.startswith("attnbench."),
            named_baseline=wanted and spec == request.baseline,
            claim=request.claims.get(spec, 0.0) if wanted else 0.0,
            period=runs.period,
        )
        _refuse_as_baseline(arm)
        _refuse_namesake(arms.setdefault(runs.label, arm), arm)
    refuse_aliases([parse(arm.spec) for arm in arms.values() if arm.asked_for], context)
    return tuple(arms.values()), tuple(skipped)


def _resolved(method: Method, device: torch.device) -> Method:
    """With its implementation fixed; `Unsupported` where that one is a kernel for a GPU."""
    runs = method.resolved(device)
    impl = getattr(runs, "impl", runs.implementations[0])
    if impl == "triton" and device.type != "cuda":
        raise Unsupported(
            f"{runs.label} is a Triton kernel: it needs a CUDA GPU, and the device is "
            f"{device.type}",
            hint="`attnbench parity` runs it on a CPU under Triton's interpreter",
        )
    runs.check_machine(device)
    return runs


def _refuse_as_baseline(arm: PlannedArm) -> None:
    if arm.named_baseline and arm.family is not Family.EXACT:
        raise UsageError(
            f"{arm.label} is no exact attention, so nothing can be compared with it",
            hint="name an exact method as the baseline, or leave the choice to the pilot",
        )


def _refuse_namesake(first: PlannedArm, arm: PlannedArm) -> None:
    """Two classes of one label would be one arm, and one of them silently not measured."""
    if type(parse(first.spec)) is not type(parse(arm.spec)):
        raise UsageError(
            f"{first.spec} and {arm.spec} are both called {arm.label}",
            hint="give one of the classes another name",
        )


def _spec(asked: str, method: Method) -> str:
    """What finds the method again, with every parameter and the implementation fixed."""
    target, parameters = asked.split(",")[0].strip(), method.label.split(",")[1:]
    return ",".join((target, *parameters))


def token_bytes(info: ModelInfo, batch: int, dtype: str) -> int:
    """Bytes that the exact cache holds of one token of every sequence, in all layers."""
    return 2 * info.layers * batch * info.kv_heads * info.head_dim * DTYPES[dtype].itemsize


def check_fit(plan: Plan) -> None:
    """Raise `DoesNotFit`, with what is needed and free and what would fit, unless it does."""
    free = plan.facts.memory_free_bytes
    if not free or plan.needed_bytes <= free:
        return
    raise DoesNotFit(
        f"{plan.info.spec} with {plan.context} tokens at batch {plan.request.batch} in "
        f"{plan.dtype} needs {_gib(plan.needed_bytes)} ({_gib(plan.weight_bytes)} of weights, "
        f"{_gib(plan.cache_bytes)} of cache); {_gib(free)} are free on {plan.facts.name}",
        hint=_what_fits(plan, free - plan.weight_bytes - SLACK_BYTES[plan.device]),
    )


def _what_fits(plan: Plan, room_bytes: int) -> str:
    """The largest context at this batch or, where there is none, the largest batch."""
    a_sequence = token_bytes(plan.info, 1, plan.dtype)
    context = room_bytes // (a_sequence * plan.request.batch) - SPARE_ROWS
    if context >= 1:
        return f"the largest context that fits at this batch is {context}"
    batch = room_bytes // (a_sequence * (plan.context + SPARE_ROWS))
    if batch >= 1:
        return f"no context fits at this batch; the largest batch for this context is {batch}"
    return "use a smaller model or dtype: the weights leave no room for a cache"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
