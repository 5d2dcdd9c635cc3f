"""The local gate: each layer's q, k and v of real steps go to a method, and its output is compared.

The model runs with SDPA, so that every layer is judged on inputs that no method has touched.
Memory does not grow with methods: one layer of one method exists at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnbench.protocol.family import Family
from attnbench.quality.candidates import Candidate, Progress, Roster
from attnbench.quality.kept_mass import kept_mass, last_step
from attnbench.quality.metrics import head_metrics
from attnbench.quality.null_cosines import NullCosines
from attnbench.quality.replay import LayerTrace, Replay, replay, same_again, sdpa_outputs
from attnbench.quality.samples import Floats, GateArrays
from attnbench.quality.witness import is_compact

WHOLE = 0.999  # a share from which on nothing is left to select

Parts = Mapping[str, Floats]  # one layer of one window: by field of GateArrays


class LocalGate:
    """Gathers the samples of every candidate that goes, one window after the other."""

    def __init__(self, roster: Roster, seed: int, *, kept_mass: bool = False) -> None:
        self._roster = roster
        self._seed = seed
        self._measures_mass = kept_mass
        self._once: dict[str, dict[str, list[Any]]] = {}  # by layer, of the first window
        self._parts: dict[str, list[list[Parts]]] = {}
        self._deterministic: dict[str, bool] = {}
        self._layers: dict[int, None] = {}
        self._windows = 0
        self._context = 0

    @torch.no_grad()
    def add_window(self, traces: Iterable[LayerTrace], progress: Progress) -> None:
        """Judge every layer of one window; the traces may come one by one."""
        for candidate in self._roster.going():
            self._parts.setdefault(candidate.label, []).append([])
        for trace in traces:
            self._add_layer(trace, progress)
        self._windows += 1

    def arrays(self) -> dict[str, GateArrays]:
        """The samples of every candidate that ran through all windows."""
        return {
            candidate.label: self._stacked(candidate.label) for candidate in self._roster.going()
        }

    def _add_layer(self, trace: LayerTrace, progress: Progress) -> None:
        self._context = trace.context
        self._layers[trace.shape.layer] = None
        exact = sdpa_outputs(trace)
        nulls = NullCosines(trace, exact, (self._seed, self._windows, trace.shape.layer))
        for candidate in self._roster.going():
            progress(f"layer {trace.shape.layer}, {candidate.label}")
            with self._roster.attempt(candidate):
                self._add(candidate, trace, exact, nulls)

    def _add(
        self, candidate: Candidate, trace: LayerTrace, exact: Tensor, nulls: NullCosines
    ) -> None:
        with self._roster.held_still():
            ran = replay(candidate.method, trace, candidate.kernel)
            if self._windows == 0:
                same = same_again(candidate.method, trace, ran, candidate.kernel)
                self._deterministic[candidate.label] = same and self._deterministic.get(
                    candidate.label, True
                )
        self._parts[candidate.label][-1].append(_judged(candidate, ran, exact, nulls))
        if self._windows == 0:
            with self._roster.held_still():
                once = self._of_one_step(candidate, trace, ran.kept_share[-1])
            for name, value in once.items():
                self._once.setdefault(candidate.label, {}).setdefault(name, []).append(value)

    def _of_one_step(
        self, candidate: Candidate, trace: LayerTrace, share: float
    ) -> Mapping[str, Any]:
        """What is looked at in the last step of a layer of the first window alone."""
        found: dict[str, Any] = {}
        if share < WHOLE:
            last = last_step(trace)
            compact = is_compact(candidate.method, last, share, candidate.kernel)
            found["compact"] = np.float32(compact)
        if self._measures_mass:
            kept = kept_mass(candidate.method, trace, candidate.kernel)
            found |= {"kept_mass": _floats(kept.mass), "most_mass": np.float32(kept.most)}
        return found

    def _stacked(self, label: str) -> GateArrays:
        windows = self._parts[label]
        stacked = {
            name: np.stack([np.stack([parts[name] for parts in window]) for window in windows])
            for name in windows[0][0]
        }
        return GateArrays(
            context=np.array([self._context]),
            layers=np.array(list(self._layers)),
            deterministic=np.array([self._deterministic[label]]),
            **stacked,
            **{name: np.stack(parts)[None] for name, parts in self._once.get(label, {}).items()},
        )


def _judged(
    candidate: Candidate, ran: Replay, exact: Tensor, nulls: NullCosines
) -> dict[str, Floats]:
    """The samples of what one candidate answered on one layer of one window."""
    parts = {
        **head_metrics(ran.outputs, exact)._asdict(),
        **nulls.unconditional,
        "kept_share": torch.tensor(ran.kept_share),
    }
    if candidate.method.family is not Family.EXACT:
        parts |= nulls.at(sum(ran.kept_share) / len(ran.kept_share))
    return {name: _floats(part) for name, part in parts.items()}


def _floats(part: Tensor) -> Floats:
    return part.cpu().numpy().astype(np.float32)
