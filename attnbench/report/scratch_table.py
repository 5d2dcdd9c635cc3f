"""The table of models trained from scratch: perplexity by context, and how far from the best."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import UNSET
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.measure.scratch_plan import TrainPlan
from attnbench.measure.scratch_run import Trained
from attnbench.protocol.cell import Role
from attnbench.protocol.training import LEVEL, OVERFIT, ArmTraining
from attnbench.report.words import ABSENT

STYLES = {"PASS": "green", "MARGINAL": "yellow", "KILL": "red"}


def training_table(trained: Trained) -> RenderableType:
    """One row an arm, the best baseline and the best candidate marked, and what it rests on."""
    first = trained.results[0]
    contexts = list(first.perplexity or next((r.perplexity for r in trained.results), {}))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "role", "parameters"):
        table.add_column(column, justify="left" if column != "parameters" else "right")
    for context in contexts:
        table.add_column(f"ppl {context}", justify="right")
    for column in ("over the best baseline", f"{LEVEL:.0%} interval", "verdict", "because"):
        table.add_column(column)
    for result in trained.results:
        table.add_row(*_row(result, trained, contexts))
    title = (
        f"{first.cell.model} · context {first.cell.context} · {first.cell.dtype} · "
        f"{len(first.seeds)} seeds · {first.cell.device}"
    )
    lines = (Text(line) for line in training_notes(trained))
    return Group(Text(title, style="bold"), table, *lines)


def _row(result: ArmTraining, trained: Trained, contexts: Sequence[str]) -> list[str | Text]:
    above = result.above
    share = ABSENT if above is UNSET else f"{above.share:+.2%}"
    interval = ABSENT
    if above is not UNSET and above.low is not UNSET and above.high is not UNSET:
        interval = f"{above.low:+.2%} to {above.high:+.2%}"
    said = result.verdict
    quality = ABSENT if result.role is Role.BASELINE else said.quality
    parameters = next(o.parameters for o in trained.samples.outcomes if o.arm == result.arm)
    return [
        result.arm + (" (best)" if result.best else ""),
        result.role.value,
        f"{parameters:,}",
        *(f"{result.perplexity[c]:.3f}" if c in result.perplexity else ABSENT for c in contexts),
        share,
        interval,
        Text(quality, STYLES.get(quality, "")),
        "" if result.role is Role.BASELINE else said.quality_reason,
    ]


def training_notes(trained: Trained) -> Iterator[str]:
    """What the table rests on."""
    first = trained.results[0]
    yield (
        "ppl: of a byte, exp of the mean loss over seeds, on held-out text at each context; "
        f"single bytes' frequencies have {first.unigram_perplexity:.2f}."
    )
    yield f"text: {first.text}, gone through {first.epochs:.2f} times."
    worst = max(trained.results, key=lambda result: result.overfit)
    yield (
        f"held-out loss at the end over its least: at most {worst.overfit:.3f} ({worst.arm}); "
        f"above {OVERFIT} a model has learned the text by heart and is not judged."
    )
    for result in trained.results:
        if result.learned:
            means = ", ".join(f"{name} {value:+.4f}" for name, value in result.learned.items())
            yield f"{result.arm} learned, mean over heads, layers and seeds: {means}"
    yield from (
        f"{o.arm}, seed {o.seed}: the loss was no number at step {o.diverged_at}"
        for o in trained.samples.outcomes
        if o.diverged_at is not UNSET
    )
    for result in trained.results:
        if result.best and result.verdict.next_step:
            yield f"{result.arm}: {result.verdict.next_step}"


def training_json(trained: Trained) -> str:
    """Results and curves for machines."""
    return msgspec.json.encode(
        {
            "run": trained.run,
            "results": trained.results,
            "outcomes": trained.samples.outcomes,
        }
    ).decode()


def training_plan_table(plan: TrainPlan) -> RenderableType:
    """What would be trained."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "role"):
        table.add_column(column)
    for arm in plan.arms:
        table.add_row(arm.label, arm.role.value)
    recipe = plan.recipe
    return Group(
        table,
        Text(
            f"{plan.models} models of preset {recipe.name}: {recipe.layers} layers of width "
            f"{recipe.width}, context {recipe.context}, {recipe.steps} steps of {recipe.batch} "
            f"rows ({recipe.tokens:,} bytes, {plan.text.epochs(recipe.tokens):.2f} times the text)"
        ),
        Text(
            f"text: {plan.text.name}, {len(plan.text.training):,} bytes and "
            f"{len(plan.text.held_out):,} held out; judged at "
            f"{', '.join(map(str, recipe.contexts))}"
        ),
        Text(
            f"{plan.dtype}{', compiled' if plan.compiled else ''}, {plan.ranks.world} process(es), "
            f"on {plan.facts.name}; checkpoints in {plan.checkpoints}"
        ),
    )


def training_plan_json(plan: TrainPlan) -> str:
    """The same for machines."""
    return json.dumps({**plan.told(), "models": plan.models, "device": plan.facts.name})
