"""The quality task: the gates' raw samples of every arm that runs here.

The process is held still as in a session: what an arm changed of it is put back before anything is
computed from its outputs, and the arm is out.
"""

from __future__ import annotations

import torch

from attnbench.errors import SessionLost
from attnbench.measure.answers import QualityResult
from attnbench.measure.arms import BrokenArm
from attnbench.measure.events import Doing, Mark, Talk
from attnbench.measure.failing import arm_failure, failure_of
from attnbench.measure.household import Household
from attnbench.measure.intact import Intact
from attnbench.measure.tasks import ArmFailure, Bench, QualityTask
from attnbench.measure.world import World
from attnbench.quality.candidates import Candidate, Roster, candidate
from attnbench.quality.run import run_quality


def run_judging(task: QualityTask, talk: Talk, household: Household | None = None) -> QualityResult:
    """Raw samples by arm, and why the other arms have none; a worker that does more tasks keeps
    `household` for the next."""
    bench = task.bench
    talk.progress(0, 0, f"loading {bench.model}")
    household = household or Household(bench)
    loaded = household.model()
    with torch.no_grad():
        watch = Turns(household.world.settle(loaded.module), Intact(loaded.module), talk)
        candidates, failures = judged_arms(bench, watch)
        roster = Roster(candidates, watch)
        samples = run_quality(
            loaded,
            roster,
            task.counts,
            dtype=getattr(torch, bench.dtype),
            device=torch.device(bench.device),
            seed=bench.seed,
            progress=talk.progress,
            text_path=bench.text,
        )
        talk.progress(0, 0, "the process, once more")
        watch.require_untouched()
    failed = {label: arm_failure(error, "quality") for label, error in samples.failures.items()}
    return QualityResult(
        arms=samples.arms,
        failures=bench.left_out | failures | failed,
        text_name=samples.text.name,
        text_sha256=samples.text.sha256,
        tokens_sha256=samples.tokens_sha256,
        model_identity=loaded.info.identity,
        contrast=samples.contrast,
    )


class Turns:
    """Says whose turn it is, and holds the process and the model still meanwhile."""

    def __init__(self, world: World, model: Intact, talk: Talk) -> None:
        self._world = world
        self._model = model
        self._talk = talk

    def begins(self, label: str) -> None:
        """This arm's code runs from now on; what changed before it is the doing of no arm that
        could be named."""
        self._require_nothing_new(thoroughly=False)
        self._talk.mark(Mark(arm=label, doing=Doing.JUDGED, cell=0))

    def require_unchanged(self, *, thoroughly: bool = True) -> None:
        """Put back what changed and raise `BrokenArm`, or `SessionLost` where it stays."""
        self._world.require_unchanged(thoroughly=thoroughly)

    def require_intact_model(self) -> None:
        """Raise `SessionLost` where the model changed."""
        self._model.require()

    def require_untouched(self) -> None:
        """Raise `SessionLost` for anything that changed since the last arm's turn ended."""
        self._require_nothing_new(thoroughly=True)
        self._model.require()

    def _require_nothing_new(self, *, thoroughly: bool) -> None:
        try:
            self._world.require_unchanged(thoroughly=thoroughly)
        except BrokenArm as changed:
            raise SessionLost(
                f"the process changed between the arms' turns: {changed.message}",
                hint="judge the arms one by one: that names the one that does it",
                reason=changed.reason,
            ) from changed


def judged_arms(bench: Bench, watch: Turns) -> tuple[list[Candidate], dict[str, ArmFailure]]:
    """The arms as candidates, their modules imported, and why some are none."""
    candidates: list[Candidate] = []
    failures: dict[str, ArmFailure] = {}
    for arm in bench.arms:
        watch.begins(arm.label)
        try:
            kernel = bench.kernels.get(arm.label)
            made = candidate(arm.label, arm.method, torch.device(bench.device), kernel)
            watch.require_unchanged()
            candidates.append(made)
        except SessionLost:
            raise
        except Exception as error:  # noqa: BLE001 - a method under test may raise anything
            failures[arm.label] = failure_of(error, "quality", watch)
    return candidates, failures
