"""What a calibration will run: its request, its arms, and how long that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from attnbench.errors import UsageError
from attnbench.measure.answers import PilotResult
from attnbench.measure.chosen import fastest_exact
from attnbench.measure.estimate import minutes
from attnbench.measure.injected import (
    PERCENTS,
    full_layers,
    injected_by,
    label_of,
    median_step_us,
)
from attnbench.measure.plan import DecodeRequest, Plan, PlannedArm, plan_decode
from attnbench.measure.tasks import Launch
from attnbench.methods.registry import parse, source_sha256
from attnbench.methods.waiting import Waiting
from attnbench.protocol.calibration import AGAIN, OTHER, SHAM, A, Injected
from attnbench.protocol.cell import Arm, Mode, Role, Scope
from attnbench.protocol.family import Family
from attnbench.protocol.order_effect import ARMS
from attnbench.protocol.presets import Protocol, preset
from attnbench.protocol.result import Promise

# Exact arms of nearly equal speed: the fastest becomes A, of other kernels the nearest becomes X.
CONTENDERS = {
    "cuda": (
        "flash_decode",
        "flash_decode,kernel=split",
        "sdpa",
        "sdpa,backend=flash",
        "sdpa,backend=cudnn",
    ),
    "cpu": ("sdpa", "sdpa_packed"),
}
# One method measured first and second; nothing is chosen, so no pilot is needed.
ONE_METHOD = {"cuda": ("flash_decode",), "cpu": ("sdpa",)}
SESSIONS = {"cuda": 12, "cpu": 6}


class CalibrationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, as the ledger keeps it: a run that goes on reads it there.

    Empty and None leave the choice to the plan. Of each kernel the first `configurations` are
    tried, 0: all. `sessions` are those of the whole run, with what it already has.
    """

    model: str = "embedded"
    ctx: int | None = None
    batch: int = 1
    scope: Scope = Scope.ATTENTION
    mode: Mode | None = None
    protocol: str = "canonical"
    sessions: int | None = None
    dtype: str = ""
    device: str = ""
    configurations: int = 3
    threads: int = 1
    seed: int = 0
    order_effect: bool = False


@dataclass(frozen=True)
class CalibrationPlan:
    """Everything that is fixed before the first worker starts; `cell` has one cell.

    `contenders` are the exact arms of the pilot; for the order effect the one method.
    """

    request: CalibrationRequest
    cell: Plan
    contenders: tuple[Arm, ...]
    sources: Mapping[str, str]

    @property
    def protocol(self) -> Protocol:
        """How each session is measured."""
        return self.cell.request.protocol

    @property
    def minutes(self) -> float:
        """About how long the whole run takes; the order effect measures everything twice."""
        return minutes(self.cell) * (2 if self.request.order_effect else 1)


@dataclass(frozen=True)
class CalibrationArms:
    """The arms of every session, chosen by the pilot once; `layers` attend in full."""

    arms: tuple[Arm, ...]
    kernels: dict[str, Launch]
    injected: tuple[Injected, ...]
    layers: int


def plan_calibration(
    request: CalibrationRequest, promise: Promise | None = None
) -> CalibrationPlan:
    """Decide device, cell, contenders and sessions; raises what `plan_decode` raises."""
    _check(request)
    cell = _cell(request, promise)
    specs = (ONE_METHOD if request.order_effect else CONTENDERS)[cell.device]
    sources = {spec: source_sha256(parse(spec)) for spec in ("waiting", *specs)}
    return CalibrationPlan(
        request=request,
        cell=cell,
        contenders=tuple(
            Arm(label=parse(spec).label, method=spec, role=Role.CANDIDATE) for spec in specs
        ),
        sources=sources,
    )


def _check(request: CalibrationRequest) -> None:
    if request.configurations < 0 or (request.sessions is not None and request.sessions < 1):
        raise UsageError(
            "--sessions is at least 1 and --configurations at least 0",
            hint="leave them out for the defaults",
        )


def _cell(request: CalibrationRequest, promise: Promise | None) -> Plan:
    """The cell as a decode run would plan it, with the arms and sessions of this one."""
    cell = plan_decode(
        DecodeRequest(
            model=request.model,
            protocol=preset(request.protocol),
            context=request.ctx,
            batch=request.batch,
            dtype=request.dtype,
            device=request.device,
            scopes=(request.scope,),
            modes=(request.mode,) if request.mode else (),
            quality=None,
            seed=request.seed,
            threads=request.threads,
            promise=promise,
        )
    )
    sessions = request.sessions or SESSIONS[cell.device]
    protocol = msgspec.structs.replace(cell.request.protocol, sessions=sessions, looks=())
    return replace(
        cell,
        request=replace(cell.request, protocol=protocol),
        arms=_shown(request),
        skipped=(),
    )


def _shown(request: CalibrationRequest) -> tuple[PlannedArm, ...]:
    """The arms as the plan's table and its minutes have them; the pilot says what they run."""
    labels = ARMS if request.order_effect else (A, AGAIN, SHAM, *map(label_of, PERCENTS), OTHER)
    return tuple(PlannedArm(label, "waiting", Family.CONTROL, asked_for=True) for label in labels)


def calibration_arms(pilot: PilotResult) -> CalibrationArms:
    """A and what is like it, what is slower by a known time, and X: all with the same extra kernel.

    A is the fastest exact arm of the pilot and stays it; X is the fastest with another kernel.
    Raises `UsageError` where only one kernel runs.
    """
    full = full_layers(pilot)
    fastest = fastest_exact(pilot, 0)
    other = fastest_of_another_kernel(pilot, fastest)
    injected = injected_by(pilot)

    def waiting(label: str, inner: str, role: Role, wait_us: float = 0.0) -> Arm:
        method = Waiting(
            wait_us=round(wait_us, 3), inner=inner.replace(",", "+"), at_layer=full[-1]
        )
        return Arm(label=label, method=method.label, role=role)

    like_a = (
        waiting(A, fastest, Role.BASELINE),
        waiting(AGAIN, fastest, Role.BASELINE_AGAIN),
        waiting(SHAM, fastest, Role.CANDIDATE),
        *(waiting(each.arm, fastest, Role.CANDIDATE, each.wait_us) for each in injected),
    )
    kernels = {arm.label: launch for arm in like_a if (launch := pilot.arms[fastest].fastest)}
    if (launch := pilot.arms[other].fastest) is not None:
        kernels[OTHER] = launch
    return CalibrationArms(
        arms=(*like_a, waiting(OTHER, other, Role.CANDIDATE)),
        kernels=kernels,
        injected=injected,
        layers=len(full),
    )


def fastest_of_another_kernel(pilot: PilotResult, than: str) -> str:
    """The exact arm with the lowest median of another method than `than`, or of the other kernel
    that this method has."""
    timed = {visit.arm for visit in pilot.session.cells[0].samples.visits}
    own = _kernel(pilot, than)
    others = [label for label in sorted(timed) if _kernel(pilot, label) != own]
    if not others:
        raise UsageError(
            f"only {own[0]} runs here, so there is no A/B pair",
            hint="a context, dtype or device in which two exact methods run",
        )
    return min(others, key=lambda label: median_step_us(pilot, label))


def _kernel(pilot: PilotResult, label: str) -> tuple[str, bool]:
    """The method, and whether its fastest launch is of the ring kernel."""
    arm = pilot.arms[label]
    launch = arm.fastest or {}
    return parse(arm.method).name, bool(launch.get("ring"))
