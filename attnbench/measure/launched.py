"""What a step of attention launches, by name: looked at in a step of its own that is never timed.

On a GPU the kernels of a captured step, as the driver names them, also for an arm that is timed
uncaptured; on a CPU the operators of PyTorch, as its profiler names them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch.profiler import ProfilerActivity, profile

from attnbench.measure.arms import BenchArm
from attnbench.measure.tasks import Launch
from attnbench.measure.workbench import Workbench
from attnbench.protocol.cell import Mode, Scope


@dataclass(frozen=True)
class Launched:
    """How often a step launches each kernel, or calls each operator; or why it is not known."""

    counts: dict[str, int] = field(default_factory=dict)
    unknown: str = ""


def launched(bench: Workbench, ready: BenchArm, method: str, launch: Launch | None) -> Launched:
    """What attention of every layer launches, of an arm that stands in scope attention.

    An arm that cannot be looked at so may be sound all the same.
    """
    try:
        if bench.device.type != "cuda":
            return Launched(_operators(ready))
        if not ready.captured:
            ready = BenchArm(bench, method, launch, Scope.ATTENTION, Mode.GRAPH)
        names = ready.kernels()
    except Exception as error:  # noqa: BLE001 - a method under test may raise anything
        return Launched(unknown=f"{type(error).__name__}: {error}")
    return Launched(dict(sorted(Counter(names).items())), ready.unnamed())


def _operators(ready: BenchArm) -> dict[str, int]:
    # Not by a dispatch mode: torch.compile gives up for good on what it meets under one.
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        ready.attend()
    ready.inspect(thoroughly=True)
    names = (event.name for event in profiled.events() or ())
    return dict(sorted(Counter(name for name in names if "::" in name).items()))
