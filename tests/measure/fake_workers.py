"""Workers that answer at once: sessions of a simulated GPU, memory and quality as told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import msgspec
import numpy as np

from attnbench.measure.answers import (
    ArmPilot,
    Bandwidth,
    CellSamples,
    MemoryFigures,
    MemoryResult,
    PartFailure,
    PilotResult,
    QualityResult,
    SessionResult,
    SweepResult,
    TaskResult,
    TimedLaunch,
)
from attnbench.measure.events import Progress
from attnbench.measure.evidence import AGAIN
from attnbench.measure.tasks import (
    ArmFailure,
    CellPlan,
    FitTask,
    Launch,
    LayerFacts,
    MemoryTask,
    PilotTask,
    ProfileTask,
    QualityTask,
    SessionTask,
    SweepTask,
    Task,
    TaskPart,
)
from attnbench.quality.samples import GateArrays
from tests.calibration.simulated_gpu import BANDWIDTH_GB_S, SimulatedArm
from tests.protocol.samples import QUIET

STEP_US = {
    "sdpa": 1000.0,
    "sdpa,backend=math": 3000.0,
    "eager_repeat_kv": 2000.0,
    "zero_cost": 700.0,
}
KV_BYTES = 100 << 20
SEED = 11
READ_BYTES = 500_000_000  # a quarter of a millisecond at the simulated bandwidth
UNSUPPORTED = ArmFailure(type="Unsupported", message="no kernel", hint="a GPU", during="pilot")


def broke(during: str) -> ArmFailure:
    return ArmFailure(type="IndexError", message="row 7 is out of range", hint="", during=during)


@dataclass
class FakeWorkers:
    """`run_task` without processes. Keys of `faults` and `seen` are the session's number or name.

    `step_us`: an arm's time, 1000 where it has none, and `pilot_us` where the pilot saw another;
    `not_here` and `breaks`: why arms fail in the pilot, and in a session; `unfit`: why parts of a
    sweep do, by name and context; the rest is by label.
    """

    step_us: dict[str, float] = field(default_factory=dict)
    pilot_us: dict[str, float] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)
    launches: dict[str, tuple[Launch, ...]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    not_here: dict[str, ArmFailure] = field(default_factory=dict)
    breaks: dict[tuple[int, str], ArmFailure] = field(default_factory=dict)
    timed_share: dict[str, float] = field(default_factory=dict)
    kv_bytes: dict[str, int] = field(default_factory=dict)
    allocated_bytes: dict[str, int] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)
    null_cosine: float = 0.5
    contrast: dict[str, dict[str, float]] = field(default_factory=dict)  # by place and label
    unfit: dict[tuple[int | str, int], ArmFailure] = field(default_factory=dict)
    own_bytes: dict[str, int] = field(default_factory=dict)
    room_bytes: int = 0
    probe_note: str = ""
    faults: dict[int | str, BaseException] = field(default_factory=dict)
    watch: Callable[[], object] = lambda: None
    tasks: dict[int | str, Task] = field(default_factory=dict)
    results: dict[int | str, TaskResult] = field(default_factory=dict)
    seen: dict[int | str, object] = field(default_factory=dict)

    def __call__(
        self, task: Task, on_event: Callable[[Progress], None], silence_s: float
    ) -> TaskResult:
        assert silence_s > 0
        name = name_of(task)
        self.tasks[name] = task
        self.seen[name] = self.watch()
        on_event(Progress(done=1, total=2, detail=f"step of {name}"))
        if name in self.faults:
            raise self.faults[name]
        self.results[name] = self._result(task)
        return self.results[name]

    def stop(self) -> None:
        """There is no process to end."""

    def _result(self, task: Task) -> TaskResult:
        if isinstance(task, SweepTask):
            return SweepResult(parts=tuple(self._part(part) for part in task.parts))
        if isinstance(task, PilotTask):
            return self._pilot(task)
        if isinstance(task, SessionTask):
            return self._session(task.cells, task.session)
        return self._memory(task) if isinstance(task, MemoryTask) else self._quality(task)

    def _part(self, task: TaskPart) -> TaskResult:
        why = self.unfit.get((name_of(task), task.bench.context))
        return self._result(task) if why is None else PartFailure(why=why)

    def _pilot(self, task: PilotTask) -> PilotResult:
        arms = {
            arm.label: ArmPilot(
                method=arm.label,
                launches=tuple(
                    TimedLaunch(launch=launch, median_us=100.0 + launch["splits"])
                    for launch in self.launches.get(arm.label, ())
                ),
                failure=self.not_here.get(arm.label),
                own_bytes=self.own_bytes.get(arm.label, 0),
                source=self.sources.get(arm.label, ""),
                launched={f"kernel of {arm.label}": 6},
            )
            for arm in task.bench.arms
        }
        layer = LayerFacts(layer=0, heads=4, kv_heads=2, head_dim=64, scale=0.125, window=None)
        session = self._session(task.cells, -1)
        return PilotResult(
            layers=(layer,),
            arms=arms,
            session=session,
            device={"cache_bytes": 0},
            room_bytes=self.room_bytes,
        )

    def _session(self, cells: tuple[CellPlan, ...], number: int) -> SessionResult:
        bandwidth = Bandwidth(
            gb_s=BANDWIDTH_GB_S,
            buffer_bytes=1 << 30,
            reads=1,
            read_us=(500.0,),
            theoretical_gb_s=0.0,
            how="simulated",
            note=self.probe_note,
        )
        return SessionResult(
            cells=tuple(self._cell(cell, number) for cell in cells),
            bandwidth=bandwidth,
            cache_sha256="cd" * 32,
            model_identity="ab" * 32,
            weight_bytes=1,
        )

    def _cell(self, cell: CellPlan, number: int) -> CellSamples:
        labels = sorted({arm for group in cell.schedule.groups for arm in group.capture_order})
        failures = {
            label: self.breaks[number, label] for label in labels if (number, label) in self.breaks
        }
        if number < 0:
            failures |= {label: self.not_here[label] for label in labels if label in self.not_here}
        pilot_us = self.pilot_us if number < 0 else {}
        arms = {label: SimulatedArm(pilot_us.get(label, self._step_us(label))) for label in labels}
        rng = np.random.default_rng((SEED, number + 1))
        samples = QUIET.session(cell.schedule, arms, 5, rng)
        kept = tuple(visit for visit in samples.visits if visit.arm not in failures)
        return CellSamples(
            scope=cell.scope,
            mode=cell.mode,
            samples=msgspec.structs.replace(
                samples,
                visits=kept,
                witness={
                    label: {"kept_share": self.timed_share.get(label, 1.0)}
                    for label in labels
                    if label not in failures
                },
                environment={"threads": 1, "fill": "prefilled"},
            ),
            timed_steps=dict.fromkeys(labels, 5),
            read_bytes={
                label: self.read_bytes.get(label, READ_BYTES)
                for label in labels
                if label not in failures
            },
            failures=failures,
        )

    def _step_us(self, label: str) -> float:
        method = label.removesuffix(AGAIN)
        return self.step_us.get(label, self.step_us.get(method, STEP_US.get(method, 1000.0)))

    def _memory(self, task: MemoryTask) -> MemoryResult:
        return MemoryResult(
            arms={arm.label: self._figures(arm.label) for arm in task.bench.arms}, failures={}
        )

    def _figures(self, label: str) -> MemoryFigures:
        reachable = self.kv_bytes.get(label, KV_BYTES)
        return MemoryFigures(
            reachable_bytes=reachable,
            allocated_bytes=self.allocated_bytes.get(label, reachable),
            allocated_source="simulated",
            prefill_peak_bytes=reachable,
            decode_peak_bytes=reachable,
            peak_source="simulated",
            reserved_bytes=None,
            process_bytes=None,
            process_source="simulated",
            keeps_exact_cache=True,
        )

    def _quality(self, task: QualityTask) -> QualityResult:
        labels = [arm.label for arm in task.bench.arms]
        return QualityResult(
            arms={
                label: gate_samples(self.cosine.get(label, 1.0), self.null_cosine)
                for label in labels
            },
            failures={},
            text_name="a text",
            text_sha256="ef" * 32,
            contrast={
                place: {label: gate_samples(cosine) for label, cosine in arms.items()}
                for place, arms in self.contrast.items()
                if task.counts.contrast
            },
        )


def gate_samples(cosine: float, null_cosine: float = 0.5):
    """Two windows, one layer, four steps, four heads, all alike."""
    per_step = np.full((2, 1, 4, 4), cosine, np.float32)
    one = np.ones((2, 1, 4), np.float32)
    return GateArrays(
        context=np.array([1024]),
        layers=np.array([0]),
        deterministic=np.array([True]),
        cosine=per_step,
        relative_l2=1 - per_step,
        norm_ratio=np.ones_like(per_step),
        kept_share=np.ones((2, 1, 4), np.float32),
        floor_cosine=one,
        floor_relative_l2=np.zeros_like(one),
        null_uniform=one * null_cosine,
    ).pack()


def name_of(task: Task) -> int | str:
    """As the ledger names it."""
    if isinstance(task, SweepTask):
        return name_of(task.parts[0])
    if isinstance(task, SessionTask):
        return task.session
    names = {PilotTask: "pilot", MemoryTask: "memory", QualityTask: "quality", FitTask: "fit"}
    names[ProfileTask] = "profile"
    return names[type(task)]


@dataclass
class NoteTaker:
    """A reporter that writes down what it is told."""

    notes: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    updates: list[tuple[int, int, str]] = field(default_factory=list)

    @contextmanager
    def stage(self, title: str) -> Iterator[Self]:
        self.stages.append(title)
        yield self

    def update(self, done: int, total: int, detail: str = "") -> None:
        self.updates.append((done, total, detail))

    def note(self, text: str) -> None:
        self.notes.append(text)
