"""Results of simulated runs, as the table gets them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console, RenderableType

from attnbench.ledger import Ledger
from attnbench.measure.chosen import PilotArm, pilot_alone
from attnbench.measure.conductor import Conductor
from attnbench.measure.evidence import Evidence
from attnbench.measure.plan import Plan
from attnbench.measure.verdicts import arm_results
from attnbench.protocol.cell import Cell
from attnbench.protocol.result import ArmResult
from tests.measure.fake_workers import FakeWorkers, NoteTaker
from tests.measure.planned import plan


def results(workers: FakeWorkers, described: Plan | None = None) -> tuple[ArmResult, ...]:
    return arm_results(_evidence(workers, described))


def alone(workers: FakeWorkers, described: Plan | None = None) -> dict[Cell, tuple[PilotArm, ...]]:
    return pilot_alone(_evidence(workers, described))


def _evidence(workers: FakeWorkers, described: Plan | None) -> Evidence:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        return Conductor(described or plan(), ledger, NoteTaker(), run=workers).conduct()


def printed(renderable: RenderableType, width: int) -> list[str]:
    """The lines of it, as on a pipe of that width."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().splitlines()
