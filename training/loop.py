"""The training loop: until the granted minutes are spent, with a log line every few steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from training.batches import Batch, draw_batch
from training.model import Trainee
from training.recall import Prose, Sentences
from training.schedule import Recipe, learning_rate, row_tokens

LOG_EVERY_STEPS = 20
CLIP_NORM = 1.0


@dataclass
class Log:
    """JSON lines on disk and on the terminal."""

    path: Path
    lines: list[dict[str, float | str]] = field(default_factory=list)

    def write(self, **figures: float | str) -> None:
        line = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


@dataclass(frozen=True)
class Task:
    """What is trained on."""

    prose: Prose
    sentences: Sentences
    bos: int
    recipe: Recipe

    def batch(self, progress: float) -> Batch:
        tokens = row_tokens(progress, self.recipe)
        rows = self.recipe.batch_tokens // tokens
        echoes = progress < self.recipe.echo_until
        return draw_batch(self.prose, self.sentences, self.bos, rows, tokens, echoes=echoes)


def make_optimizer(trainee: Trainee, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices only."""
    everything = list(trainee.model.parameters())
    groups = [
        {"params": [p for p in everything if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in everything if p.dim() == 1], "weight_decay": 0.0},
    ]
    fused = everything[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95), fused=fused)


def warm_up_shapes(trainee: Trainee, task: Task) -> float:
    """Run every row length once, backward included, so that compiling costs no training time."""
    start = time.perf_counter()
    for phase_start, _ in task.recipe.phases:
        batch = task.batch(phase_start)
        loss, _ = trainee.losses(batch.inputs, batch.targets, batch.weight)
        loss.backward()
        trainee.model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def train(
    trainee: Trainee,
    task: Task,
    seconds: float,
    log: Log,
    milestones: dict[float, Callable[[float], None]],
) -> int:
    """Train for `seconds`; returns the steps taken. Time spent in milestones does not count.

    milestones: called once each, with the progress reached, when it passes their key.
    """
    optimizer = make_optimizer(trainee, task.recipe)
    waiting = sorted(milestones)
    start, step, progress, losses = time.perf_counter(), 0, 0.0, None
    while progress < 1.0:
        rate = learning_rate(progress, task.recipe)
        batch = task.batch(progress)
        before, losses = losses, _step(trainee, optimizer, batch, rate)
        if before is not None:
            # Waiting for the step before keeps the clock honest and the device busy.
            before.max().item()
        step += 1
        progress = (time.perf_counter() - start) / seconds
        if step % LOG_EVERY_STEPS == 0:
            log.write(
                kind="step",
                step=step,
                progress=progress,
                row_tokens=batch.inputs.shape[1],
                rate=rate,
                **_figures(losses, batch),
            )
        while waiting and progress >= waiting[0]:
            paused = time.perf_counter()
            milestones[waiting.pop(0)](progress)
            start += time.perf_counter() - paused
    return step


def _step(trainee: Trainee, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> Tensor:
    """One update; returns the loss of every token [B, N]."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, losses = trainee.losses(batch.inputs, batch.targets, batch.weight)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses


def _figures(losses: Tensor, batch: Batch) -> dict[str, float]:
    """Mean loss in nats of the plain rows and of the digits that can be looked up."""
    figures = {"prose_loss": losses[batch.plain].mean().item()}
    if batch.plain.stop < len(losses):
        echo_weight = batch.weight[batch.plain.stop :]
        echo = (losses[batch.plain.stop :] * echo_weight).sum() / echo_weight.sum()
        figures["echo_loss"] = echo.item()
    if batch.recall.any():
        figures["recall_loss"] = losses[batch.recall].mean().item()
    return figures
