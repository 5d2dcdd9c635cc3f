"""Results with the verdicts and figures that a test is about."""

from __future__ import annotations

from attnbench.protocol.cell import Cell, Mode, Role, Scope
from attnbench.protocol.result import ArmResult, Interval, Verdicts

CELL = Cell(
    model="embedded",
    context=512,
    batch=1,
    dtype="float32",
    scope=Scope.STEP,
    mode=Mode.EAGER,
    device="cpu",
)


def interval(speed_up: float, half_width: float = 0.01) -> Interval:
    """Of a ratio, symmetric."""
    return Interval(
        estimate=speed_up, low=speed_up - half_width, high=speed_up + half_width, level=0.95
    )


def result(
    latency: str = "FASTER",
    quality: str = "PASS",
    memory: str = "EQUIVALENT",
    role: Role = Role.CANDIDATE,
    speed_up: float = 1.0,
    reason: str = "",
) -> ArmResult:
    """A result in `CELL`."""
    return ArmResult(
        run="r",
        cell=CELL,
        arm="c",
        method="c",
        family="approximate",
        role=role,
        source_sha256="",
        baseline="a",
        verdict=Verdicts(
            latency=latency,
            latency_reason=reason,
            quality=quality,
            quality_reason="",
            memory=memory,
            memory_reason="",
            next_step="what to do",
        ),
        protocol={},
        environment={},
        ratio=interval(speed_up),
        robust_ratio=interval(speed_up),
    )
