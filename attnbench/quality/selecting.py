"""The report on selections: captured steps of a trained model, and made-up data beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch

from attnbench.errors import UsageError
from attnbench.methods.base import Method
from attnbench.methods.registry import parse
from attnbench.models.info import LoadedModel
from attnbench.quality.capture import layer_traces, record_windows, routed
from attnbench.quality.fitness import require_causal, require_vocabulary
from attnbench.quality.levels import QualityCounts
from attnbench.quality.made_up_axis import AxisFigures, axis_table
from attnbench.quality.replay import LayerTrace
from attnbench.quality.text import default_text, read_text, windows
from attnbench.quality.trajectories import (
    Floats,
    axis_overlap,
    budget,
    drift,
    exact_selections,
    overlap_and_cosine,
    random_drift,
    reshuffle,
    spearman_interval,
    stable_heads,
)
from attnbench.stats.student import mean_interval

COVERAGE = 0.15
ARM_COVERAGES = (0.05, 0.15, 0.30)
STEPS = 101  # the first, and as many after it as drift is followed
SETTLED = 50  # by which step drift is said to have ended
SETTLED_WITHIN = 1.1  # times drift then: drift at the last step
AXIS_STEPS = 64  # the last of them
AT_STEPS = (1, 10, 25, SETTLED, STEPS - 1)
LEAST_SPAN = 0.05  # of overlap and of cosine over the pairs, to correlate them at all
LEVEL = 0.95

Progress = Callable[[str], None]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A mean with its 95 % t interval over windows of text."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(figures: Sequence[float]) -> Spread:
        """Of one figure a window."""
        found = mean_interval(figures, LEVEL)
        return Spread(mean=found.mean, low=found.low, high=found.high)


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One head of one layer under one arm, means over windows."""

    arm: str
    layer: int
    head: int
    overlap: float
    cosine: float


class ArmSelection(msgspec.Struct, frozen=True, kw_only=True):
    """Overlap with exact top-k and output cosine of one arm, means over everything, and their rank
    correlation over (layer, head), with its 95 % interval by bootstrap over windows; None where
    overlap or cosine hardly vary."""

    arm: str
    overlap: float
    cosine: float
    correlation: float | None
    low: float | None
    high: float | None


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures were taken on."""

    model: str
    context: int
    windows: int
    dtype: str
    device: str
    seed: int
    text: str
    text_sha256: str
    tokens_sha256: str


class SelectionReport(msgspec.Struct, frozen=True, kw_only=True):
    """Drift is that of the exact top-k by logit among the prompt's tokens, from step 0 on."""

    taken: Taken
    coverage: float
    pairs: int  # of layer and head
    axis_overlap: Spread
    axis_correlation: Spread
    drift: dict[str, Spread]  # by step
    reshuffle: Spread  # steps 1 to `SETTLED`
    random_drift: float
    settled: bool  # drift at the last step is at most a tenth above that at `SETTLED`
    stable_pairs: int  # the most of all windows
    arms: tuple[ArmSelection, ...]
    most_overlap_for_cosine: Pair  # where overlap promises most beyond what cosine gives
    most_cosine_for_overlap: Pair  # and least
    made_up: tuple[AxisFigures, ...]


def followed(counts: QualityCounts) -> QualityCounts:
    """As many windows of as many tokens, with the steps that drift needs and nothing else."""
    return QualityCounts(
        context=counts.context, windows=counts.windows, steps=STEPS, logit_steps=0, haystacks=0
    )


def default_arms(context: int) -> tuple[Method, ...]:
    """A window of ranks, a static axis, recent tokens and random ones, at three coverages."""
    return tuple(
        parse(spec)
        for share in ARM_COVERAGES
        for spec in (
            f"rank_window,coverage={share},k_min=1",
            f"abkv,coverage={share},k_min=1",
            f"sink_window,sinks=4,window={max(1, budget(share, context) - 4)}",
            f"random_k,share={share}",
        )
    )


@dataclass
class _Gathered:
    """Figures by window: of each layer [H] or one number."""

    axis: list[tuple[float, float]] = field(default_factory=list)
    drifts: list[Floats] = field(default_factory=list)  # [S]
    reshuffles: list[float] = field(default_factory=list)
    stable: list[int] = field(default_factory=list)
    arms: dict[str, list[tuple[Floats, Floats]]] = field(default_factory=dict)  # [L,H] each
    layers: tuple[int, ...] = ()


