"""The parent's side of tuning: what a worker is asked, and what its raw figures say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from statistics import median

import msgspec
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.ledger.source import source_commit
from attnbench.measure.answers import TunedCell, TuneResult
from attnbench.measure.device import DeviceFacts, device_facts, has_gpu, package_versions
from attnbench.measure.overseer import Overseer
from attnbench.measure.plan import DTYPES
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import TuneTask, TuningCell
from attnbench.measure.workers import SILENCE_S, Show
from attnbench.methods.base import Method
from attnbench.methods.kernel_table import Entry, Place, Provenance
from attnbench.methods.registry import exact_methods, parse, source_sha256
from attnbench.protocol.cell import Mode, Scope

EXACT = "exact"  # in place of a method to compare with: every exact arm
# These copy the cache for every query head or write out whole scores: by construction they move
# several times the bytes of the others, and are not the fastest anywhere.
MOVE_MORE = ("sdpa,backend=math", "sdpa_repeat_kv", "eager_repeat_kv")
WHY_LEFT_OUT = "moves several times the bytes by construction; name it with --against"


@dataclass(frozen=True)
class TuneRequest:
    """What the user asked for: the cells are all combinations."""

    method: str
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    head_dims: tuple[int, ...]
    kv_heads: int = 8
    group: int = 4
    dtype: str = "bfloat16"
    against: tuple[str, ...] = ()
    within_s: float = 0.0
    device: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Tuning:
    """A request made definite: the worker's task, and which arms it leaves out and why."""

    task: TuneTask
    method: Method
    facts: DeviceFacts
    left_out: dict[str, str]


def plan_tuning(request: TuneRequest) -> Tuning:
    """Decide device, cells and arms; raises `UsageError` and `Unsupported` before any worker."""
    device = request.device or ("cuda" if has_gpu() else "cpu")
    if device != "cuda":
        raise Unsupported(
            "kernel configurations are tuned on a CUDA GPU, and there is none here",
            hint="`attnbench parity` checks every configuration under Triton's interpreter",
        )
    facts = device_facts(device)
    method = parse(request.method).resolved(torch.device(device))
    if type(method).configurations is Method.configurations:
        raise UsageError(
            f"{method.label} has no kernel configurations to choose from",
            hint="flash_decode, int8_kv and sink_window have",
        )
    against, left_out = _against(request, torch.device(device), method.label)
    task = TuneTask(
        method=request.method,
        against=against,
        cells=cells_of(request),
        dtype=request.dtype,
        device=device,
        seed=request.seed,
        within_s=request.within_s,
    )
    return Tuning(task, method, facts, left_out)


def cells_of(request: TuneRequest) -> tuple[TuningCell, ...]:
    """Every combination, the smallest caches first; `UsageError` for sizes that make no sense."""
    if request.dtype not in DTYPES:
        raise UsageError(
            f"no dtype is called {request.dtype!r}", hint=f"there are {', '.join(DTYPES)}"
        )
    sizes = (*request.contexts, *request.batches, *request.head_dims)
    if min(*sizes, request.kv_heads, request.group) < 1:
        raise UsageError("a size below one makes no sense", hint="use at least 1")
    cells = [
        TuningCell(
            context=context,
            batch=batch,
            kv_heads=request.kv_heads,
            group=request.group,
            head_dim=head_dim,
        )
        for context, batch, head_dim in product(
            dict.fromkeys(request.contexts),
            dict.fromkeys(request.batches),
            dict.fromkeys(request.head_dims),
        )
    ]
    return tuple(sorted(cells, key=lambda cell: (cell.head_dim, cell.context * cell.batch)))


