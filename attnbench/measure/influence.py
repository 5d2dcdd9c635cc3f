"""Which tokens have any influence on an arm's output: counted, not believed.

All keys are made nearly alike, so that softmax spreads its weight evenly, and all values zero but
for a few at secret places, each in a channel of its own. Whatever shows in a channel of the output
has come from that token. One step tells for as many tokens as there are channels, in every layer
and KV head. On the same caches, steps that repeat one input are timed against steps that do not.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor

from attnbench.errors import SessionLost
from attnbench.measure.arms import BenchArm, BrokenArm
from attnbench.measure.belongings import Left, require_named
from attnbench.measure.clock import device_clock
from attnbench.measure.events import Doing, Mark, Talk
from attnbench.measure.failing import arm_failure, failure_of, recover
from attnbench.measure.recheck import checked
from attnbench.measure.taps import Tap
from attnbench.measure.tasks import ArmFailure, SessionResult
from attnbench.measure.workbench import Workbench
from attnbench.measure.world import World
from attnbench.methods.base import LayerShape
from attnbench.protocol.cell import Arm, Mode, Scope
from attnbench.protocol.integrity import Influence, Replay, StepCheck
from attnbench.protocol.verdict import Reason

REPLAY_ROUNDS, REPLAYED_STEPS = 4, 4
# A step this long is timed to a per cent at once: half as many rounds and steps will do.
LONG_STEP_US = 4000.0
SURPRISES = 3  # in a row: an arm that is right every other time cannot be right in all of them
HELD_UP_CYCLES = 40_000_000  # of the SM's clock: about 20 ms, more than a host takes for a step
KEY_NOISE = 0.01
WEIGHT_SHARE = 0.25  # what a planted value shows as where all tokens weigh the same


@dataclass
class Probed:
    """What was found of every arm, by label."""

    influence: dict[str, Influence] = field(default_factory=dict)
    replays: dict[str, Replay] = field(default_factory=dict)
    surprises: dict[str, tuple[StepCheck, ...]] = field(default_factory=dict)
    failures: dict[str, ArmFailure] = field(default_factory=dict)


def probe_arms(
    bench: Workbench, mode: Mode, walked: SessionResult, talk: Talk, world: World
) -> Probed:
    """Every arm that was timed, on planted caches; the bench's own cache is gone afterwards."""
    probed = Probed()
    places = plant(bench, secrets.randbits(31))
    for arm in bench.bench.arms:
        if not any(arm.label in cell.timed_steps for cell in walked.cells):
            continue
        talk.mark(Mark(arm=arm.label, doing=Doing.PROBED, cell=0))
        left = Left(bench)
        try:
            _probe(bench, arm, mode, places, probed)
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


def _probe(bench: Workbench, arm: Arm, mode: Mode, places: Places, probed: Probed) -> None:
    silence_new_tokens(bench)
    ready = bench.set_up(arm, Scope.ATTENTION, mode, in_turn=True)
    probed.influence[arm.label] = counted(bench, ready, places)
    probed.replays[arm.label] = replayed(bench, ready)
    probed.surprises[arm.label] = surprised(bench, ready)
    require_named(bench, ready)


