"""A clock, a probe and arms that only write down what was asked of them, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from attnbench.measure.clock import Timing
from attnbench.measure.events import Kept, Mark, Pick, Wanted


@dataclass
class Log:
    """What ran, in order."""

    entries: list[str] = field(default_factory=list)

    def add(self, entry: str) -> None:
        self.entries.append(entry)


@dataclass
class SimulatedArm:
    """A step takes `step_us` of simulated time; `faults`: the n-th inspection raises."""

    label: str
    log: Log
    step_us: float = 1000.0
    faults: dict[int, Exception] = field(default_factory=dict)
    inspections: int = 0
    period: ClassVar[int] = 1

    def step(self) -> float:
        return self.step_us

    def kept(self) -> str:
        return self.label

    def inspect(self, *, thoroughly: bool = False, given: bool = True) -> None:
        self.log.add(f"inspect {self.label}")
        self.inspections += 1
        if self.inspections in self.faults:
            raise self.faults[self.inspections]

    def witness(self) -> dict[str, float]:
        return {"kept_share": 1.0}

    def read_bytes(self) -> int:
        return 1024

    def kernels(self) -> tuple[str, ...]:
        return (f"kernel of {self.label}",)

    def unnamed(self) -> str:
        return ""


@dataclass
class SimulatedClock:
    """Believes what a step returns, in microseconds."""

    log: Log
    now_us: float = 0.0

    def time(self, step: Callable[[], object], count: int) -> Timing:
        steps_us = tuple(float(step()) for _ in range(count))
        self.now_us += sum(steps_us)
        self.log.add(f"time {step.__self__.label} x{count}")
        return Timing(steps_us, sum(steps_us))


@dataclass
class SimulatedProbe:
    """A GPU whose temperature is the number of times it was read."""

    log: Log
    reads: int = 0

    def read(self) -> dict[str, float | int | str]:
        self.reads += 1
        self.log.add("probe")
        return {"temperature_c": self.reads}


@dataclass
class SimulatedInputs:
    """Inputs that nobody reads."""

    log: Log

    def freshen(self, seed: int) -> None:
        self.log.add(f"freshen {seed}")

    def vary(self, seed: int) -> None:
        self.log.add(f"vary {seed}")

    def hold(self) -> None:
        self.log.add("hold")


@dataclass
class SimulatedGuard:
    """A process that arms change when they are told to: `faults` by number of the look."""

    faults: dict[int, Exception] = field(default_factory=dict)
    looks: int = 0
    thorough: int = 0

    def require_unchanged(self, *, thoroughly: bool = True) -> None:
        self.looks += 1
        self.thorough += thoroughly
        if self.looks in self.faults:
            raise self.faults[self.looks]


@dataclass
class Muted:
    """A worker's words, kept; every question is answered with the first visit of each arm."""

    told: list[tuple[int, int, str]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # kinds, in order

    def progress(self, done: int, total: int, detail: str) -> None:
        self.said.append("progress")
        self.told.append((done, total, detail))

    def mark(self, mark: Mark) -> None:
        self.said.append("mark")
        self.marks.append(mark)

    def ask(self, kept: Kept) -> Wanted:
        return Wanted(
            picks=tuple(
                Pick(arm=arm, visit=0, layer=layer)
                for arm in kept.visits
                for layer in range(kept.layers)
            )
        )