def report_selections(
    loaded: LoadedModel,
    methods: Sequence[Method],
    counts: QualityCounts,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    progress: Progress,
    text_path: str | None = None,
) -> SelectionReport:
    """Follow selections over windows of a text; no methods: `default_arms`.

    Raises UsageError for random weights, TextTooShort, and Unsupported where a method cannot run.
    """
    if loaded.tokenizer is None or loaded.info.weights == "random":
        raise UsageError(
            f"{loaded.info.spec} has random weights or no tokenizer: what is selected there says "
            "nothing of a trained model",
            hint="--model embedded, a folder or a .gguf file",
        )
    counts = followed(counts).within(loaded.info.max_context)
    text = default_text() if text_path is None else read_text(text_path)
    ids = torch.from_numpy(windows(loaded.tokenizer, text, counts.tokens, counts.windows, seed))
    require_vocabulary(loaded, ids)
    require_causal(loaded, ids[:1].to(device))
    arms = [method.resolved(device) for method in methods or default_arms(counts.context)]
    gathered = _Gathered(arms={arm.label: [] for arm in arms})
    with torch.no_grad(), routed(loaded, counts.context + STEPS, dtype, device) as model:
        for number, window in enumerate(ids.to(device)):
            progress(f"window {number + 1} of {len(ids)}: prefill of {counts.context} tokens")
            record = record_windows(model, window[None, :-1], counts.context)
            gathered.layers = record.layers
            traces = layer_traces(model, record, counts.context, STEPS)
            _add_window(gathered, list(traces), arms, progress)
    progress("made-up data")
    taken = Taken(
        model=loaded.info.spec,
        context=counts.context,
        windows=len(ids),
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        seed=seed,
        text=text.name,
        text_sha256=text.sha256,
        tokens_sha256=hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest(),
    )
    return _reported(gathered, taken, tuple(axis_table()))


def _add_window(
    gathered: _Gathered, traces: list[LayerTrace], arms: Sequence[Method], progress: Progress
) -> None:
    progress(f"drift and the mean axis in {len(traces)} layers")
    selected = [exact_selections(trace, COVERAGE) for trace in traces]
    drifts = [drift(each) for each in selected]
    gathered.drifts.append(torch.stack(drifts).mean((0, 2)).cpu().numpy())
    moved = [reshuffle(each)[:SETTLED].mean() for each in selected]
    gathered.reshuffles.append(float(torch.stack(moved).mean()))
    gathered.stable.append(sum(stable_heads(each, SETTLED) for each in drifts))
    del selected
    axes = [axis_overlap(_last_steps(trace), COVERAGE) for trace in traces]
    gathered.axis.append(
        (
            float(torch.stack([each.overlap for each in axes]).mean()),
            float(torch.stack([each.correlation for each in axes]).mean()),
        )
    )
    for arm in arms:
        progress(f"{arm.label} in {len(traces)} layers")
        found = [overlap_and_cosine(arm, trace) for trace in traces]
        overlaps = torch.stack([each.overlap for each in found]).cpu().numpy()
        cosines = torch.stack([each.cosine for each in found]).cpu().numpy()
        gathered.arms[arm.label].append((overlaps, cosines))


def _last_steps(trace: LayerTrace) -> LayerTrace:
    """The last `AXIS_STEPS` steps, those before them being part of the prompt."""
    earlier = trace.steps - AXIS_STEPS
    return LayerTrace(trace.shape, trace.context + earlier, trace.q[earlier:], trace.k, trace.v)


def _reported(
    gathered: _Gathered, taken: Taken, made_up: tuple[AxisFigures, ...]
) -> SelectionReport:
    drifts = np.stack(gathered.drifts)
    means = drifts.mean(0)
    pairs = list(_pairs(gathered))
    return SelectionReport(
        taken=taken,
        coverage=COVERAGE,
        pairs=len(pairs) // len(gathered.arms),
        axis_overlap=Spread.of([overlap for overlap, _ in gathered.axis]),
        axis_correlation=Spread.of([correlation for _, correlation in gathered.axis]),
        drift={str(step): Spread.of(drifts[:, step].tolist()) for step in AT_STEPS},
        reshuffle=Spread.of(gathered.reshuffles),
        random_drift=random_drift(COVERAGE, taken.context),
        settled=bool(means[-1] <= SETTLED_WITHIN * means[SETTLED]),
        stable_pairs=max(gathered.stable),
        arms=tuple(_arm(label, found, taken.seed) for label, found in gathered.arms.items()),
        most_overlap_for_cosine=max(pairs, key=lambda pair: pair.overlap - pair.cosine),
        most_cosine_for_overlap=max(pairs, key=lambda pair: pair.cosine - pair.overlap),
        made_up=made_up,
    )


def _pairs(gathered: _Gathered) -> Iterator[Pair]:
    for arm, found in gathered.arms.items():
        overlaps, cosines = (np.stack([window[i] for window in found]).mean(0) for i in (0, 1))
        for row, head in np.ndindex(overlaps.shape):
            yield Pair(
                arm=arm,
                layer=gathered.layers[row],
                head=head,
                overlap=float(overlaps[row, head]),
                cosine=float(cosines[row, head]),
            )


def _arm(label: str, found: list[tuple[Floats, Floats]], seed: int) -> ArmSelection:
    overlaps, cosines = (np.stack([window[i].ravel() for window in found]) for i in (0, 1))
    varies = min(np.ptp(each.mean(0)) for each in (overlaps, cosines)) >= LEAST_SPAN
    correlation = spearman_interval(overlaps, cosines, seed, LEVEL) if varies else None
    return ArmSelection(
        arm=label,
        overlap=float(overlaps.mean()),
        cosine=float(cosines.mean()),
        correlation=correlation and correlation[0],
        low=correlation and correlation[1],
        high=correlation and correlation[2],
    )
