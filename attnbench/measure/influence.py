"""Which tokens have any influence on an arm's output: counted, not believed.

One step over each of two caches that differ in a few value rows tells which of those rows count, in
every layer and KV head (`planted.py`). On the same caches, steps that repeat one input are timed
against steps that do not.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch

from attnbench.errors import SessionLost
from attnbench.measure.answers import SessionResult
from attnbench.measure.arms import BenchArm, BrokenArm
from attnbench.measure.belongings import Left, require_named
from attnbench.measure.clock import device_clock
from attnbench.measure.events import Doing, Mark, Talk
from attnbench.measure.failing import arm_failure, failure_of, recover
from attnbench.measure.footprint import living_storage_bytes
from attnbench.measure.growth import growth_of
from attnbench.measure.planted import Planted, even_scores
from attnbench.measure.recheck import checked
from attnbench.measure.taps import Tap, copied
from attnbench.measure.tasks import ArmFailure
from attnbench.measure.workbench import Workbench
from attnbench.measure.world import World
from attnbench.methods.base import LayerShape
from attnbench.protocol.cell import Arm, Mode, Role, Scope
from attnbench.protocol.growth import Growth
from attnbench.protocol.integrity import (
    Influence,
    Replay,
    StepCheck,
    declares_more,
    looks_known,
)
from attnbench.protocol.verdict import Reason

REPLAY_ROUNDS, REPLAYED_STEPS = 4, 4
MOST_ROUNDS = 12  # where known inputs look quicker: a machine that others use makes some steps slow
# A step this long is timed to a per cent at once: one round will do.
LONG_STEP_US = 2000.0
SURPRISES = 3  # in a row: an arm that is right every other time cannot be right in all of them
HANDED_ROWS = 3  # of inputs: for the step, for the check at set-up, and outputs of that
LEAST_OWN = 0.01  # of the exact cache: with less, what an arm attends to it reads there
HELD_UP_CYCLES = 40_000_000  # of the SM's clock: about 20 ms, more than a host takes for a step


@dataclass
class Probed:
    """What was found of every arm, by label."""

    influence: dict[str, Influence] = field(default_factory=dict)
    replays: dict[str, Replay] = field(default_factory=dict)
    surprises: dict[str, tuple[StepCheck, ...]] = field(default_factory=dict)
    growth: dict[str, Growth] = field(default_factory=dict)
    failures: dict[str, ArmFailure] = field(default_factory=dict)


def probe_arms(
    bench: Workbench,
    mode: Mode,
    walked: SessionResult,
    talk: Talk,
    world: World,
    *,
    growing: bool = False,
) -> Probed:
    """Every arm that was timed, on planted caches; the bench's own cache is gone afterwards.
    `growing`: candidates on a cache that grows as well."""
    probed = Probed()
    planted = Planted(bench, secrets.randbits(31))
    for arm in bench.bench.arms:
        if not any(arm.label in cell.timed_steps for cell in walked.cells):
            continue
        talk.mark(Mark(arm=arm.label, doing=Doing.PROBED, cell=0))
        left = Left(bench)
        try:
            captured = _probe(bench, arm, mode, planted, probed)
            if growing and arm.role is Role.CANDIDATE:
                _grow(bench, arm, walked, probed, captured=captured)
            world.require_unchanged(thoroughly=False)
        except SessionLost:
            raise
        except Exception as error:  # noqa: BLE001 - a method under test may raise anything
            probed.failures[arm.label] = failure_of(error, "influence", world)
        recover(arm.label, probed.failures.get(arm.label), bench.reclaim)
        found = left.found()
        if found is not None and arm.label not in probed.failures:
            probed.failures[arm.label] = arm_failure(found, "influence")
    talk.progress(0, 0, "the process after all probes")  # which no arm is marked for
    world.require_unchanged()
    return probed


def _probe(bench: Workbench, arm: Arm, mode: Mode, planted: Planted, probed: Probed) -> bool:
    """Returns whether the arm's steps are captured."""
    even_scores(bench)
    found = influence_of(bench, arm, mode, planted)
    probed.influence[arm.label] = found.influence
    probed.replays[arm.label] = replayed(bench, found.arm)
    probed.surprises[arm.label] = surprised(bench, found.arm)
    require_named(bench, found.arm)
    return found.arm.captured


def _grow(
    bench: Workbench, arm: Arm, walked: SessionResult, probed: Probed, *, captured: bool
) -> None:
    visits = (cell.timed_steps[arm.label] for cell in walked.cells if arm.label in cell.timed_steps)
    found = growth_of(bench, arm, min(visits), captured=captured)
    if found is not None:
        probed.growth[arm.label] = found


