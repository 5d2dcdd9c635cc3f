"""A quality run: text, model, the gates one after the other, raw samples of every arm.

Nothing is judged here. The parent process turns the samples into verdicts (`quality.gates`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnbench.errors import UsageError
from attnbench.models.info import LoadedModel
from attnbench.quality.candidates import Roster
from attnbench.quality.capture import (
    full_layers,
    layer_traces,
    layers_of,
    record_windows,
    routed,
    rows_at_once,
)
from attnbench.quality.compounded import CompoundedGate
from attnbench.quality.fitness import require_causal, require_vocabulary, text_nats, vocabulary
from attnbench.quality.kept_map import bin_texts, bin_tokens
from attnbench.quality.levels import QualityCounts, facts_in
from attnbench.quality.local import LocalGate
from attnbench.quality.needles import NeedleGate, haystacks
from attnbench.quality.recall import Planted
from attnbench.quality.samples import Floats, GateArrays, GateSamples
from attnbench.quality.text import Text, default_text, read_text, windows

Progress = Callable[[int, int, str], None]  # so many of so many are done; what begins now


@dataclass(frozen=True)
class Material:
    """What is decoded: windows of text [W, `counts.tokens`] (int64), and texts with facts."""

    windows: Tensor
    haystacks: tuple[Planted, ...] = ()

    @property
    def sha256(self) -> str:
        """Of all token ids, in the order in which they are decoded."""
        digest = hashlib.sha256(self.windows.numpy().astype("<i8").tobytes())
        for planted in self.haystacks:
            asked = (
                ids for each in planted.questions for ids in (each.question_ids, each.answer_ids)
            )
            for ids in (planted.prompt_ids, *asked):
                digest.update(np.array(ids, "<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class QualitySamples:
    """Raw samples by arm label, why the other arms have none, and the text they were taken on;
    and by place and label those of `made_up`."""

    arms: dict[str, GateSamples]
    failures: dict[str, Exception]
    text: Text
    tokens_sha256: str
    contrast: dict[str, dict[str, GateSamples]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How well the model predicts the windows under SDPA, as `GateArrays` holds it."""

    text_nats: Floats
    vocabulary: Floats

    @classmethod
    def of(cls, loaded: LoadedModel, windows: Tensor) -> Reading:
        """Read the windows [W,N]."""
        nats = text_nats(loaded, windows).cpu().numpy().astype(np.float32)
        return cls(nats, np.array([vocabulary(loaded)], np.float32))


def run_quality(
    loaded: LoadedModel,
    roster: Roster,
    counts: QualityCounts,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    progress: Progress,
    text_path: str | None = None,
) -> QualitySamples:
    """Gate the roster on windows of a text file, or of numpy's documentation strings.

    Where the model has too few positions the prompt is shorter than asked for, and the samples
    say how long it was. Raises UsageError for a model without a tokenizer (random weights: there
    is nothing to judge), TextTooShort, and `ModelError` for a model that is not causal, whose
    tokenizer is another's, or whose own logits are not finite.
    """
    if loaded.tokenizer is None:
        raise UsageError(
            f"{loaded.info.spec} has no tokenizer and so cannot read a text",
            hint="quality is judged on trained models only",
        )
    counts = counts.within(loaded.info.max_context)
    text = default_text() if text_path is None else read_text(text_path)
    material = _material(loaded, text, counts, seed)
    require_causal(loaded, material.windows[:1].to(device))
    reading = Reading.of(loaded, material.windows.to(device))
    arms = gate_windows(loaded, roster, material, counts, dtype, device, seed, progress)
    of_text = {**vars(reading), **_mapped_text(loaded, material, counts)}
    arms = {label: replace(found, **of_text) for label, found in arms.items()}
    contrast: Mapping[str, dict[str, GateArrays]] = {}
    if counts.contrast:
        from attnbench.quality.made_up import made_up_arrays

        contrast = made_up_arrays(
            loaded,
            roster,
            material.windows.to(device),
            counts,
            dtype,
            device,
            seed,
            lambda detail: progress(0, 0, detail),
        )
    return QualitySamples(
        packed(arms),
        roster.failures,
        text,
        material.sha256,
        {place: packed(found) for place, found in contrast.items()},
    )


def _mapped_text(
    loaded: LoadedModel, material: Material, counts: QualityCounts
) -> Mapping[str, Any]:
    """What stands in the bins of the first window, where they are mapped."""
    if not counts.kept_map:
        return {}
    tokens = counts.context + counts.steps
    width = bin_tokens(tokens)
    texts = bin_texts(loaded.tokenizer, material.windows[0, :tokens], width)
    return {"map_bin": np.array([width]), "map_text": texts}


def packed(arms: Mapping[str, GateArrays]) -> dict[str, GateSamples]:
    """As they travel and are kept."""
    return {label: found.pack() for label, found in arms.items()}


def _material(loaded: LoadedModel, text: Text, counts: QualityCounts, seed: int) -> Material:
    """Cut from the text once, for all arms and parts."""
    ids = torch.from_numpy(windows(loaded.tokenizer, text, counts.tokens, counts.windows, seed))
    number = counts.haystacks if facts_in(counts.context) else 0
    planted = haystacks(loaded.tokenizer, text, counts.context, number, seed)
    require_vocabulary(loaded, ids)
    return Material(ids, planted)


def gate_windows(
    loaded: LoadedModel,
    roster: Roster,
    material: Material,
    counts: QualityCounts,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> dict[str, GateArrays]:
    """Gate the roster on the material."""
    context, capacity = counts.context, counts.context + counts.room
    place = (loaded, capacity, dtype, device)
    surveyed = layers_of(*place)
    roster.launch_alike(next(layer.shape for layer in surveyed if layer.window is None))
    local = LocalGate(
        roster,
        seed,
        kept_mass=counts.kept_mass,
        kept_map=counts.kept_map,
        bounds=counts.bounds,
    )
    compounded, needles = CompoundedGate(roster), NeedleGate(roster)
    most = rows_at_once(surveyed)
    turns = evenly(material.windows.to(device), most)
    parts = _parts(full_layers(surveyed), len(roster.going()), material, counts, len(turns))
    tell = _Counter(progress, parts)
    for ids in turns:
        with routed(*place, rows=len(ids)) as model:
            tell(f"prefill of {context} tokens")
            record = record_windows(model, ids[:, :-1], context)
            for row in range(len(ids)):
                local.add_window(layer_traces(model, record, context, counts.steps, row), tell)
            if counts.logit_steps:
                compounded.add_windows(model, record, ids, context, tell)
    for planted in material.haystacks:
        with routed(*place, rows=min(most, len(planted.questions))) as model:
            needles.add_haystack(model, planted, tell)
    return needles.completed(compounded.completed(local.arrays()))


def evenly(windows: Tensor, most: int) -> tuple[Tensor, ...]:
    """Windows [W,..] in as few groups of at most `most` as there can be, of nearly one size."""
    return torch.tensor_split(windows, math.ceil(len(windows) / most))


def _parts(layers: int, arms: int, material: Material, counts: QualityCounts, turns: int) -> int:
    """Parts that tell when they begin: every layer of every arm in each window; of the windows
    that are decoded in one turn the prefill and every arm; of a haystack likewise."""
    outputs = len(material.windows) * layers * arms
    inside = turns * (1 + arms * bool(counts.logit_steps))
    return outputs + inside + len(material.haystacks) * (1 + arms)


class _Counter:
    """Counts the parts that have begun; all before the latest are done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._begun = 0

    def __call__(self, detail: str) -> None:
        self._progress(self._begun, self._total, detail)
        self._begun += 1
