"""Timed steps against the method's own definition, after the fact.

What a step was given and returned was kept; the definition is computed from the run's own cache, in
float64. The parent has picked the steps, all timing being over.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attnbench.errors import SessionLost
from attnbench.measure.events import Doing, Mark, Pick, Talk, Wanted
from attnbench.measure.failing import failure_of, recover
from attnbench.measure.taps import KeptStep, Tap, WholeStep, fetched
from attnbench.measure.visits import Walk
from attnbench.measure.workbench import Workbench
from attnbench.measure.world import World
from attnbench.methods.base import LayerShape, Method
from attnbench.methods.registry import parse
from attnbench.protocol.cell import Mode
from attnbench.protocol.integrity import REST_OF_STEP, StepCheck

MOST = sys.float_info.max  # as JSON has no infinity


def rechecked(
    bench: Workbench, mode: Mode, walk: Walk, wanted: Wanted, talk: Talk, world: World
) -> dict[str, tuple[StepCheck, ...]]:
    """The picked steps of every arm, by label; an arm whose definition raises is dropped."""
    found: dict[str, list[StepCheck]] = defaultdict(list)
    for arm in bench.bench.arms:
        picks = [pick for pick in wanted.picks if pick.arm == arm.label]
        if not picks:
            continue
        talk.mark(Mark(arm=arm.label, doing=Doing.PROBED, cell=0))
        try:
            method = parse(arm.method).resolved(bench.device)
            found[arm.label] += _picked(bench, mode, method, walk.kept[arm.label], picks)
            world.require_unchanged(thoroughly=False)
            bench.require_intact()
        except SessionLost:
            raise
        except Exception as error:  # noqa: BLE001 - a method under test may raise anything
            walk.drop(arm.label, failure_of(error, "checks", world))
            found.pop(arm.label, None)
        if arm.label in walk.failures:
            recover(arm.label, walk.failures[arm.label], bench.reclaim)
    return {label: tuple(checks) for label, checks in found.items()}


def _picked(
    bench: Workbench, mode: Mode, method: Method, kept: Sequence[KeptStep], picks: Sequence[Pick]
) -> Iterator[StepCheck]:
    shapes = bench.tables.shapes
    taps = [(pick.visit, shapes[pick.layer], kept[pick.visit].taps[pick.layer]) for pick in picks]
    yield from checked(bench, method, taps)
    for visit in dict.fromkeys(pick.visit for pick in picks if pick.layer == 0):
        step = kept[visit].step
        if step is not None:
            yield _rest_checked(bench, mode, kept[visit].taps, step, visit)


@torch.no_grad()
def checked(
    bench: Workbench, method: Method, taps: Sequence[tuple[int, LayerShape, Tap]]
) -> tuple[StepCheck, ...]:
    """Steps of single layers, each of a visit, against what the method is, over the bench's cache
    as it is now. A GPU is asked for all of them before one is waited for."""
    rights = fetched([_defined(bench, method, shape, tap) for _, shape, tap in taps])
    checks = []
    for (visit, shape, tap), right in zip(taps, rights, strict=True):
        error, worst_head = errors(tap.out, right)
        layer = shape.layer
        checks.append(StepCheck(visit=visit, layer=layer, error=error, worst_head=worst_head))
    return tuple(checks)


def _defined(bench: Workbench, method: Method, shape: LayerShape, tap: Tap) -> Tensor:
    """What the method's definition gives, in float64."""
    layer = method.reference_layer(shape)
    layer.prefill(bench.cache.views[shape.layer])
    right = layer.decode(*(each.to(bench.device) for each in (tap.q, tap.k, tap.v)))
    layer.reset()
    return right.to(torch.float64, copy=True)  # it may lie where the next one will


def _rest_checked(
    bench: Workbench, mode: Mode, taps: Sequence[Tap], step: WholeStep, visit: int
) -> StepCheck:
    """What is not attention: the model once more, with the outputs that its attention gave.

    An arm that touches a module between two of its calls shows here, and nowhere else.
    """
    outputs = {s.layer: tap.out for s, tap in zip(bench.tables.shapes, taps, strict=True)}
    right = bench.logits_given(step.tokens, step.places, outputs, mode).double().cpu()
    error = _relative((step.logits.double() - right).norm(), right.norm())
    return StepCheck(visit=visit, layer=REST_OF_STEP, error=error, worst_head=error)


def errors(out: Tensor, right: Tensor) -> tuple[float, float]:
    """Relative L2 of an output [B,H,1,D]: of all heads together, and of the worst head.

    `MOST` where anything is no number, and where what is not zero should be.
    """
    apart = (out.double() - right).norm(dim=-1)
    size = right.norm(dim=-1)
    return _relative(apart.norm(), size.norm()), _relative(apart, size)


def _relative(apart: Tensor, size: Tensor) -> float:
    """The largest quotient; where both are zero, what should be zero is."""
    quotients = torch.where(apart == 0, 0.0, apart / size)
    return float(quotients.nan_to_num(nan=MOST, posinf=MOST).max())
