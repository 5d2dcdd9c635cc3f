"""What a step of attention launches, by name: looked at in a step of its own that is never timed.

On a GPU the kernels of a captured step, as the driver names them, also for an arm that is timed
uncaptured; on a CPU the operators that reach PyTorch's dispatcher.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.measure.arms import BenchArm
from attnbench.measure.tasks import Launch
from attnbench.measure.workbench import Workbench
from attnbench.protocol.cell import Mode, Scope


@dataclass(frozen=True)
class Launched:
    """How often a step launches each kernel, or calls each operator; or why it is not known."""

    counts: dict[str, int] = field(default_factory=dict)
    unknown: str = ""


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators by name, and lets them run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature is PyTorch's
        del types
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


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
    with Operators() as operators:
        ready.attend()
    ready.inspect(thoroughly=True)
    return dict(sorted(operators.counts.items()))