def replayed(bench: Workbench, arm: BenchArm) -> Replay:
    """Steps on fresh inputs, on the same ones after a reset, on one that repeats and on inputs that
    change before each, in turns, so that all see the same machine."""
    clock = device_clock(bench.device)
    fresh_us: tuple[float, ...] = ()
    again_us: tuple[float, ...] = ()
    held_us: tuple[float, ...] = ()
    moving_us: tuple[float, ...] = ()
    shorter = 2 if clock.time(arm.step, 1).steps_us[0] > LONG_STEP_US else 1
    steps = REPLAYED_STEPS // shorter
    for _ in range(REPLAY_ROUNDS // shorter):
        bench.freshen(secrets.randbits(31))
        arm.reset()
        clock.time(arm.step, 1)
        fresh_us += clock.time(arm.step, steps).steps_us
        arm.reset()
        clock.time(arm.step, 1)
        again_us += clock.time(arm.step, steps).steps_us
        bench.hold()
        clock.time(arm.step, 1)
        held_us += clock.time(arm.step, steps).steps_us
        for _ in range(steps):
            bench.freshen(secrets.randbits(31))
            moving_us += clock.time(arm.step, 1).steps_us
    arm.inspect()
    return Replay(fresh_us=fresh_us, again_us=again_us, held_us=held_us, moving_us=moving_us)


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
    return tuple(checked(bench, arm.method, shape, tap, visit) for visit, shape, tap in kept)


def hold_up(device: torch.device) -> None:
    """Let the host run ahead of the device, so that nothing is finished merely because the host was
    slow to ask for what follows: a GPU is kept busy for some milliseconds. A captured step asks for
    everything at once."""
    if device.type == "cuda":
        torch.cuda._sleep(HELD_UP_CYCLES)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Places:
    """Where values were planted: int64 [B,Hkv,P] by layer; token p shows in channel p."""

    tokens: dict[int, Tensor]


def plant(bench: Workbench, seed: int) -> Places:
    """Replace the exact cache and the inputs; the bench takes them for intact from now on."""
    generator = torch.Generator(bench.device).manual_seed(seed)
    places = Places(
        {shape.layer: _planted(bench, shape, generator) for shape in bench.tables.shapes}
    )
    bench.accept_cache(lambda: _again(bench, seed))
    return places


def _again(bench: Workbench, seed: int) -> None:
    generator = torch.Generator(bench.device).manual_seed(seed)
    for shape in bench.tables.shapes:
        _planted(bench, shape, generator)


def _planted(bench: Workbench, shape: LayerShape, generator: torch.Generator) -> Tensor:
    """One layer's cache, filled; the places [B,Hkv,P]."""
    view, tokens = bench.cache.views[shape.layer], bench.cache.length.tokens
    for rows in (view.k, view.v):
        rows.zero_()
    view.k[:, :, :tokens].normal_(std=KEY_NOISE, generator=generator)
    heads = (shape.batch, shape.kv_heads)
    planted = min(shape.head_dim, tokens)
    noise = torch.rand((*heads, tokens), generator=generator, device=bench.device)
    places = noise.argsort(dim=-1)[..., :planted]
    channels = torch.arange(planted, device=bench.device)
    b, h = (torch.arange(n, device=bench.device) for n in heads)
    view.v[b[:, None, None], h[None, :, None], places, channels] = WEIGHT_SHARE * tokens
    return places


def silence_new_tokens(bench: Workbench) -> None:
    """A first row of the inputs whose keys and values are zero."""
    bench.freshen(secrets.randbits(31))
    for _, k, v in bench.tables.split(bench.tables.rows[0]):
        k.zero_()
        v.zero_()
    bench.accept_inputs()


def counted(bench: Workbench, arm: BenchArm, places: Places) -> Influence:
    """One step: the share of planted tokens that shows, against what the arm's witness says."""
    arm.step()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    shown = [
        _shown(tap.out, shape, places.tokens[shape.layer])
        for tap, shape in zip(arm.taps(), bench.tables.shapes, strict=True)
    ]
    declared = arm.witness().get("kept_share")
    if declared is None:
        raise BrokenArm("its witness says nothing of kept_share", reason=Reason.FALSE_WITNESS)
    arm.inspect()
    tokens = bench.cache.length.tokens
    by_layer = [(share * tokens + 1) / (tokens + 1) for share in shown]
    return Influence(
        planted=sum(places.tokens[shape.layer].numel() for shape in bench.tables.shapes),
        counted=fmean(by_layer),
        least=min(by_layer),
        declared=declared,
    )


def _shown(out: Tensor, shape: LayerShape, places: Tensor) -> float:
    """Of the tokens planted in a KV head, the share that shows in any head of its group."""
    planted = places.shape[-1]
    groups = (shape.batch, shape.kv_heads, shape.group, planted)
    shows = (out[:, :, 0, :planted] != 0).reshape(groups).any(dim=2)
    return float(shows.double().mean())
