"""What the parent asks of a worker process: data, without torch.

Sent as JSON. Whatever the parent decides (kernel configurations, schedule, step counts, fill) is
here; what it gets back is in `answers`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from attnbench.kernels.product_launch import ChosenProduct
from attnbench.protocol.cell import Arm, Mode, Scope
from attnbench.protocol.schedule import SessionSchedule
from attnbench.quality.levels import QualityCounts

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


def has_model(task: Task | TuneTask | ProductTask) -> bool:
    """Whether a model is loaded for it; not where memory is counted."""
    if isinstance(task, TuneTask | ProductTask):
        return isinstance(task, ProductTask)
    return not isinstance(parts_of(task)[0], MemoryTask | FitTask)


def parts_of(task: Task) -> tuple[TaskPart, ...]:
    """The tasks that a worker does, of which there may be one."""
    return task.parts if isinstance(task, SweepTask) else (task,)
