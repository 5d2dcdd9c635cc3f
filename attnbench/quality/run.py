"""A quality run: text, model, local and compounded gate, raw samples of every arm.

Nothing is judged here. The parent process turns the samples into verdicts (`quality.gates`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench.errors import UsageError
from attnbench.models.info import LoadedModel
from attnbench.protocol.bands import LOGIT_STEPS
from attnbench.quality.candidates import Candidate, Roster
from attnbench.quality.capture import RoutedModel, layer_traces, record_window, routed
from attnbench.quality.compounded import CompoundedGate
from attnbench.quality.local import LocalGate
from attnbench.quality.samples import GateSamples
from attnbench.quality.text import Text, default_text, read_text, windows

Progress = Callable[[int, int, str], None]  # so many of so many are done; what begins now


@dataclass(frozen=True)
class QualityCounts:
    """How much is run: `windows` of text, `steps` decode steps of each for the local gate and
    `logit_steps` for the compounded one (0: not run), after `context` prefilled tokens."""

    context: int
    windows: int
    steps: int
    logit_steps: int = LOGIT_STEPS

    @property
    def recorded_steps(self) -> int:
        return max(self.steps, self.logit_steps)

    @property
    def tokens(self) -> int:
        """Of one window: the prompt, the decoded tokens, and the last target."""
        return self.context + self.recorded_steps + 1

    def within(self, max_context: int) -> QualityCounts:
        """The same with a prompt short enough for every step to have a position."""
        context = min(self.context, max_context - self.recorded_steps)
        if context < 1:
            raise UsageError(
                f"{self.recorded_steps} decode steps leave no room for a prompt in a model of "
                f"{max_context} positions",
                hint="ask for fewer steps",
            )
        return replace(self, context=context)


@dataclass(frozen=True)
class QualitySamples:
    """Raw samples by arm label, why the other arms have none, and the text they were taken on."""

    arms: dict[str, GateSamples]
    failures: dict[str, Exception]
    text: Text


def run_quality(
    loaded: LoadedModel,
    candidates: Sequence[Candidate],
    counts: QualityCounts,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    progress: Progress,
    text_path: str | None = None,
) -> QualitySamples:
    """Gate the candidates on windows of a text file, or of numpy's documentation strings.

    Where the model has too few positions the prompt is shorter than asked for, and the samples
    say how long it was. Raises UsageError for a model without a tokenizer (random weights: there
    is nothing to judge), and TextTooShort.
    """
    if loaded.tokenizer is None:
        raise UsageError(
            f"{loaded.info.spec} has no tokenizer and so cannot read a text",
            hint="quality is judged on trained models only",
        )
    counts = counts.within(loaded.info.max_context)
    text = default_text() if text_path is None else read_text(text_path)
    ids = windows(loaded.tokenizer, text, counts.tokens, counts.windows, seed)
    roster = Roster(candidates)
    arms = gate_windows(
        loaded, roster, torch.from_numpy(ids), counts, dtype, device, seed, progress
    )
    return QualitySamples(arms, roster.failures, text)


def gate_windows(
    loaded: LoadedModel,
    roster: Roster,
    ids: Tensor,
    counts: QualityCounts,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> dict[str, GateSamples]:
    """Gate the roster on the windows `ids` [W, `counts.tokens`] (int64)."""
    local, compounded = LocalGate(roster, seed), CompoundedGate(roster)
    capacity = counts.context + counts.recorded_steps
    with routed(loaded, capacity, dtype, device) as model:
        tell = _Counter(progress, len(ids) * _parts_of_a_window(model, roster, counts))
        for window in (row[None] for row in ids.to(device)):
            tell(f"prefill of {counts.context} tokens")
            record = record_window(model, window[:, :-1], counts.context)
            local.add_window(layer_traces(model, record, counts.context, counts.steps), tell)
            if counts.logit_steps:
                compounded.add_window(model, record, window, counts.context, tell)
    completed = compounded.completed(local.arrays())
    return {label: arrays.pack() for label, arrays in completed.items()}


def _parts_of_a_window(model: RoutedModel, roster: Roster, counts: QualityCounts) -> int:
    """Parts that tell when they begin: the prefill, every layer and every decode of every arm."""
    of_an_arm = model.full_layers + bool(counts.logit_steps)
    return 1 + of_an_arm * len(roster.going())


class _Counter:
    """Counts the parts that have begun; all before the latest are done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._begun = 0

    def __call__(self, detail: str) -> None:
        self._progress(self._begun, self._total, detail)
        self._begun += 1
