"""Trains one model from scratch with one scheme and one seed, and goes on where it was stopped.

What a step does follows from the recipe, the seed and its number alone, so that a run that was
stopped at any step ends with the model of one that was not: it begins again at its last checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import UNSET
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attnbench.ledger.canonical import Json, canonical_bytes
from attnbench.methods.base import Method
from attnbench.methods.registry import source_sha256
from attnbench.protocol.training import CurvePoint, SeedOutcome
from attnbench.quality.scratch_model import ScratchModel, new_model
from attnbench.quality.scratch_ranks import Ranks
from attnbench.quality.scratch_recipe import Recipe
from attnbench.quality.scratch_text import ScratchText, batch_at, windows_of

ROWS_AT_ONCE = 16_384  # bytes that one pass of evaluation takes, or one row
Told = Callable[[int, int, str], None]  # steps done, of so many, and what the loss is


@dataclass(frozen=True)
class Place:
    """Where and how training runs; `kept` is the folder of checkpoints, None for none."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    kept: Path | None = None


def train(
    recipe: Recipe, method: Method, seed: int, text: ScratchText, place: Place, told: Told
) -> SeedOutcome:
    """The outcome of one model; of one that had ended already, what was kept."""
    identity = _identity(recipe, method, seed, text, place)
    kept = None if place.kept is None else Kept(place.kept, identity)
    if kept is not None and (known := kept.outcome()) is not None:
        return known
    outcome = Training(recipe, method, seed, text, place).run(kept, told)
    if kept is not None and place.ranks.first:
        kept.finish(outcome)
    place.ranks.wait()
    return outcome


def _identity(recipe: Recipe, method: Method, seed: int, text: ScratchText, place: Place) -> str:
    """What a checkpoint must have in common with a run to be part of it, hashed."""
    about: dict[str, Json] = {
        "recipe": recipe.told(),
        "method": method.label,
        "source": source_sha256(method),
        "seed": seed,
        "text": text.sha256,
        "device": place.device.type,
        "dtype": str(place.dtype),
        "compiled": place.compiled,
        "world": place.ranks.world,
        "torch": str(torch.__version__),
    }
    return hashlib.sha256(canonical_bytes(about)).hexdigest()[:24]


