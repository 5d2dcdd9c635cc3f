"""`attnbench parity`: does every kernel compute what its method says?"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.cli.options import AsJson
from attnbench.cli.tabular import Grid, show
from attnbench.errors import Exit

if TYPE_CHECKING:
    import torch

    from attnbench.measure.reporter import Reporter
    from attnbench.methods.base import Method
    from attnbench.methods.conformance import Check

INTERPRETED = (
    "No CUDA GPU: Triton kernels run under its interpreter (TRITON_INTERPRET=1), in float32 and "
    "float16; bfloat16 and graph capture are checked on a GPU alone."
)
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Report:
    """All checks of one method."""

    method: str
    checks: Sequence[Check]
    seconds: float

    def count(self, outcome: str) -> int:
        """How many checks ended so ("passed", "FAILED", "skipped")."""
        return sum(check.outcome == outcome for check in self.checks)

    def worst_parity(self, dtype: str) -> float | None:
        """The largest error against the reference in one dtype; None where none was measured."""
        figures = [
            check.figure
            for check in self.checks
            if check.name.startswith("parity") and check.name.endswith(f" {dtype}")
        ]
        return max((figure for figure in figures if figure is not None), default=None)


def parity(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="METHOD",
            help="name,key=value or file.py:Class or package.module:Class; bare: every method.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All 56 shapes instead of a covering seven.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check methods and their kernels against their float64 references.

    Runs on the CUDA GPU where there is one, else on the CPU with Triton's
    interpreter. Checks every implementation and variant: ragged lengths,
    several appended tokens, full budget, stale rows, permutation, determinism,
    reset, declared bytes and tokens, CUDA graphs.

    Exit codes: 0 every check that ran has passed, 10 one failed, 12 none could
    run, 2 no such method. Skipped checks are shown and never count as passed.

    attnbench parity

    attnbench parity flash_decode int8_kv,impl=torch --full

    attnbench parity my_method.py:MyMethod --json
    """
    device = prepare_device(announce=not as_json)
    chosen = selected(methods or [], device)
    reports = run(chosen, device, full=full, as_json=as_json)
    if as_json:
        typer.echo(json.dumps(as_data(reports, device), ensure_ascii=False))
    else:
        print_reports(reports)
    raise typer.Exit(exit_code(reports))


def prepare_device(*, announce: bool) -> torch.device:
    """The GPU, or the CPU with Triton's interpreter: chosen before any kernel is imported."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ["TRITON_INTERPRET"] = "1"
    if announce:
        typer.echo(INTERPRETED)
    return torch.device("cpu")


def selected(specs: Sequence[str], device: torch.device) -> list[Method]:
    """The methods that were asked for, each in all its implementations; bare: all of them."""
    from attnbench.methods import registry

    if not specs:
        names = registry.names()
        return [m for name in names for m in registry.every_implementation(name, device.type)]
    return [m for spec in specs for m in registry.implementations_of(registry.parse(spec))]


def run(
    methods: Sequence[Method], device: torch.device, *, full: bool, as_json: bool
) -> list[Report]:
    """Check one method after another, with live progress."""
    from rich.console import Console

    from attnbench.report.progress import reporter

    with reporter(Console(stderr=True), json=as_json) as told:
        return [checked(method, device, told, full=full) for method in methods]


def checked(method: Method, device: torch.device, told: Reporter, *, full: bool) -> Report:
    """All checks of one method."""
    from attnbench.methods.conformance import conform

    began = time.monotonic()
    with told.stage(method.label) as stage:
        checks = conform(method, device, quick=not full, progress=stage.update)
    return Report(method.label, checks, time.monotonic() - began)


def exit_code(reports: Sequence[Report]) -> Exit:
    """10 where a check failed, 12 where none ran, else 0."""
    if any(report.count("FAILED") for report in reports):
        return Exit.FALSIFIED
    if not any(report.count("passed") for report in reports):
        return Exit.VOID
    return Exit.DONE


def print_reports(reports: Sequence[Report]) -> None:
    """A line for each method, then what failed and what was skipped and why."""
    show(
        Grid(
            columns=("method", "result", "passed", "failed", "skipped", *DTYPES, "s"),
            rows=[row(report) for report in reports],
            right=frozenset(("passed", "failed", "skipped", *DTYPES, "s")),
            styles={"FAILED": "bold red", "skipped": "yellow", "passed": "green"},
        )
    )
    typer.echo("float32, float16, bfloat16: worst error against float64, relative to a head's norm")
    for report in reports:
        for check in report.checks:
            if check.outcome == "FAILED":
                typer.echo(f"FAILED {report.method}: {described(check)}")
    for line in skipped_lines(reports):
        typer.echo(line)


def row(report: Report) -> tuple[str, ...]:
    """One method's line of the table."""
    counts = tuple(report.count(outcome) for outcome in ("passed", "FAILED", "skipped"))
    result = "FAILED" if counts[1] else "passed" if counts[0] else "skipped"
    errors = (report.worst_parity(dtype) for dtype in DTYPES)
    return (
        report.method,
        result,
        *map(str, counts),
        *("-" if error is None else f"{error:.1e}" for error in errors),
        f"{report.seconds:.1f}",
    )


def described(check: Check) -> str:
    """A check with its figure, its bound and what it says."""
    if check.figure is None:
        return f"{check.name}: {check.detail}"
    return f"{check.name}: {check.figure:.3g}, at most {check.bound:.3g} is right; {check.detail}"


def skipped_lines(reports: Sequence[Report]) -> list[str]:
    """Each reason to skip once, with how many checks of which methods it skipped."""
    where: dict[str, dict[str, int]] = {}
    for report in reports:
        for check in report.checks:
            if check.outcome == "skipped":
                counts = where.setdefault(check.detail, {})
                counts[report.method] = counts.get(report.method, 0) + 1
    return [
        f"skipped, {sum(counts.values())} checks of {named(list(counts))}: {reason}"
        for reason, counts in where.items()
    ]


def named(methods: Sequence[str]) -> str:
    """A few methods by name, more by number."""
    return ", ".join(methods) if len(methods) <= 3 else f"{len(methods)} methods"


def as_data(reports: Sequence[Report], device: torch.device) -> dict[str, Any]:
    """The reports for machines; a figure that is not finite is text, which JSON can hold."""
    return {
        "device": device.type,
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
        "exit_code": int(exit_code(reports)),
        "methods": [
            {
                "method": report.method,
                "seconds": round(report.seconds, 3),
                "checks": [
                    {
                        "name": check.name,
                        "outcome": check.outcome.lower(),
                        "figure": plain(check.figure),
                        "bound": check.bound,
                        "detail": check.detail,
                    }
                    for check in report.checks
                ],
            }
            for report in reports
        ],
    }


def plain(figure: float | None) -> float | str | None:
    """A figure as JSON can hold it."""
    return figure if figure is None or math.isfinite(figure) else str(figure)