def _against(
    request: TuneRequest, device: torch.device, tuned: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Labels of the arms beside the tuned one, and why others stay out."""
    wanted, left_out = list[str](), dict[str, str]()
    for method, named in _named(request, device):
        label = method.resolved(device).label
        try:
            method.resolved(device).check_machine(device)
        except Unsupported as refusal:
            if named:
                raise
            left_out[label] = refusal.message
            continue
        if label in MOVE_MORE and not named:
            left_out[label] = WHY_LEFT_OUT
        elif label != tuned:
            wanted.append(label)
    left_out = {label: why for label, why in left_out.items() if label not in wanted}
    return tuple(dict.fromkeys(wanted)), left_out


def _named(request: TuneRequest, device: torch.device) -> Iterator[tuple[Method, bool]]:
    for spec in request.against:
        if spec == EXACT:
            yield from ((method, False) for method in exact_methods(device.type))
        else:
            yield parse(spec), True


def run(tuning: Tuning, show: Show) -> TuneResult:
    """The worker's raw figures."""
    result = run_task(tuning.task, Overseer(show), SILENCE_S)
    if not isinstance(result, TuneResult):
        raise TypeError(f"the worker sent a {type(result).__name__}")
    return result


def entries_of(
    tuning: Tuning, result: TuneResult, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> tuple[Entry, ...]:
    """The winning configuration of every cell that has one, with what it rests on."""
    versions = package_versions()
    found = []
    for cell in result.cells:
        ranked = sorted(cell.launches, key=lambda timed: timed.median_us)
        if not ranked:
            continue
        measured = Provenance(
            step_us=ranked[0].median_us,
            layers=cell.layers,
            next_us=ranked[1].median_us if len(ranked) > 1 else 0.0,
            tried=len(ranked),
            utc=now().isoformat(),
            torch=versions["torch"],
            triton=versions["triton"],
            source_sha256=source_sha256(tuning.method),
            driver=tuning.facts.driver,
            commit=source_commit(),
        )
        found.append(Entry(place=_place(tuning, cell), launch=ranked[0].launch, measured=measured))
    return tuple(found)


def _place(tuning: Tuning, cell: TunedCell) -> Place:
    return Place(
        method=tuning.method.label,
        gpu=tuning.facts.name,
        compute_capability=tuning.facts.compute_capability,
        scope=Scope.ATTENTION,
        mode=Mode.GRAPH,
        dtype=tuning.task.dtype,
        **msgspec.structs.asdict(cell.cell),
    )


class ArmFigure(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds a layer: the median over rounds, with the lowest and the highest round; of an
    arm that was in no round the first timing alone (`rounds` 0)."""

    layer_us: float
    lowest_us: float
    highest_us: float
    rounds: int


class CellSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One cell for people and scripts. `fastest` is the fastest of the other arms; the method is
    `behind_percent` and `behind_us` a layer slower than that one, below zero where it is faster,
    and by `behind_percent_range` in its best and worst round beside it."""

    cell: TuningCell
    dtype: str
    layers: int
    method: str
    launch: dict[str, int] | None
    tried: int
    refused: int
    untried: int
    method_us: float | None
    gb_s: float | None
    fastest: str | None
    fastest_us: float | None
    behind_percent: float | None
    behind_us: float | None
    behind_percent_range: tuple[float, float] | None
    arms: dict[str, ArmFigure]
    failures: dict[str, str]
    took_s: float


def summary(tuning: Tuning, label: str, found: TunedCell) -> CellSummary:
    """What one cell's raw figures say."""
    arms = {each: _figure(found, each) for each in found.first_us}
    own = arms.get(label)
    others = {each: figure for each, figure in arms.items() if each != label}
    fastest = min(others, key=lambda each: others[each].layer_us, default=None)
    best = min(found.launches, key=lambda timed: timed.median_us, default=None)
    beside = own is not None and fastest is not None
    failures = {each: failure.message for each, failure in found.failures.items()}
    if found.failure is not None:
        failures["all"] = found.failure.message
    return CellSummary(
        cell=found.cell,
        dtype=tuning.task.dtype,
        layers=found.layers,
        method=label,
        launch=None if best is None else best.launch,
        tried=len(found.launches),
        refused=len(found.refused),
        untried=found.untried,
        method_us=None if own is None else own.layer_us,
        gb_s=None if own is None else found.read_bytes / own.layer_us / 1e3,
        fastest=fastest,
        fastest_us=None if fastest is None else others[fastest].layer_us,
        behind_percent=_behind(arms, label, fastest) if beside else None,
        behind_us=arms[label].layer_us - arms[fastest].layer_us if beside and fastest else None,
        behind_percent_range=_range(found, label, fastest) if beside and fastest else None,
        arms=arms,
        failures=failures,
        took_s=found.took_s,
    )


def _figure(found: TunedCell, label: str) -> ArmFigure:
    in_rounds = found.rounds.get(label)
    steps_us: Sequence[float] = (found.first_us[label],) if in_rounds is None else in_rounds.step_us
    layers_us = [step_us / found.layers for step_us in steps_us]
    return ArmFigure(
        layer_us=median(layers_us),
        lowest_us=min(layers_us),
        highest_us=max(layers_us),
        rounds=0 if in_rounds is None else len(layers_us),
    )


def _behind(arms: dict[str, ArmFigure], label: str, fastest: str | None) -> float | None:
    return None if fastest is None else 100 * (arms[label].layer_us / arms[fastest].layer_us - 1)


def _range(found: TunedCell, label: str, fastest: str) -> tuple[float, float] | None:
    """By round, where both took part in them."""
    if label not in found.rounds or fastest not in found.rounds:
        return None
    pairs = zip(found.rounds[label].step_us, found.rounds[fastest].step_us, strict=True)
    percents = [100 * (own / other - 1) for own, other in pairs]
    return min(percents), max(percents)