def replayed(bench: Workbench, arm: BenchArm) -> Replay:
    """Steps on fresh inputs, on the same ones after a reset, on one that repeats and on inputs that
    change before each, in turns, so that all see the same machine."""
    clock = device_clock(bench.device)
    fresh_us: tuple[float, ...] = ()
    again_us: tuple[float, ...] = ()
    held_us: tuple[float, ...] = ()
    moving_us: tuple[float, ...] = ()
    for done in range(1, MOST_ROUNDS + 1):
        bench.freshen(secrets.randbits(31))
        arm.reset()
        clock.time(arm.step, 1)
        fresh_us += clock.time(arm.step, REPLAYED_STEPS).steps_us
        arm.reset()
        clock.time(arm.step, 1)
        again_us += clock.time(arm.step, REPLAYED_STEPS).steps_us
        bench.hold()
        clock.time(arm.step, 1)
        held_us += clock.time(arm.step, REPLAYED_STEPS).steps_us
        for _ in range(REPLAYED_STEPS):
            bench.freshen(secrets.randbits(31))
            moving_us += clock.time(arm.step, 1).steps_us
        found = Replay(fresh_us=fresh_us, again_us=again_us, held_us=held_us, moving_us=moving_us)
        enough = 1 if min(fresh_us) > LONG_STEP_US else REPLAY_ROUNDS
        if done >= enough and not looks_known(found):
            break
    arm.inspect()
    return found


def surprised(bench: Workbench, arm: BenchArm) -> tuple[StepCheck, ...]:
    """Steps whose inputs came only just before them, a layer's after the layers before it, against
    the definition: the first in every layer, the others in one that is drawn."""
    kept: list[tuple[int, LayerShape, Tap]] = []
    for visit in range(SURPRISES):
        bench.freshen(secrets.randbits(31))
        if not arm.captured:
            hold_up(bench.device)
        outputs, shapes = arm.attend(), bench.tables.shapes
        drawn = secrets.randbelow(len(shapes))
        kept += [
            (visit, shape, replace(tap, out=out).copied())
            for shape, tap, out in zip(shapes, arm.taps(), outputs, strict=True)
            if visit == 0 or shape is shapes[drawn]
        ]
    return checked(bench, arm.method, kept)


def hold_up(device: torch.device) -> None:
    """Let the host run ahead of the device, so that nothing is finished merely because the host was
    slow to ask for what follows: a GPU is kept busy for some milliseconds. A captured step asks for
    everything at once."""
    if device.type == "cuda":
        torch.cuda._sleep(HELD_UP_CYCLES)  # type: ignore[no-untyped-call]


def influence_of(bench: Workbench, arm: Arm, mode: Mode, planted: Planted) -> Found:
    """The share of planted tokens that have influence, against what the arm's witness says.

    First the cache is changed under an arm that is set up: what shows is read from the cache in the
    step. Where that is less than the arm declares, or where it keeps something of its own that it
    may read as well, it is set up anew on the changed cache.
    """
    living = living_storage_bytes(bench.device.type)
    ready = bench.set_up(arm, Scope.ATTENTION, mode, in_turn=True)
    own = own_share(bench, living)
    before = stepped(bench, ready)
    planted.turn()
    ready.reset()
    read = planted.shown(before, stepped(bench, ready))
    seen = judged(bench, planted, read, read, ready, own)
    if not declares_more(seen) and own < LEAST_OWN:
        planted.turn()
        return Found(ready, seen)
    del ready
    gc.collect()
    ready = bench.set_up(arm, Scope.ATTENTION, mode, in_turn=True)
    shown = planted.shown(before, stepped(bench, ready))
    return Found(ready, judged(bench, planted, shown, read, ready, own))


@dataclass(frozen=True)
class Found:
    """An arm as it is set up now, and what was counted of it."""

    arm: BenchArm
    influence: Influence


def stepped(bench: Workbench, arm: BenchArm) -> tuple[Tap, ...]:
    """What one step was given and returned, inspected, on the host."""
    arm.step()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    arm.inspect()
    return copied(arm.taps())


def declared_share(arm: BenchArm) -> float:
    """What the arm's witness says of the step before."""
    declared = arm.witness().get("kept_share")
    if declared is None:
        raise BrokenArm("its witness says nothing of kept_share", reason=Reason.FALSE_WITNESS)
    return declared


def own_share(bench: Workbench, living: int) -> float:
    """By how much the bytes of living tensors grew, less what the harness holds for an arm that is
    set up: over those of all tokens in the layers that methods apply to."""
    grown = living_storage_bytes(bench.device.type) - living
    handed = HANDED_ROWS * bench.tables.words[0].nbytes
    return max(0, grown - handed) / all_bytes(bench)


def all_bytes(bench: Workbench) -> int:
    """Of all tokens, the newest included, in the layers that methods apply to."""
    tokens = bench.cache.length.tokens + 1
    return tokens * sum(shape.row_bytes for shape in bench.tables.shapes)


def judged(
    bench: Workbench,
    planted: Planted,
    shown: Sequence[float],
    read: Sequence[float],
    ready: BenchArm,
    own: float,
) -> Influence:
    """Shares by layer of the planted tokens, as shares of all with the newest; and what the arm
    says of the step before."""
    tokens = bench.cache.length.tokens

    def of_all(shares: Sequence[float]) -> list[float]:
        return [(share * tokens + 1) / (tokens + 1) for share in shares]

    return Influence(
        planted=planted.count,
        counted=fmean(of_all(shown)),
        least=min(of_all(shown)),
        declared=declared_share(ready),
        read=fmean(of_all(read)),
        own=own,
        declared_bytes=ready.read_bytes() / all_bytes(bench),
    )
