"""What a worker process answers its parent: data, without torch.

Sent as JSON, as `tasks` are. Whatever the worker measures is here, and nothing computed from it.
"""

from __future__ import annotations

import msgspec

from attnbench.kernels.product_launch import ChosenProduct, ProductShape
from attnbench.measure.tasks import ArmFailure, Launch, LayerFacts, TuningCell
from attnbench.protocol.breakdown import StepProfile
from attnbench.protocol.cell import Mode, Scope, SessionSamples
from attnbench.protocol.growth import Growth
from attnbench.protocol.integrity import Influence, Replay, StepCheck
from attnbench.quality.samples import GateSamples


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
    growth: dict[str, Growth] = {}  # of candidates, in the first session of a run
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
