"""`attnbench quality --train`: schemes judged by models that are trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attnbench.cli.common import console, require_appendable
from attnbench.errors import UsageError

if TYPE_CHECKING:
    from attnbench.ledger import Ledger
    from attnbench.measure.scratch_plan import TrainRequest
    from attnbench.measure.scratch_run import Trained


def require_training(**others: object) -> None:
    """Options of training mean nothing without it."""
    given = _given(others)
    if given:
        raise UsageError(
            f"{', '.join(given)} without --train", hint="add --train, or leave them out"
        )


def refuse_gates(**others: object) -> None:
    """Options of the gates mean nothing beside training."""
    given = _given(others)
    if given:
        raise UsageError(
            f"--train trains models of its own, without {', '.join(given)}",
            hint="run the command twice",
        )


def _given(options: dict[str, object]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name, value in options.items() if value]


def train_from_scratch(request: TrainRequest, path: Path, *, plan: bool, as_json: bool) -> None:
    """Plan, train, judge, record and print; leaves with the exit code of the best candidate."""
    from attnbench.ledger import Ledger

    book = Ledger(path)
    require_appendable(book)
    if plan:
        _show_plan(request, as_json=as_json)
        return
    trained, leads = _trained(request, book, as_json=as_json)
    if leads:
        _show(trained, path, as_json=as_json)
    from attnbench.protocol.training import training_exit

    raise typer.Exit(int(training_exit(trained.results)))


def _trained(request: TrainRequest, book: Ledger, *, as_json: bool) -> tuple[Trained, bool]:
    from rich.console import Console

    from attnbench.measure.judge import Judge
    from attnbench.measure.scratch_plan import plan_training
    from attnbench.measure.scratch_run import Trainer
    from attnbench.quality.scratch_ranks import Ranks
    from attnbench.report.progress import reporter

    leads = Ranks.here().first
    with reporter(Console(stderr=True), json=as_json or not leads) as report:
        judge = Judge()
        plan = plan_training(request)
        report.note(
            f"{plan.models} models of preset {plan.recipe.name}, {plan.recipe.steps} steps each, "
            f"on {plan.facts.name}"
        )
        trainer = Trainer(plan, book, report, unchanged=judge.require_unchanged)
        return trainer.train(), leads


def _show_plan(request: TrainRequest, *, as_json: bool) -> None:
    from attnbench.measure.scratch_plan import plan_training
    from attnbench.report.scratch_table import training_plan_json, training_plan_table

    plan = plan_training(request)
    if as_json:
        typer.echo(training_plan_json(plan))
    else:
        console().print(training_plan_table(plan))


def _show(trained: Trained, path: Path, *, as_json: bool) -> None:
    from attnbench.report.scratch_table import training_json, training_table

    if as_json:
        typer.echo(training_json(trained))
        return
    console().print(training_table(trained))
    typer.echo(f"recorded as run {trained.run} in {path}")
