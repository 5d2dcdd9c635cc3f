"""What the parent asks of a worker process, and what it gets back: data, without torch.

Sent as JSON. Whatever the parent decides (kernel configurations, schedule, step counts, fill) is in
the task; whatever the worker measures is in the result, and nothing computed from it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from attnbench.kernels.product_launch import ChosenProduct, ProductShape
from attnbench.protocol.breakdown import StepProfile
from attnbench.protocol.cell import Arm, Mode, Scope, SessionSamples
from attnbench.protocol.integrity import Influence, Replay, StepCheck
from attnbench.protocol.schedule import SessionSchedule
from attnbench.quality.levels import QualityCounts
from attnbench.quality.samples import GateSamples

# Fields of `methods.base.KernelConfig`, which the parent must be able to name without torch.
Launch = dict[str, int]


class Fill(StrEnum):
    """Where the cached tokens come from."""

    PREFILLED = "prefilled"  # the model's own prefill of real text
    SYNTHETIC = "synthetic"  # seeded noise: enough for latency, not for quality


class StepCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of a session: `warmup_steps` an arm, then visits of untimed and timed steps.

    A visit has at least `timed_steps` and lasts at least `min_visit_ms`. Over its groups of blocks
    an arm has `rehearsals` visits more, on average, which end anywhere, are not timed, and are
    checked: no step of a visit is safe from being one that is looked at. With `bare`, as harnesses
    do that only call a function again and again: so many warm-up steps, flat or not, then timed
    ones, and nothing in between.
    """

    warmup_steps: int
    untimed_steps: int
    timed_steps: int
    min_visit_ms: float
    rehearsals: int = 0
    bare: bool = False


class LayerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the survey found of one layer; `window` in tokens, None where attention is full."""

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What stands on a worker's bench: model, cache and arms.

    `device` is "cuda" or "cpu"; `text` is a path, None for the default text; `kernels` holds the
    configuration of every arm that has one to choose, by arm label. In mode compiled `products`
    run by the project's own kernels, the same for all arms; `products_source` says which table they
    are from.
    """

    model: str
    dtype: str
    device: str
    context: int
    batch: int
    arms: tuple[Arm, ...]
    fill: Fill
    seed: int
    threads: int
    kernels: dict[str, Launch] = {}
    text: str | None = None
    left_out: dict[str, ArmFailure] = {}  # by arm label: not to be set up again, and why
    products: tuple[ChosenProduct, ...] = ()
    products_source: str = ""


class CellPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One cell on a bench, and the order of its arms in this session.

    `baseline` is the arm whose attention is timed alone as well once all else has been: of a whole
    step it tells how much is attention. Empty: none.
    """

    scope: Scope
    mode: Mode
    schedule: SessionSchedule
    baseline: str = ""


class KnownLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel configuration that need not be searched for, and where it is from."""

    launch: Launch
    source: str


class PilotTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="pilot"):
    """Which arms run here, their kernel configurations, and times that only name the baseline.

    The schedules of `cells` hold the arms that may become the baseline. Of each arm's
    configurations the first `configurations` are tried, 0: all; of an arm in `known`, by label,
    that one alone, and the others only where it does not run.
    """

    bench: Bench
    cells: tuple[CellPlan, ...]
    steps: StepCounts
    configurations: int = 0
    known: dict[str, KnownLaunch] = {}


class SessionTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="session"):
    """One session: every cell of one bench, one after the other."""

    bench: Bench
    session: int
    cells: tuple[CellPlan, ...]
    steps: StepCounts


class MemoryTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="memory"):
    """KV memory of each arm in a process of its own.

    Bytes do not depend on values, so the cache is filled with noise over the surveyed `layers`
    and no weights are loaded.
    """

    bench: Bench
    layers: tuple[LayerFacts, ...]


class QualityTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="quality"):
    """The quality gates: how much of each is run."""

    bench: Bench
    counts: QualityCounts


class FitTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="fit"):
    """The largest context of each arm that fits beside the model's weights, by trying.

    `limit_bytes` are all that there are for weights and caches; the largest context is known to
    `resolution`, a share of it. `most` is the largest context that is tried.
    """

    bench: Bench
    layers: tuple[LayerFacts, ...]
    weight_bytes: int
    limit_bytes: int
    resolution: float
    most: int


class ProfileTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="profile"):
    """Kernels of the baseline's step and energy of every arm's, in the cells of one bench."""

    bench: Bench
    cells: tuple[CellPlan, ...]


TaskPart = PilotTask | SessionTask | MemoryTask | QualityTask | FitTask | ProfileTask


class SweepTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="sweep"):
    """Tasks of one kind over one model, done one after the other in one process that loads it once.

    Each has its own bench: another context, another batch.
    """

    parts: tuple[TaskPart, ...]


Task = TaskPart | SweepTask


class TuningCell(msgspec.Struct, frozen=True, kw_only=True):
    """Attention of one shape: `context` cached tokens of `batch` sequences."""

    context: int
    batch: int
    kv_heads: int
    group: int
    head_dim: int


class TuneTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="tune"):
    """Find the fastest kernel configuration of `method` in every cell, attention alone over caches
    of noise, and time the methods `against` beside it.

    `within_s` is the time for all cells together, 0: no limit; what it leaves untried is counted.
    """

    method: str
    against: tuple[str, ...]
    cells: tuple[TuningCell, ...]
    dtype: str
    device: str
    seed: int
    within_s: float = 0.0
    threads: int = 1


class ProductTask(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="products"):
    """Find the fastest launches of the products in the model's compiled step, attention costing
    nothing. `within_s` is the time for trying, 0: no limit; what it leaves untried is counted."""

    bench: Bench
    within_s: float = 0.0


class ArmFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why an arm has no figures: the class of the error, what it said, what to do, and when.

    `reason` is that of the verdict which follows (`protocol.verdict.Reason`), empty for an error
    that the arm raised itself.
    """

    type: str
    message: str
    hint: str
    during: str
    reason: str = ""


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """Read bandwidth of the memory that the cache lies in: median over `reads` whole reads.

    `theoretical_gb_s` is memory clock times bus width, 0 where neither can be asked; `note` says
    what is wrong with the probe, empty when nothing is.
    """

    gb_s: float
    buffer_bytes: int
    reads: int
    read_us: tuple[float, ...]
    theoretical_gb_s: float
    how: str
    note: str


class CellSamples(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of a session. Arms that failed have their reason and no visits.

    `read_bytes` is the floor of each arm in bytes a step; `timed_steps` the least length of its
    visits. `checks` are of steps that were timed. `attention_us` are steps of the baseline's
    attention alone, and enter no statistic of a latency.
    """

    scope: Scope
    mode: Mode
    samples: SessionSamples
    timed_steps: dict[str, int]
    read_bytes: dict[str, int]
    failures: dict[str, ArmFailure]
    checks: dict[str, tuple[StepCheck, ...]] = {}
    set_up_us: dict[str, tuple[float, ...]] = {}  # layers built, prefilled, captured: each group
    attention_us: tuple[float, ...] = ()


class SessionResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="session"):
    """A session's raw samples; `cache_sha256` is the exact cache as every arm found it.

    `phases_s` says where the seconds of the worker went; `failures` what arms did after the cells.
    """

    cells: tuple[CellSamples, ...]
    bandwidth: Bandwidth
    cache_sha256: str
    model_identity: str
    weight_bytes: int
    probed: bool = True  # whether what follows was asked of the arms in this session
    influence: dict[str, Influence] = {}  # by arm label
    replays: dict[str, Replay] = {}
    surprises: dict[str, tuple[StepCheck, ...]] = {}
    failures: dict[str, ArmFailure] = {}
    phases_s: dict[str, float] = {}


class TimedLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel configuration and the median time of a step with it, in the scope it is tuned in."""

    launch: Launch
    median_us: float


class RefusedLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel configuration that does not run here, and why."""

    launch: Launch
    failure: ArmFailure


