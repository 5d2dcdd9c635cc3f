"""What is measured, as data: cells, arms, visits and the raw samples of a session."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Scope(StrEnum):
    """How much of a decode step is timed."""

    STEP = "step"  # the whole decode step
    ATTENTION = "attention"  # attention of the model's layers alone


class Mode(StrEnum):
    """How the step is launched; each mode is a cell of its own."""

    EAGER = "eager"
    GRAPH = "graph"  # captured in a CUDA graph
    COMPILED = "compiled"  # decoder layers compiled, then captured: of whole steps alone


class Role(StrEnum):
    """Why an arm is in the run."""

    BASELINE = "baseline"  # A
    BASELINE_AGAIN = "baseline_again"  # A', the same method: the run's own control
    CANDIDATE = "candidate"
    CONTROL = "control"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One place where arms are compared; `device` names the GPU or CPU, `context` is in tokens."""

    model: str
    context: int
    batch: int
    dtype: str
    scope: Scope
    mode: Mode
    device: str


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """A method in one run: `label` is unique in the run, `method` is what the registry parses."""

    label: str
    method: str
    role: Role


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """One arm's turn in a block: what the clock said of its timed steps."""

    arm: str
    group: int
    block: int
    position: int
    steps_us: tuple[float, ...]  # each timed step, microseconds
    wall_us: float  # host clock around the timed steps
    gpu: dict[str, float | int | str]  # GPU state after the visit; empty where there is none
    untimed_steps: int = 0  # run right before the timed ones, a number drawn for each visit
    parent_us: float = 0.0  # the parent's clock around the timed steps; 0 where it did not look


class SessionSamples(msgspec.Struct, frozen=True, kw_only=True):
    """All that one session process measured, and nothing that was computed from it."""

    session: int
    seed: int
    warmup_us: dict[str, tuple[float, ...]]  # by arm label
    visits: tuple[Visit, ...]
    bandwidth_gb_s: float  # measured in this session: device memory, or host memory on a CPU
    witness: dict[str, dict[str, float]]  # by arm label
    environment: dict[str, str | int | float]
    kernels: dict[str, tuple[str, ...]] = {}  # names launched by one step, in order, by arm label
