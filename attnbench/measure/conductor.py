"""Carries a planned decode run out: pilot, sessions, memory, quality, all of it recorded.

Every worker process is a session of the ledger (`workers`); results cite those records. The places
of a sweep share each worker: one process holds the model and goes from one to the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import msgspec

from attnbench.errors import AttnbenchError, DoesNotFit
from attnbench.ledger import Ledger
from attnbench.measure.answers import (
    MemoryResult,
    PartFailure,
    PartResult,
    PilotResult,
    ProfileResult,
    QualityResult,
    SessionResult,
    SweepResult,
)
from attnbench.measure.device import environment
from attnbench.measure.evidence import Evidence
from attnbench.measure.judge import place_of
from attnbench.measure.layout import cell_of, place_title
from attnbench.measure.past import Past
from attnbench.measure.place import Place
from attnbench.measure.plan import Plan
from attnbench.measure.reporter import Reporter
from attnbench.measure.tasks import ArmFailure, QualityTask, SweepTask, TaskPart
from attnbench.measure.verdicts import arm_results
from attnbench.measure.workers import Runner, Workers
from attnbench.protocol.looks import decided, looks_of

_R = TypeVar("_R", bound=PartResult)
NOTHING: Mapping[str, ArmFailure] = MappingProxyType({})


@dataclass(frozen=True)
class Swept:
    """What came of all places: the evidence of each that was measured, in the order of the plans,
    and why there is none of the others. `run` and `cites` are those of all of them."""

    run: str
    environment: dict[str, str | int | float]
    evidences: tuple[Evidence, ...]
    lost: tuple[tuple[Plan, ArmFailure], ...]
    failed: tuple[AttnbenchError, ...]
    cites: tuple[str, ...]


class Conductor:
    """One run of one plan. Whatever was recorded stays recorded when it fails or is interrupted.

    `run` does a task in a process of its own. A run under the promise of a protocol file has one
    cell, shares its `name` with those of the file's other cells, and goes on from its `past` where
    it stopped.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        reporter: Reporter,
        *,
        run: Runner,
        past: Past | None = None,
        name: str = "",
    ) -> None:
        self._sweeper = Sweeper((plan,), ledger, reporter, run=run, past=past, name=name)

    def conduct(self) -> Evidence:
        """Run every worker of the plan; raises what the pilot or a session raises.

        Hours of sessions are not thrown away because memory or quality failed afterwards.
        """
        (found,) = self._sweeper.conduct().evidences
        return found


