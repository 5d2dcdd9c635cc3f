"""`attnbench doctor`: what would spoil a measurement here, and the command that fixes it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli.options import DEFAULT, AsJson, LedgerPath

if TYPE_CHECKING:
    from attnbench.measure.doctor.examine import Examination

WIDTH_WHEN_PIPED = 200


class Device(StrEnum):
    """What may be examined."""

    CUDA = "cuda"
    CPU = "cpu"


def doctor(
    device: Annotated[
        Device | None,
        typer.Option(metavar="DEVICE", help="cuda or cpu.", show_default="cuda if there is one"),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Measure the read bandwidth too; takes up to 4 GiB and some seconds.",
        ),
    ] = False,
    ledger: LedgerPath = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Say what would spoil a measurement on this machine, and the command that fixes it.

    Looks at driver, GPU, clocks, power, throttling, other processes, memory
    errors, kernels, packages, processor, memory and ledger. Changes nothing: the
    commands are yours to run.

    Exit codes: 0 a measurement here counts (there may be warnings, and things
    that this machine does not tell), 12 it would be void or would not come
    about, 13 the ledger is broken, 1 an error, 2 wrong usage, 130 interrupted.

    Examples:

    attnbench doctor

    attnbench doctor --probe

    attnbench doctor --device cpu --json

    attnbench doctor && attnbench decode
    """
    examination = examine(device.value if device else "", ledger, probe=probe, as_json=as_json)
    show(examination, as_json=as_json)
    raise typer.Exit(examination.exit_code)


def examine(device: str, ledger: Path, *, probe: bool, as_json: bool) -> Examination:
    """Ask everything; torch and a kernel take seconds, so something is said meanwhile."""
    from rich.console import Console

    from attnbench.measure.doctor.examine import Examiner
    from attnbench.report.progress import reporter

    with reporter(Console(stderr=True), json=as_json) as told, told.stage("examining"):
        return Examiner(ledger, probe).examine(device)


def show(examination: Examination, *, as_json: bool) -> None:
    """Print the findings, grouped by gravity, or as JSON."""
    from rich.console import Console

    from attnbench.report.doctor_table import examination_json, print_examination

    if as_json:
        typer.echo(examination_json(examination))
        return
    console = Console()
    print_examination(
        console if console.is_terminal else Console(width=WIDTH_WHEN_PIPED), examination
    )
