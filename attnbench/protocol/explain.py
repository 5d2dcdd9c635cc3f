"""A protocol in words: what will be measured, what decides, what will be published."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from msgspec import UNSET

from attnbench.protocol.claim import Direction, Reach
from attnbench.protocol.document import (
    QUALITY_LEVEL,
    CellPart,
    ProtocolFile,
    Quantity,
    Rule,
)
from attnbench.protocol.presets import Protocol

VALUES = {
    Quantity.SPEED_UP: "the time of the baseline over that of {arm}",
    Quantity.KV_BYTES: "the KV bytes that {arm} keeps over those of the baseline",
    Quantity.ORDER_EFFECT: (
        "the time of one method measured first over its time measured second (5 warm-up steps, "
        "then all timed steps, one arm after the other)"
    ),
    Quantity.COSINE: (
        "the cosine of {arm}'s outputs with SDPA's, averaged over layers, heads and steps"
    ),
    Quantity.OVER_RANDOM: (
        "the cosine of {arm}'s outputs with SDPA's, less that of as many random tokens (of a "
        "method that chooses blocks: of random blocks)"
    ),
    Quantity.SKILL: (
        "the place of {arm}'s cosine between that of random tokens, 0, and of the best ones, 1"
    ),
    Quantity.PERPLEXITY: "the change of perplexity with {arm} inside the model, in per cent,",
    Quantity.KEPT_SHARE: "the share of the tokens that {arm} declares to attend to",
    Quantity.BOUND_VIOLATIONS: "the share of blocks with a logit above what {arm} bounds it by",
}
SIDES = {Direction.AT_LEAST: "at least", Direction.AT_MOST: "at most", Direction.ABOUT: "about"}
REACHES = {
    Reach.UNIVERSAL: (
        "It is claimed of every GPU and model: one place can refute it, none can support it."
    ),
    Reach.THIS_GPU: "It is claimed of the GPU that the cell names and says nothing elsewhere.",
    Reach.THIS_MODEL: "It is claimed of the model that the cell names.",
}


def explained(file: ProtocolFile) -> list[tuple[str, str]]:
    """Headings and sentences, in the order of reading."""
    sections: list[tuple[str, Iterator[str]]] = [
        ("claim", _claim(file)),
        ("measured", _measured(file)),
        ("schedule", _text(file) if file.is_of_quality else _schedule(file)),
        ("control", _control(file)),
        *([("required", _required(file))] if file.require else []),
        ("quality", _quality(file)),
        ("decided", _decided(file)),
        ("if it holds", iter([file.publish.if_holds])),
        ("if it fails", iter([file.publish.if_fails])),
        ("void if", iter(["; ".join(file.publish.void_if)])),
    ]
    return [(heading, " ".join(said)) for heading, said in sections]


def cell_in_words(cell: CellPart) -> str:
    """In the order in which people say it."""
    return (
        f"{cell.model}, {cell.context} tokens, batch {cell.batch}, {cell.dtype}, scope "
        f"{cell.scope.value}, mode {cell.mode.value}, on {cell.gpu or cell.device}"
        f"{f'; as a share of {cell.claimed:g}' if cell.claimed != 1 else ''}"
    )


def _claim(file: ProtocolFile) -> Iterator[str]:
    claim = file.claim
    yield f"“{claim.statement}”{f' ({claim.key})' if claim.key else ''}"
    within = f", give or take {_percent(claim.tolerance)} of that" if claim.tolerance else ""
    hurt = ", and the model is not hurt" if claim.keeps_quality else ""
    value = VALUES[claim.quantity].format(arm=claim.arm)
    yield f"That is: {value} is {SIDES[claim.direction]} {claim.bound:g}{within}{hurt}."
    yield REACHES[claim.reach]


def _measured(file: ProtocolFile) -> Iterator[str]:
    for number, cell in enumerate(file.cell, start=1):
        yield f"Cell {number}: {cell_in_words(cell)}."
    if file.claim.quantity is Quantity.ORDER_EFFECT:
        return
    if file.is_of_quality:
        yield f"Arms: {', '.join(file.arms)}, and exact attention computed in another way."
        return
    yield f"Arms: {', '.join(file.arms)}, every exact arm that runs there, and zero_cost."
    if file.named_baseline:
        yield f"Baseline: {file.named_baseline}, named here; faster must still hold against every"
        yield "exact arm beside it."
    else:
        yield "Baseline: the fastest exact arm of a pilot, which enters no statistic."


def _text(file: ProtocolFile) -> Iterator[str]:
    full = " with --full" if file.is_thorough else ""
    yield f"As `attnbench quality` runs every gate{full}: several offsets of a real text, steps of"
    yield f"each layer and of the model after each prompt; seed {file.schedule.seed}. Nothing is"
    yield "timed."


def _required(file: ProtocolFile) -> Iterator[str]:
    for part in file.require:
        value = VALUES[part.quantity].format(arm=part.arm)
        sides = (
            "" if part.least == -inf else f"at least {part.least:g}",
            "" if part.greatest == inf else f"at most {part.greatest:g}",
        )
        limits = " and ".join(filter(None, sides))
        yield f"{value} must be {limits}, or the run says nothing. {part.why}"


def _schedule(file: ProtocolFile) -> Iterator[str]:
    protocol: Protocol = file.protocol()
    seed = file.schedule.seed
    looks = ", ".join(map(str, protocol.looks))
    when = f", judged after {looks}" if looks else ""
    yield (
        f"{protocol.name}: {protocol.sessions} sessions{when}, each a fresh process with every "
        f"arm, of {protocol.blocks} randomised blocks in {protocol.groups} groups;"
    )
    yield (
        f"{protocol.warmup_steps} warm-up steps an arm, visits of {protocol.untimed_steps} untimed "
        f"and at least {protocol.timed_steps} timed steps; seed {seed}."
    )


def _control(file: ProtocolFile) -> Iterator[str]:
    control = file.control
    if control is UNSET:
        margin = file.protocol().equivalence_margin
        yield f"In randomised blocks the two must be equal within {_percent(margin)};"
        yield "else the run says nothing."
        return
    value = VALUES[file.claim.quantity].format(arm=control.arm)
    yield f"{control.arm}: {value} must be {SIDES[control.direction]} {control.bound:g}, or the run"
    yield f"says nothing. {control.why}"


def _quality(file: ProtocolFile) -> Iterator[str]:
    if file.claim.quantity is Quantity.ORDER_EFFECT or not file.quality:
        yield "Not judged."
        return
    if file.is_of_quality:
        yield "Every gate against SDPA, by the default bands; shown beside it."
        return
    gates = "Every gate" if file.claim.keeps_quality else "Outputs and logits"
    yield f"{gates} against SDPA on real text, where weights are trained."
    if not file.gates:
        yield "The default bands count."
    for gate, parts in file.bands().items():
        if gate in file.gates:
            yield f"{gate.value} {parts[0].wanted} and {parts[0].kills}."


def _decided(file: ProtocolFile) -> Iterator[str]:
    if len(file.cell) > 1:
        yield {
            Rule.FIRST: "The first cell decides; the others are shown beside it.",
            Rule.EVERY: "It must hold in every cell, and fails where it fails in one.",
        }[file.decision.rule]
    if file.claim.quantity is Quantity.KV_BYTES:
        yield "SUPPORTED where the bytes lie on the claim's side of the bound, FALSIFIED where they"
        yield "do not; VOID where tensors and allocator disagree."
        return
    if file.is_of_quality:
        yield f"SUPPORTED where the {_percent(QUALITY_LEVEL)} interval, t over offsets, lies on the"
        yield "claim's side of the bound, FALSIFIED where it lies beyond it, INCONCLUSIVE else;"
        yield "what is counted has no interval."
        return
    protocol = file.protocol()
    of_order = file.claim.quantity is Quantity.ORDER_EFFECT
    centres = "means and of medians" if of_order else "session means and of robust centres"
    yield f"SUPPORTED where both {_percent(protocol.level)} intervals, of {centres},"
    yield "lie on the claim's side of the bound, FALSIFIED where both lie beyond it, INCONCLUSIVE"
    yield "else."
    if file.claim.quantity is Quantity.SPEED_UP:
        margin, aa_level = protocol.equivalence_margin, protocol.aa_level
        yield f"A and A′, the baseline measured twice, must not differ at {_percent(aa_level)};"
        yield f"equivalent is within {_percent(margin)}."


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