class ArmPilot(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an arm runs here, as what, and its kernel configurations as timed.

    `method` is the label with the implementation fixed; `failure` is None for an arm that runs.
    `source` says which table the configuration is from; empty where all on offer were tried. Of an
    exact arm `launched` counts what a step of scope attention launches, by name; `unnamed` says why
    there is nothing.
    `own_bytes` is by how much the device's memory grew while the arm was set up for steps: what it
    keeps beside the shared cache, its workspaces and its graph. 0 where that cannot be told.
    """

    method: str
    launches: tuple[TimedLaunch, ...] = ()
    refused: tuple[RefusedLaunch, ...] = ()
    failure: ArmFailure | None = None
    source: str = ""
    launched: dict[str, int] = {}
    unnamed: str = ""
    own_bytes: int = 0

    @property
    def fastest(self) -> Launch | None:
        """The configuration for the sessions; None where there is none to choose."""
        if not self.launches:
            return None
        return min(self.launches, key=lambda timed: timed.median_us).launch


class PilotResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="pilot"):
    """What the pilot found; its times name the baseline and enter no statistic.

    `room_bytes` is what model, cache and inputs leave of the device's memory, 0 where that cannot
    be told.
    """

    layers: tuple[LayerFacts, ...]
    arms: dict[str, ArmPilot]
    session: SessionResult
    device: dict[str, str | int | float]
    room_bytes: int = 0


class MemoryFigures(msgspec.Struct, frozen=True, kw_only=True):
    """KV memory of one arm in bytes, as four figures that need not agree.

    None means that the machine cannot tell, and the `*_source` fields say where a figure is from.
    `host_bytes` is by how much the process's resident set grew beyond what tensors account for.
    """

    reachable_bytes: int
    allocated_bytes: int
    allocated_source: str
    prefill_peak_bytes: int
    decode_peak_bytes: int
    peak_source: str
    reserved_bytes: int | None
    process_bytes: int | None
    process_source: str
    keeps_exact_cache: bool
    host_bytes: int = 0


class MemoryResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="memory"):
    """Figures by arm label, and why the others have none."""

    arms: dict[str, MemoryFigures]
    failures: dict[str, ArmFailure]


class QualityResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="quality"):
    """Raw samples of the gates by arm label, and the text and tokens they were taken on; and by
    place and label those on made-up data and random weights, where they were asked for."""

    arms: dict[str, GateSamples]
    failures: dict[str, ArmFailure]
    text_name: str
    text_sha256: str
    tokens_sha256: str = ""
    model_identity: str = ""
    contrast: dict[str, dict[str, GateSamples]] = {}


class ArmRounds(msgspec.Struct, frozen=True, kw_only=True):
    """Mean microseconds of a step in each round; in a round all arms take their turn."""

    step_us: tuple[float, ...]


class TunedCell(msgspec.Struct, frozen=True, kw_only=True):
    """What one cell came to: every configuration of the method that was timed, refused or left
    untried; every other arm's first timing; and rounds of those that are near the fastest.

    A step is attention of `layers` layers, whose caches together exceed the last-level cache.
    `failure` is why the cell as a whole has no figures.
    """

    cell: TuningCell
    layers: int = 0
    read_bytes: int = 0  # of one layer, at least
    launches: tuple[TimedLaunch, ...] = ()
    refused: tuple[RefusedLaunch, ...] = ()
    untried: int = 0
    first_us: dict[str, float] = {}
    rounds: dict[str, ArmRounds] = {}
    failures: dict[str, ArmFailure] = {}
    failure: ArmFailure | None = None
    took_s: float = 0.0


class TuneResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="tune"):
    """Raw figures of every cell; `label` is the tuned method's with its implementation."""

    label: str
    cells: tuple[TunedCell, ...]
    device: dict[str, str | int | float]


class TriedProducts(msgspec.Struct, frozen=True, kw_only=True):
    """Median microseconds of a step with these products, the others the library's; or why there is
    none. `fused`: with what stands around a product in its kernel, where the pattern is known."""

    products: tuple[ChosenProduct, ...]
    fused: bool
    step_us: float = 0.0
    failure: ArmFailure | None = None


class ProductResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="products"):
    """Raw figures: every set of products that was tried, in that order; steps of the best of them
    and of the library's in turn, in rounds. `sites` counts the products of a step by what each
    could be at most; `weight_bytes` are read in a step.
    """

    sites: tuple[tuple[ProductShape, int], ...]
    weight_bytes: int
    library_us: float
    tried: tuple[TriedProducts, ...]
    best: tuple[ChosenProduct, ...]
    rounds_us: tuple[float, ...]
    library_rounds_us: tuple[float, ...]
    untried: int
    device: dict[str, str | int | float]


class FitTrial(msgspec.Struct, frozen=True, kw_only=True):
    """One context that was tried in a process of its own; `why` it did not fit, empty where it
    did, with the most bytes that were held."""

    context: int
    why: str
    peak_bytes: int = 0


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The largest context of one arm, 0 where none fits; `fails_at`: the least that was tried and
    did not fit, 0 where all did.

    `predicted` follows from bytes that the arm holds of two short contexts: so many a token, so
    many besides, and while a layer is handed over the exact rows of one layer.
    """

    context: int
    fails_at: int
    predicted: int
    bytes_a_token: float
    fixed_bytes: float
    keeps_exact_cache: bool
    trials: tuple[FitTrial, ...]


class FitResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="fit"):
    """Fits by arm label, why others have none, and what was free before the trials and after."""

    arms: dict[str, Fit]
    failures: dict[str, ArmFailure]
    free_before_bytes: int
    free_after_bytes: int


class EnergySample(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of the whole GPU between two moves of its counter, while so many steps ran."""

    joules: float
    seconds: float
    steps: int
    updates: int


class CellProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen in one cell: kernels of the baseline's steps, None where none were told and
    `why`; energy by arm label, of those of which the counter told any."""

    scope: Scope
    mode: Mode
    steps: StepProfile | None
    why: str
    energy: dict[str, EnergySample]
    failures: dict[str, ArmFailure]


class ProfileResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="profile"):
    """A profile for every cell of the task; it enters no statistic."""

    cells: tuple[CellProfile, ...]


PartResult = PilotResult | SessionResult | MemoryResult | QualityResult | FitResult | ProfileResult


class PartFailure(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="failed"):
    """Why a part of a sweep came to nothing, while others went on."""

    why: ArmFailure


class SweepResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="task", tag="sweep"):
    """What came of each part, in their order."""

    parts: tuple[PartResult | PartFailure, ...]


TaskResult = PartResult | SweepResult | TuneResult | ProductResult


def has_model(task: Task | TuneTask | ProductTask) -> bool:
    """Whether a model is loaded for it; not where memory is counted."""
    if isinstance(task, TuneTask | ProductTask):
        return isinstance(task, ProductTask)
    return not isinstance(parts_of(task)[0], MemoryTask | FitTask)


def parts_of(task: Task) -> tuple[TaskPart, ...]:
    """The tasks that a worker does, of which there may be one."""
    return task.parts if isinstance(task, SweepTask) else (task,)
