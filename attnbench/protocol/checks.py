"""What makes no sense in a protocol file although every key of it is right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

from attnbench.errors import UsageError
from attnbench.protocol.bands import DEFAULT_BANDS, Gate
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.claim import Direction, Reach
from attnbench.protocol.decided import STRONGEST
from attnbench.protocol.document import (
    OF_QUALITY,
    CellPart,
    ClaimPart,
    ControlPart,
    DecisionPart,
    GatePart,
    PublishPart,
    Quantity,
    Rule,
    SchedulePart,
    claim_of,
    one_sided,
    schedule_of,
    set_parts,
)
from attnbench.protocol.presets import FEWEST_SESSIONS
from attnbench.protocol.strict import Problem, nearest

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PASSES = {"pass_from": 0, "pass_to": 1}
KILLS = {"kill_below": 0, "kill_above": 1}


def senseless(found: Mapping[str, Any]) -> list[Problem]:
    """Problems of the fields that could be read; each rule looks only at what is there."""
    return [problem for rule in RULES for problem in rule(found)]


def _id(found: Mapping[str, Any]) -> Iterator[Problem]:
    id = found.get("id")
    if id is not None and not ID.fullmatch(id):
        yield Problem("id", f"{id!r} has other characters than letters, digits, dot, dash and _")


def _claim(found: Mapping[str, Any]) -> Iterator[Problem]:
    claim: ClaimPart | None = found.get("claim")
    if claim is None:
        return
    try:
        claim_of(claim, gpu="one", model="one")
    except UsageError as error:
        yield Problem("claim", error.message)
    if claim.quantity is not Quantity.ORDER_EFFECT and not claim.arm:
        yield Problem("claim.arm", "is missing: of which of the arms is this claimed?")


def _arms(found: Mapping[str, Any]) -> Iterator[Problem]:
    claim, arms, control = (found.get(name) for name in ("claim", "arms", "control"))
    if claim is None or arms is None:
        return
    if len(set(arms)) < len(arms):
        yield Problem("arms", "an arm is named twice")
    if claim.quantity is Quantity.ORDER_EFFECT:
        yield from _order_effect(found, claim)
        return
    yield from _required(found, arms)
    named = {"claim.arm": claim.arm}
    if isinstance(control, ControlPart):
        named["control.arm"] = control.arm
        if control.arm == claim.arm:
            yield Problem("control.arm", "the arm of the claim cannot be its own control")
        if control.direction is Direction.ABOUT:
            yield Problem("control.direction", "a control is at-least or at-most something")
    elif "control" in found:
        yield Problem("control", "is missing: name an arm whose effect is known")
    for where, arm in named.items():
        if arm and arm not in arms:
            near = nearest(arm, arms) if arms else "; there are none"
            yield Problem(where, f"{arm!r} is not among arms{near}")


def _required(found: Mapping[str, Any], arms: Sequence[str]) -> Iterator[Problem]:
    """What has to be so of an arm."""
    for number, part in enumerate(found.get("require") or (), start=1):
        where = f"require {number}"
        if part.arm not in arms:
            near = nearest(part.arm, arms) if arms else "; there are none"
            yield Problem(f"{where}.arm", f"{part.arm!r} is not among arms{near}")
        if part.quantity not in OF_QUALITY or found["claim"].quantity not in OF_QUALITY:
            known = ", ".join(each.value for each in Quantity if each in OF_QUALITY)
            yield Problem(where, f"goes with quantities of the quality gates: {known}")
        if part.least > part.greatest or (part.least, part.greatest) == (-inf, inf):
            yield Problem(where, "limits nothing: `least`, `greatest` or both, in that order")


def _of_quality(found: Mapping[str, Any]) -> Iterator[Problem]:
    """Nothing is timed: what is about time has no place."""
    claim: ClaimPart | None = found.get("claim")
    if claim is None or claim.quantity not in OF_QUALITY:
        return
    reason = f"{claim.quantity.value} is of the quality gates, which time nothing"
    if found.get("baseline", STRONGEST) != STRONGEST:
        yield Problem("baseline", f"leave it out: {reason}")
    if not found.get("quality", True):
        yield Problem("quality", f"cannot be false: {claim.quantity.value} is of its gates")
    if found.get("gates"):
        yield Problem("gates", "leave it out: the claim's own bound decides, and no band")
    for part, may_change in (("schedule", ("preset", "seed")), ("decision", ("rule",))):
        for key, _ in set_parts(found[part]) if part in found else ():
            if key not in may_change:
                yield Problem(f"{part}.{key}", f"leave it out: {reason}")
    for number, cell in enumerate(found.get("cell") or (), start=1):
        if (cell.scope, cell.mode, cell.batch) != (Scope.STEP, Mode.EAGER, 1):
            yield Problem(f"cell {number}", f"scope step, mode eager and batch 1: {reason}")
        if cell.model.startswith("preset:"):
            yield Problem(f"cell {number}.model", "random weights show nothing of quality")


def _order_effect(found: Mapping[str, Any], claim: ClaimPart) -> Iterator[Problem]:
    """It is measured on one method, which the harness chooses, with a control of its own."""
    reason = "an order effect is measured on one method, with blocks as its control"
    if found["arms"] or claim.arm:
        yield Problem("claim.arm" if claim.arm else "arms", f"leave it out: {reason}")
    if isinstance(found.get("control"), ControlPart):
        yield Problem("control", f"leave it out: {reason}")
    if found.get("baseline", STRONGEST) != STRONGEST:
        yield Problem("baseline", f"leave it out: {reason}")
    changed = [
        f"{part}.{key}"
        for part, may_change in (
            ("schedule", ("preset", "seed", "sessions")),
            ("decision", ("rule", "aa_level", "equivalence_margin")),
        )
        if part in found
        for key, _ in set_parts(found[part])
        if key not in may_change
    ]
    for where in changed:
        yield Problem(where, "leave it out: of an order effect's schedule only sessions can change")
    if claim.keeps_quality:
        yield Problem("claim.keeps_quality", "nothing is changed, so quality says nothing here")


def _cells(found: Mapping[str, Any]) -> Iterator[Problem]:
    cells: tuple[CellPart, ...] | None = found.get("cell")
    if cells is None:
        return
    if not cells:
        yield Problem("cell", "there is none: write [[cell]]")
    if len(set(cells)) < len(cells):
        yield Problem("cell", "a cell is there twice")
    for number, cell in enumerate(cells, start=1):
        for key, what in _cell(cell):
            yield Problem(f"cell {number}.{key}", what)


def _cell(cell: CellPart) -> Iterator[tuple[str, str]]:
    if cell.mode is not Mode.EAGER and cell.device == "cpu":
        yield "mode", f"{cell.mode.value} needs a CUDA GPU, and device is cpu"
    if cell.mode is Mode.COMPILED and cell.scope is Scope.ATTENTION:
        yield "mode", "scope attention has nothing to compile: use graph"
    if cell.gpu and cell.device == "cpu":
        yield "gpu", "device is cpu"


def _claim_in_cells(found: Mapping[str, Any]) -> Iterator[Problem]:
    claim, cells, decision = (found.get(name) for name in ("claim", "cell", "decision"))
    if claim is None or not cells or decision is None:
        return
    deciding = cells if decision.rule is Rule.EVERY else cells[:1]
    if claim.reach is Reach.THIS_GPU and not all(cell.gpu for cell in deciding):
        yield Problem("cell.gpu", "is missing: a claim of this-gpu names it in each deciding cell")
    if claim.quantity is Quantity.ORDER_EFFECT and len(cells) > 1:
        yield Problem("cell", "an order effect is measured in one cell")
    random = [cell.model for cell in deciding if cell.model.startswith("preset:")]
    if claim.keeps_quality and random:
        yield Problem("claim.keeps_quality", f"{random[0]} has random weights, which show nothing")
    if claim.keeps_quality and not found.get("quality", True):
        yield Problem("claim.keeps_quality", "quality is false, so nobody will see it kept")


def _schedule(found: Mapping[str, Any]) -> Iterator[Problem]:
    schedule: SchedulePart | None = found.get("schedule")
    decision: DecisionPart | None = found.get("decision")
    if schedule is None or decision is None:
        return
    try:
        protocol = schedule_of(schedule, decision, deciding=1)
    except UsageError as error:
        yield Problem("schedule", f"{error.message}{'; ' if error.hint else ''}{error.hint}")
        return
    if protocol.sessions < FEWEST_SESSIONS:
        few = f"{protocol.sessions} of {FEWEST_SESSIONS}"
        yield Problem("schedule.sessions", f"too few to decide anything: {few}")


def _gates(found: Mapping[str, Any]) -> Iterator[Problem]:
    return gate_problems(found.get("gates", {}))


def gate_problems(gates: Mapping[str, GatePart]) -> Iterator[Problem]:
    """What is wrong with other bands, by the name of their gate."""
    may_change = [gate.value for gate in DEFAULT_BANDS if not gate.value.startswith("non-")]
    for name, part in gates.items():
        if name not in may_change:
            yield Problem(
                f"gates.{name}", f"no gate with bands is called so{nearest(name, may_change)}"
            )
            continue
        for key, what in _gate(Gate(name), part):
            yield Problem(f"gates.{name}{key}", what)


def _gate(gate: Gate, part: GatePart) -> Iterator[tuple[str, str]]:
    default = DEFAULT_BANDS[gate][0]
    for key, side in (PASSES | KILLS).items():
        if isinstance(getattr(part, key), float) and not one_sided(default)[side]:
            yield f".{key}", f"{default.figure} has no limit on that side"
    bands = part.over(default)
    low, high = bands.passes
    least, most = bands.lives
    if not least <= low <= high <= most:
        yield "", "what passes must lie within what is not killed"


def _publish(found: Mapping[str, Any]) -> Iterator[Problem]:
    publish: PublishPart | None = found.get("publish")
    if publish is not None and publish.if_holds == publish.if_fails:
        yield Problem("publish", "the same text whether it holds or fails says nothing")


RULES: tuple[Callable[[Mapping[str, Any]], Iterator[Problem]], ...] = (
    _id,
    _claim,
    _arms,
    _cells,
    _claim_in_cells,
    _of_quality,
    _schedule,
    _gates,
    _publish,
)