class Sweeper:
    """One run of several plans, a place each, of one model on one device under one protocol.

    A place that cannot be measured costs itself alone, as long as another can. Methods in
    `left_out`, by the place where they are defined, are not measured, and why.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        ledger: Ledger,
        reporter: Reporter,
        *,
        run: Runner,
        past: Past | None = None,
        name: str = "",
        left_out: Mapping[str, ArmFailure] = NOTHING,
    ) -> None:
        first = plans[0]
        self._places = _places(plans)
        self._protocol = first.request.protocol
        self._seed = first.request.seed
        self._reporter = reporter
        self._environment = environment(first.facts)
        self._runner = run
        self._workers = Workers(
            ledger,
            reporter,
            about={
                "environment": dict(self._environment),
                "protocol": self._protocol.name,
                "sources": {arm.label: arm.source_sha256 for plan in plans for arm in plan.arms},
            },
            run=run,
            promise=first.request.promise,
            cell=cell_of(first, 0) if first.request.promise else None,
            name=name,
        )
        if past is not None:
            self._workers.go_on(past)
        self._workers.left_out.update(_by_label(plans, left_out))
        self._failed: list[AttnbenchError] = []

    def conduct(self) -> Swept:
        """Run every worker; raises what the pilot or a session raises, and `DoesNotFit` or
        `Unsupported` where no place is left."""
        self._pilots()
        self._sessions()
        self._beside()
        self._or_failed(self._profile)
        cites = tuple(self._workers.cites)
        return Swept(
            run=self._workers.run,
            environment=self._environment,
            evidences=tuple(
                msgspec.structs.replace(found, failed=tuple(self._failed), cites=cites)
                for found in self._found()
            ),
            lost=tuple((p.plan, p.lost) for p in self._places if p.lost is not None),
            failed=tuple(self._failed),
            cites=cites,
        )

    def _found(self) -> tuple[Evidence, ...]:
        return tuple(p.evidence(self._workers.run, self._environment) for p in self._standing)

    @property
    def _standing(self) -> list[Place]:
        """The places that are still to be measured; raises where there is none."""
        standing = [place for place in self._places if place.lost is None]
        if not standing:
            why = next(place.lost for place in self._places if place.lost is not None)
            raise DoesNotFit(why.message, hint=why.hint)
        return standing

    def _pilots(self) -> None:
        tasks = {place.first_cell: place.pilot_task() for place in self._places}
        title = "pilot: which arms run, kernel choices, the baseline"
        seen = self._ask("pilot", title, tasks, PilotResult)
        for place in self._standing:
            self._say_where(place)
            try:
                place.settle(seen[place.first_cell], self._reporter)
            except AttnbenchError as error:
                if len(self._places) == 1:
                    raise
                self._lose(place, _failure(error))

    def _sessions(self) -> None:
        for number in range(self._protocol.sessions):
            tasks = {place.first_cell: place.session_task(number) for place in self._standing}
            title = f"session {number + 1} of {self._protocol.sessions}"
            done = self._ask(number, title, self._shuffled(tasks, number), SessionResult)
            for place in self._standing:
                place.sessions += (done[place.first_cell],)
            if self._may_stop(number + 1):
                break

    def _shuffled(self, tasks: Mapping[int, TaskPart], number: int) -> dict[int, TaskPart]:
        """In an order of this session's own: no place always comes after the same one."""
        order = random.Random(f"{self._seed} {number}").sample(sorted(tasks), len(tasks))
        return {key: tasks[key] for key in order}

    def _may_stop(self, done: int) -> bool:
        """Whether this many sessions are a planned look, and settle every candidate."""
        if done not in looks_of(self._protocol) or done == self._protocol.sessions:
            return False
        settled = decided(arm_results(*self._found()))
        said = "every candidate is settled" if settled else "not settled yet"
        self._reporter.note(f"planned look after {done} sessions: {said}")
        return settled

    def _beside(self) -> None:
        """Memory and quality, in which nothing is timed: side by side where neither sees the other.

        Of a GPU both want the memory, and bytes are asked of the device; on a CPU every process
        counts its own tensors and its own resident set.
        """
        if not all(_has_room_for_two(place.plan) for place in self._standing):
            self._or_failed(self._memory)
            self._or_failed(self._quality)
            return
        with ThreadPoolExecutor(max_workers=1) as other:
            quality = other.submit(self._quality)
            try:
                self._or_failed(self._memory)
                self._or_failed(quality.result)
            except BaseException:
                self._runner.stop()
                raise

    def _memory(self) -> None:
        tasks = {place.first_cell: place.memory_task() for place in self._standing}
        title = "memory: each arm in a process of its own"
        found = self._ask("memory", title, tasks, MemoryResult, needed=False)
        for place in self._standing:
            place.memory = found.get(place.first_cell)

    def _profile(self) -> None:
        """On a GPU alone: a CPU has neither kernels to tell nor a counter of energy."""
        tasks = {
            place.first_cell: place.profile_task()
            for place in self._standing
            if place.plan.device == "cuda"
        }
        if not tasks:
            return
        title = "profile: kernels of the baseline's step, energy of every arm"
        found = self._ask("profile", title, tasks, ProfileResult, needed=False)
        for place in self._standing:
            place.profile = found.get(place.first_cell)

    def _quality(self) -> None:
        """Once for each context: outputs are judged at batch 1, whatever is timed."""
        tasks: dict[int, QualityTask] = {}
        places: dict[int, list[Place]] = {}
        for place in (each for each in self._standing if each.judges_quality):
            places.setdefault(place.plan.context, []).append(place)
        for context, alike in places.items():
            tasks[context] = max(
                (place.quality_task() for place in alike), key=lambda task: len(task.bench.arms)
            )
        if not tasks:
            return
        title = "quality: outputs against SDPA on real text"
        found = self._ask("quality", title, tasks, QualityResult, needed=False)
        for context, alike in places.items():
            for place in alike:
                place.quality = found.get(context)

    def _ask(
        self,
        session: int | str,
        title: str,
        tasks: Mapping[int, TaskPart],
        kind: type[_R],
        *,
        needed: bool = True,
    ) -> dict[int, _R]:
        """What one worker makes of these tasks, by their keys.

        A place that is `needed` here and has no result is lost. A run of one place asks for the
        task alone, and has what goes wrong with it raised.
        """
        with self._reporter.stage(title) as stage:
            if len(self._places) == 1:
                return {
                    key: self._workers.work(session, task, kind, stage.update)
                    for key, task in tasks.items()
                }
            task = SweepTask(parts=tuple(tasks.values()))
            parts = self._workers.work(session, task, SweepResult, stage.update).parts
        found: dict[int, _R] = {}
        for key, part in zip(tasks, parts, strict=True):
            if isinstance(part, kind):
                found[key] = part
            elif not isinstance(part, PartFailure):
                raise AttnbenchError(
                    f"the worker sent a {type(part).__name__}, not a {kind.__name__}"
                )
            elif needed:
                self._lose(next(p for p in self._places if p.first_cell == key), part.why)
            else:
                self._failed.append(AttnbenchError(part.why.message, hint=part.why.hint))
        return found

    def _lose(self, place: Place, why: ArmFailure) -> None:
        place.lost = why
        self._reporter.note(f"left out: {place_title(place.plan)}: {why.message}")

    def _say_where(self, place: Place) -> None:
        if len(self._places) > 1:
            self._reporter.note(f"{place_title(place.plan)}:")

    def _or_failed(self, part: Callable[[], None]) -> None:
        """Hours of sessions are not thrown away because memory or quality failed afterwards."""
        try:
            part()
        except AttnbenchError as error:
            self._failed.append(error)


def _has_room_for_two(plan: Plan) -> bool:
    """Whether two processes fit into memory beside each other, each with as much again as a session
    needs: methods keep caches of their own."""
    return plan.device == "cpu" and 4 * plan.needed_bytes <= plan.facts.memory_free_bytes


def _by_label(plans: Sequence[Plan], left_out: Mapping[str, ArmFailure]) -> dict[str, ArmFailure]:
    arms = [arm for plan in plans for arm in plan.arms]
    places = {arm.label: place_of(arm.spec) for arm in arms}
    return {label: left_out[place] for label, place in places.items() if place in left_out}


def _places(plans: Sequence[Plan]) -> tuple[Place, ...]:
    places, cells = [], 0
    for plan in plans:
        places.append(Place(plan, cells))
        cells += len(plan.cells)
    return tuple(places)


def _failure(error: AttnbenchError) -> ArmFailure:
    return ArmFailure(
        type=type(error).__name__, message=error.message, hint=error.hint, during="pilot"
    )
