"""K and V that an arm keeps where it does not say make its memory VOID, and declared ones do not.

Where attention is timed, the same cheats are told by the bytes that they say they read.
"""

from __future__ import annotations

from functools import cache

import msgspec
import pytest

from attnbench.measure.answers import MemoryFigures
from attnbench.measure.supervisor import run_task
from attnbench.measure.tasks import LayerFacts, MemoryTask
from attnbench.protocol.cell import Arm, Role
from attnbench.protocol.memory import HOST_BYTES, MemoryOutcome, memory_verdict
from tests.evil.catalogue import CHEATS, Trace
from tests.evil.court import BASELINE, CPU

LONGEST_S = 120.0  # that a worker may say nothing
# Three layers whose cache is larger than what a process may gain without keeping anything.
LAYERS = tuple(
    LayerFacts(layer=n, heads=8, kv_heads=4, head_dim=64, scale=0.125, window=None)
    for n in range(3)
)
BENCH = msgspec.structs.replace(CPU, context=2047)
HIDING = [
    cheat
    for cheat in CHEATS
    if cheat.trace is Trace.STATE and not cheat.needs_cuda and "KeepsElsewhere" in cheat.spec
]
TWINS = sorted({c.twin for c in CHEATS if c.trace is Trace.STATE and not c.needs_cuda})


@cache
def figures() -> dict[str, MemoryFigures]:
    """Of SDPA and all of them, each in a process of its own."""
    specs = (BASELINE, *(cheat.spec for cheat in HIDING), *TWINS)
    arms = tuple(Arm(label=spec, method=spec, role=Role.CANDIDATE) for spec in specs)
    task = MemoryTask(bench=msgspec.structs.replace(BENCH, arms=arms), layers=LAYERS)
    return run_task(task, lambda _: None, LONGEST_S).arms


def reason(spec: str) -> str:
    """Why its memory is VOID; empty where it is not."""
    own, base = figures()[spec], figures()[BASELINE]
    found = memory_verdict(
        baseline_bytes=base.reachable_bytes,
        reachable_saving=base.reachable_bytes - own.reachable_bytes,
        allocated_saving=base.allocated_bytes - own.allocated_bytes,
        host_bytes=own.host_bytes - base.host_bytes,
    )
    return found.reason.value if found.verdict is MemoryOutcome.VOID else ""


@pytest.mark.parametrize("spec", [cheat.spec for cheat in HIDING])
def test_what_is_hidden_is_found(spec):
    assert figures()[BASELINE].reachable_bytes > 2 * HOST_BYTES
    assert reason(spec) == "hidden-state"


@pytest.mark.parametrize("spec", TWINS)
def test_what_is_declared_is_no_offence(spec):
    assert reason(spec) == ""
