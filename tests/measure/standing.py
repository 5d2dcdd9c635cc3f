"""A bench with a tiny model, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import msgspec

from attnbench.measure.tasks import Bench, CellPlan, Fill, StepCounts
from attnbench.measure.workbench import Workbench, torch_dtype
from attnbench.models.adapter import attention_router
from attnbench.protocol.cell import Arm, Mode, Role, Scope
from attnbench.protocol.schedule import schedule
from tests.models.tiny import VOCAB, loaded

STEPS = StepCounts(warmup_steps=16, untimed_steps=1, timed_steps=2, min_visit_ms=0.0)
CPU = Bench(
    model="tiny",
    dtype="float32",
    device="cpu",
    context=24,
    batch=2,
    arms=(),
    fill=Fill.SYNTHETIC,
    seed=5,
    threads=1,
)


def arm(method: str, label: str = "") -> Arm:
    """A candidate; a bare class name is one of `tests.measure.broken`."""
    spec = f"tests.measure.broken:{method}" if method[0].isupper() else method
    return Arm(label=label or method, method=spec, role=Role.CANDIDATE)


def with_arms(*methods: str, bench: Bench = CPU) -> Bench:
    return msgspec.structs.replace(bench, arms=tuple(arm(method) for method in methods))


def cell(bench: Bench, scope: Scope = Scope.STEP, mode: Mode = Mode.EAGER) -> CellPlan:
    """Two groups of two blocks of all arms."""
    labels = [each.label for each in bench.arms]
    plan = schedule(labels, sessions=1, blocks=4, groups=2, seed=bench.seed)
    return CellPlan(scope=scope, mode=mode, schedule=plan.sessions[0])


class Words:
    """A tokenizer: one token a word."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [3 + len(word) % (VOCAB - 3) for word in text.split()]}


@contextmanager
def standing(bench: Bench, architecture: str = "llama") -> Iterator[Workbench]:
    """A bench over one of the tiny architectures."""
    model = replace(loaded(architecture), tokenizer=Words())
    model.module.to(bench.device, torch_dtype(bench))
    with attention_router(model.module) as router, ExitStack() as to_the_end:
        yield Workbench(bench, model, router, to_the_end)
