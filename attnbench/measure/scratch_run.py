"""Trains the models of a plan, judges them and records it; goes on with a run that was stopped.

Every time that a run is taken up is a session of it, with an opening record before the first step.
Models that had ended are not trained again, one that was on its way goes on at its last checkpoint.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from attnbench.errors import AttnbenchError, UsageError
from attnbench.ledger import Json, Kind, Ledger
from attnbench.measure.device import environment
from attnbench.measure.reporter import Reporter
from attnbench.measure.scratch_plan import DTYPES, TrainArm, TrainPlan
from attnbench.measure.workers import new_run
from attnbench.protocol.appraisal import Said
from attnbench.protocol.training import (
    ArmTraining,
    SeedOutcome,
    TrainedSamples,
    TrainingCell,
    judged,
)
from attnbench.quality.scratch_training import Place, train

PROTOCOL = "training"  # what the opening record calls it
PLAN = "plan.json"  # of a run's folder: what the run depends on


@dataclass(frozen=True)
class Trained:
    """A run that ended: results in the order of the arms, and what they rest on."""

    run: str
    results: tuple[ArmTraining, ...]
    samples: TrainedSamples


class Trainer:
    """One run of one plan; `unchanged` raises where this process is not what it was."""

    def __init__(
        self, plan: TrainPlan, ledger: Ledger, reporter: Reporter, unchanged: Callable[[], None]
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._reporter = reporter
        self._require_unchanged = unchanged
        self._environment = environment(plan.facts)

    def train(self) -> Trained:
        """Train, judge and record; of several processes the first alone records."""
        with self._plan.ranks.joined(self._plan.device):
            run, sessions = self._begun()
            folder = self._plan.checkpoints / run
            opened = self._record("opened", run, sessions, **self._about())
            try:
                samples = self._samples(folder)
            except KeyboardInterrupt:
                self._record("aborted", run, sessions, opened, why="interrupted")
                self._reporter.note(f"run {run} goes on with --resume")
                raise
            except AttnbenchError as error:
                self._record("failed", run, sessions, opened, error=error.message)
                raise
            self._require_unchanged()
            trained = self._recorded(run, sessions, opened, samples)
            if self._plan.ranks.first:
                shutil.rmtree(folder)  # it has ended: nothing goes on from there
            return trained

    def _begun(self) -> tuple[str, int]:
        """The run's id and how often it was taken up before, the same in all processes."""
        found = [self._found()] if self._plan.ranks.first else [None]
        if self._plan.ranks.world > 1:
            torch.distributed.broadcast_object_list(found)
        begun = found[0]
        if begun is None:
            raise AttnbenchError("the first process did not say which run this is")
        return begun

    def _found(self) -> tuple[str, int]:
        root, identity = self._plan.checkpoints, self._plan.identity()
        if not self._plan.request.resume:
            run = new_run()
            (root / run).mkdir(parents=True)
            (root / run / PLAN).write_bytes(identity)
            return run, 0
        folders = [path.parent for path in root.glob(f"*/{PLAN}") if path.read_bytes() == identity]
        if not folders:
            raise UsageError(
                f"no run of this plan was begun in {root}",
                hint="give the same options as the run that stopped, or leave --resume out",
            )
        latest = max(folders, key=lambda folder: folder.stat().st_mtime)
        taken_up = sum(
            record.kind is Kind.SESSION
            and record.body.get("run") == latest.name
            and record.body.get("phase") == "opened"
            for record in (self._ledger.records() if self._ledger.path.exists() else ())
        )
        return latest.name, taken_up

    def _about(self) -> dict[str, Json]:
        return {
            "task": self._plan.told(),
            "environment": dict(self._environment),
            "protocol": PROTOCOL,
            "sources": {arm.label: arm.source_sha256 for arm in self._plan.arms},
        }

    def _samples(self, folder: Path) -> TrainedSamples:
        """Seed by seed, all arms of one before the next: a run that is cut short compares."""
        plan = self._plan
        place = Place(
            device=plan.device,
            dtype=DTYPES[plan.dtype],
            compiled=plan.compiled,
            ranks=plan.ranks,
            kept=folder,
        )
        outcomes = [self._outcome(arm, seed, place) for seed in plan.seeds for arm in plan.arms]
        return TrainedSamples(
            context=plan.recipe.context,
            unigram_nats=plan.text.unigram_nats(),
            roles={arm.label: arm.role for arm in plan.arms},
            outcomes=tuple(outcomes),
        )

    def _outcome(self, arm: TrainArm, seed: int, place: Place) -> SeedOutcome:
        with self._reporter.stage(f"{arm.label}, seed {seed}") as stage:
            return train(self._plan.recipe, arm.method, seed, self._plan.text, place, stage.update)

    def _recorded(self, run: str, session: int, opened: str, samples: TrainedSamples) -> Trained:
        results = tuple(
            judged(bare_of(self._plan, arm, run, self._environment), samples)
            for arm in self._plan.arms
        )
        if self._plan.ranks.first:
            blob = self._ledger.put_blob(gzip.compress(msgspec.json.encode(samples), mtime=0))
            closed = self._record("closed", run, session, opened, samples=blob)
            for result in results:
                self._ledger.append(Kind.RESULT, msgspec.to_builtins(result), cites=(closed,))
        return Trained(run, results, samples)

    def _record(self, phase: str, run: str, session: int, *cites: str, **more: Json) -> str:
        if not self._plan.ranks.first:
            return ""
        body: dict[str, Json] = {"phase": phase, "run": run, "session": session, **more}
        return self._ledger.append(Kind.SESSION, body, cites=cites).id


def bare_of(
    plan: TrainPlan, arm: TrainArm, run: str, where: Mapping[str, str | int | float]
) -> ArmTraining:
    """What is known of an arm before its models are looked at."""
    return ArmTraining(
        training=plan.recipe.name,
        run=run,
        cell=TrainingCell(
            model=f"scratch:{plan.recipe.name}",
            context=plan.recipe.context,
            dtype=plan.dtype,
            device=plan.facts.name,
        ),
        arm=arm.label,
        method=arm.label,
        family=arm.method.family.value,
        role=arm.role,
        source_sha256=arm.source_sha256,
        verdict=Said(quality="NOT_EVALUATED", quality_reason="not-measured", next_step=""),
        environment={
            **where,
            "threads": plan.request.threads,
            "processes": plan.ranks.world,
            "compiled": int(plan.compiled),
        },
        recipe=plan.recipe.told(),
        text=plan.text.name,
        text_sha256=plan.text.sha256,
        seeds=plan.seeds,
    )
