"""The local gate: each layer's q, k and v of real steps go to a method, and its output is compared.

The model runs with SDPA, so that every layer is judged on inputs that no method has touched.
Memory does not grow with methods, nor beyond a bound with layers: one layer of one method exists at
a time, and the weights of a few layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnbench.protocol.family import Family
from attnbench.quality.bounds import bound_violations
from attnbench.quality.candidates import Candidate, Progress, Roster
from attnbench.quality.kept_map import named
from attnbench.quality.kept_mass import kept_mass, last_step
from attnbench.quality.metrics import head_metrics
from attnbench.quality.null_cosines import NullCosines
from attnbench.quality.replay import LayerTrace, Replay, replay, same_again, sdpa_outputs
from attnbench.quality.samples import Floats, GateArrays
from attnbench.quality.witness import is_compact

WHOLE = 0.999  # a share from which on nothing is left to select

WEIGHTS_BYTES = 256 * 1024**2

Parts = Mapping[str, Floats]  # one layer of one window: by field of GateArrays


@dataclass(frozen=True)
class _Layer:
    """What every arm is compared with on one layer of one window."""

    trace: LayerTrace
    exact: Tensor
    nulls: NullCosines


class LocalGate:
    """Gathers the samples of every candidate that goes, one window after the other."""

    def __init__(
        self,
        roster: Roster,
        seed: int,
        *,
        kept_mass: bool = False,
        kept_map: bool = False,
        bounds: bool = False,
    ) -> None:
        self._roster = roster
        self._seed = seed
        self._measures_mass = kept_mass
        self._maps = kept_map
        self._holds_bounds = bounds
        self._once: dict[str, dict[str, list[Any]]] = {}  # by layer, of the first window
        self._parts: dict[str, list[list[Parts]]] = {}
        self._deterministic: dict[str, bool] = {}
        self._layers: dict[int, None] = {}
        self._windows = 0
        self._context = 0

    @torch.no_grad()
    def add_window(self, traces: Iterable[LayerTrace], progress: Progress) -> None:
        """Judge every layer of one window; the traces may come one by one.

        An arm's turn is as many layers as the exact weights of take no more than `WEIGHTS_BYTES`:
        looking at the process after each turn takes longer than a layer does.
        """
        for candidate in self._roster.going():
            self._parts.setdefault(candidate.label, []).append([])
        turn: list[_Layer] = []
        for trace in traces:
            turn.append(self._layer(trace))
            if sum(layer.nulls.weights_bytes for layer in turn) >= WEIGHTS_BYTES:
                self._add_layers(turn, progress)
                turn = []
        if turn:
            self._add_layers(turn, progress)
        self._windows += 1

    def arrays(self) -> dict[str, GateArrays]:
        """The samples of every candidate that ran through all windows."""
        return {
            candidate.label: self._stacked(candidate.label) for candidate in self._roster.going()
        }

    def _layer(self, trace: LayerTrace) -> _Layer:
        self._context = trace.context
        self._layers[trace.shape.layer] = None
        exact = sdpa_outputs(trace)
        seed = (self._seed, self._windows, trace.shape.layer)
        return _Layer(trace, exact, NullCosines(trace, exact, seed))

    def _add_layers(self, turn: Sequence[_Layer], progress: Progress) -> None:
        for candidate in self._roster.going():
            for layer in turn:
                progress(f"layer {layer.trace.shape.layer}, {candidate.label}")
            with self._roster.attempt(candidate):
                self._add(candidate, turn)

    def _add(self, candidate: Candidate, turn: Sequence[_Layer]) -> None:
        first, label = self._windows == 0, candidate.label
        ran, once = [], []
        with self._roster.held_still():
            for layer in turn:
                ran.append(replay(candidate.method, layer.trace, candidate.kernel))
                if first:
                    same = same_again(candidate.method, layer.trace, ran[-1], candidate.kernel)
                    self._deterministic[label] = same and self._deterministic.get(label, True)
                    share = ran[-1].kept_share[-1]
                    once.append(self._once_a_layer(candidate, layer.trace, share))
        self._parts[label][-1].extend(
            _judged(candidate, found, layer.exact, layer.nulls)
            for found, layer in zip(ran, turn, strict=True)
        )
        for looked_at in once:
            for name, value in looked_at.items():
                self._once.setdefault(label, {}).setdefault(name, []).append(value)

    def _once_a_layer(
        self, candidate: Candidate, trace: LayerTrace, share: float
    ) -> Mapping[str, Any]:
        """What is looked at in a layer of the first window alone."""
        found: dict[str, Any] = {}
        if share < WHOLE:
            last = last_step(trace)
            compact = is_compact(candidate.method, last, share, candidate.kernel)
            found["compact"] = np.float32(compact)
        if self._measures_mass:
            kept = kept_mass(candidate.method, trace, candidate.kernel)
            found |= {"kept_mass": _floats(kept.mass), "most_mass": np.float32(kept.most)}
        if self._maps and candidate.method.family is not Family.EXACT:
            told = named(candidate.method, trace, candidate.kernel)
            found |= {"kept_map": _floats(told.shares), "map_outside": np.float32(told.outside)}
        if self._holds_bounds:
            violated = bound_violations(candidate.method, trace, candidate.kernel)
            if violated is not None:
                found["bound_violations"] = _floats(violated)
        return found

    def _stacked(self, label: str) -> GateArrays:
        windows = self._parts[label]
        stacked: dict[str, Any] = {
            name: np.stack([np.stack([parts[name] for parts in window]) for window in windows])
            for name in windows[0][0]
        }
        once: dict[str, Any] = {
            name: np.stack(parts)[None] for name, parts in self._once.get(label, {}).items()
        }
        return GateArrays(
            context=np.array([self._context]),
            layers=np.array(list(self._layers)),
            deterministic=np.array([self._deterministic[label]]),
            **stacked,
            **once,
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
        share = sum(ran.kept_share) / len(ran.kept_share)
        parts |= nulls.at(share)
        if candidate.method.together > 1 and 0 < share < WHOLE:
            parts["null_random_blocks"] = nulls.blocks_at(share, candidate.method.together)
    return {name: _floats(part) for name, part in parts.items()}


def _floats(part: Tensor) -> Floats:
    return part.cpu().numpy().astype(np.float32)