@dataclass(frozen=True)
class Kept:
    """One model's files: a checkpoint while it is trained, its outcome afterwards."""

    folder: Path
    name: str

    @property
    def checkpoint(self) -> Path:
        """Model, optimiser, step and curve."""
        return self.folder / f"{self.name}.pt"

    @property
    def ended(self) -> Path:
        """The outcome, as JSON."""
        return self.folder / f"{self.name}.json"

    def outcome(self) -> SeedOutcome | None:
        """Of a model that was trained to its end."""
        if not self.ended.exists():
            return None
        return msgspec.json.decode(self.ended.read_bytes(), type=SeedOutcome)

    def finish(self, outcome: SeedOutcome) -> None:
        """Keep the outcome; the checkpoint is not needed any more."""
        self._replace(self.ended, lambda path: path.write_bytes(msgspec.json.encode(outcome)))
        self.checkpoint.unlink(missing_ok=True)

    def save(self, state: dict[str, Any]) -> None:
        """Keep a state in place of the last one, whole or not at all."""
        self._replace(self.checkpoint, lambda path: torch.save(state, path))

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The last state that was kept."""
        if not self.checkpoint.exists():
            return None
        found: dict[str, Any] = torch.load(self.checkpoint, map_location=device, weights_only=True)
        return found

    def _replace(self, path: Path, write: Callable[[Path], object]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}.tmp")
        write(half)
        half.replace(path)


class Training:
    """One model on its way."""

    def __init__(
        self, recipe: Recipe, method: Method, seed: int, text: ScratchText, place: Place
    ) -> None:
        self.recipe, self.method, self.seed, self.text, self.place = (
            recipe,
            method,
            seed,
            text,
            place,
        )
        self.model = new_model(recipe, method, seed, place.device)
        self.optimizer = _optimizer(self.model, recipe)
        together = place.ranks.together(self.model, place.device)
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(together) if place.compiled else together
        )
        self.step = 0
        self.curve: list[CurvePoint] = []
        self.watched: list[Tensor] = []  # training losses since the curve's last point
        self.seconds = 0.0

    def run(self, kept: Kept | None, told: Told) -> SeedOutcome:
        """From where it stopped to the end."""
        if kept is not None:
            self._go_on(kept)
        began, before = time.perf_counter(), self.seconds
        while self.step < self.recipe.steps:
            self.watched.append(self._step())
            self.step += 1
            self.seconds = before + time.perf_counter() - began
            if self._is_due(self.recipe.watch_every):
                loss = self._watch()
                told(self.step, self.recipe.steps, f"{loss:.3f} nats a byte")
                if not math.isfinite(loss):
                    return self._outcome(diverged=True)
            if kept is not None and self._is_due(self.recipe.keep_every):
                self._keep(kept)
        return self._outcome(diverged=False)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.recipe.steps

    def _step(self) -> Tensor:
        """One update; the loss of this process's rows, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.step)
        rows = torch.from_numpy(batch_at(self.text.training, self.recipe, self.seed, self.step))
        rows = self.place.ranks.own(rows).to(self.place.device)
        with self._cast():
            loss = _loss(self.forward(rows[:, :-1]), rows[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _cast(self) -> AbstractContextManager[Any]:
        if self.place.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.place.device.type, self.place.dtype)

    def _watch(self) -> float:
        """Put the curve on: the training loss since the last point, and the held-out loss."""
        ranks, device = self.place.ranks, self.place.device
        training = ranks.averaged(float(torch.stack(self.watched).double().mean()), device)
        self.watched = []
        held_out = self._nats(self.recipe.context, self.recipe.watched)
        if math.isfinite(training) and math.isfinite(held_out):
            done = self.step * self.recipe.batch * self.recipe.context
            self.curve.append(
                CurvePoint(
                    step=self.step,
                    epochs=self.text.epochs(done),
                    training=training,
                    held_out=held_out,
                )
            )
        return training if not math.isfinite(training) else held_out

    def _nats(self, context: int, wanted: int) -> float:
        """Held-out loss in nats a byte, at one context; every process computes it."""
        rows = windows_of(self.text.held_out, context, wanted)
        self.model.eval()
        with torch.no_grad():
            total = sum(self._window_nats(part) for part in _parts(rows, context))
        self.model.train()
        return total / rows[:, 1:].size

    def _window_nats(self, rows: NDArray[Any]) -> float:
        tokens = torch.from_numpy(rows).to(self.place.device)
        with self._cast():
            logits = self.model(tokens[:, :-1])
        return float(_loss(logits, tokens[:, 1:], reduction="sum"))

    def _outcome(self, *, diverged: bool) -> SeedOutcome:
        contexts = () if diverged else self.recipe.contexts
        nats = {str(context): self._nats(context, self.recipe.evaluated) for context in contexts}
        return SeedOutcome(
            arm=self.method.label,
            seed=self.seed,
            parameters=self.model.count(),
            curve=tuple(self.curve),
            nats=nats,
            learned=self.model.scheme.learned(),
            seconds=round(self.seconds, 3),
            diverged_at=self.step if diverged else UNSET,
        )

    def _keep(self, kept: Kept) -> None:
        if self.place.ranks.first:
            kept.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "watched": self.watched,
                    "step": self.step,
                    "seconds": self.seconds,
                    "curve": [msgspec.to_builtins(point) for point in self.curve],
                }
            )
        self.place.ranks.wait()

    def _go_on(self, kept: Kept) -> None:
        state = kept.load(self.place.device)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.curve = msgspec.convert(state["curve"], list[CurvePoint])
        self.watched = list(state["watched"])


def _loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """In float32, whatever the logits are."""
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction=reduction)


def _parts(rows: NDArray[Any], context: int) -> Iterator[NDArray[Any]]:
    """Rows that one pass takes."""
    count = max(1, ROWS_AT_ONCE // context)
    for first in range(0, len(rows), count):
        yield rows[first : first + count]


def _optimizer(model: ScratchModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; weights alone decay: biases, norms and what a scheme learns do not."""
    decays = [p for n, p in model.named_parameters() if p.dim() > 1 and not n.startswith("scheme.")]
    decaying = {id(p) for p in decays}
    others = [p for p in model.parameters() if id(p) not in decaying]
    groups = [
        {"params": decays, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = decays[0].device.type == "cuda"
    return torch.optim.AdamW(
        groups, lr=recipe.rate, betas=(recipe.beta1, recipe.beta2), fused=fused
    )
