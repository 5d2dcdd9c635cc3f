"""What was found of an arm's quality and memory, as its result holds it."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.measure.answers import MemoryFigures
from attnbench.measure.appraised import without_samples
from attnbench.measure.evidence import Evidence, JudgedArm
from attnbench.protocol.memory import MemoryVerdict, memory_verdict, not_measured
from attnbench.quality.budget import at_timed_budget
from attnbench.quality.gates import QualityVerdict, judge, not_evaluated, random_weights


def quality_verdict(
    evidence: Evidence, planned: JudgedArm, timed_share: float | None, context: int
) -> QualityVerdict:
    """On random weights, and where nobody asked, there is none; nor where the steps that were timed
    after `context` tokens attended to fewer of them than those that were judged."""
    if evidence.plan.info.weights == "random":
        return random_weights()
    if not evidence.plan.request.wants_quality:
        return not_evaluated("not-asked", "run again without --no-quality")
    if evidence.quality is None:
        return not_evaluated("not-measured", "see why the quality part of the run failed")
    samples = evidence.quality.arms.get(planned.label)
    if samples is None:
        return without_samples(evidence.quality.failures.get(planned.label))
    bands = evidence.plan.request.bands
    found = judge(samples, planned.family.value, evidence.plan.info.weights, bands)
    return at_timed_budget(found, samples, timed_share, context)


def quality_body(
    verdict: QualityVerdict, evidence: Evidence
) -> dict[str, float | int | str] | UnsetType:
    """The figures behind it, and what they were taken on."""
    if not verdict.figures or evidence.quality is None:
        return UNSET
    return {
        **verdict.figures,
        "worst_gate": verdict.worst_gate or "",
        "worst_layer": -1 if verdict.worst_layer is None else verdict.worst_layer,
        "worst_head": -1 if verdict.worst_head is None else verdict.worst_head,
        "worst_window": -1 if verdict.worst_window is None else verdict.worst_window,
        "worst_step": -1 if verdict.worst_step is None else verdict.worst_step,
        "gates_run": ", ".join(verdict.gates_run),
        "gates_not_run": ", ".join(verdict.gates_not_run),
        "not_run_because": "; ".join(f"{gate}: {why}" for gate, why in verdict.not_run.items()),
        "windows": verdict.windows,
        "steps": verdict.steps,
        "context": verdict.context,
        "text": evidence.quality.text_name,
        "text_sha256": evidence.quality.text_sha256,
        **({"tokens_sha256": hashed} if (hashed := evidence.quality.tokens_sha256) else {}),
    }


def memory_figures(evidence: Evidence, method: str) -> MemoryFigures | None:
    """Of the method, in a process of its own."""
    return None if evidence.memory is None else evidence.memory.arms.get(method)


def memory_verdict_of(own: MemoryFigures | None, base: MemoryFigures | None) -> MemoryVerdict:
    """On the bytes that a method keeps, against the baseline's."""
    if own is None or base is None:
        return not_measured()
    return memory_verdict(
        baseline_bytes=base.reachable_bytes,
        reachable_saving=base.reachable_bytes - own.reachable_bytes,
        allocated_saving=base.allocated_bytes - own.allocated_bytes,
        host_bytes=own.host_bytes - base.host_bytes,
    )


def memory_body(figures: MemoryFigures | None) -> dict[str, int | str | bool] | UnsetType:
    """What the machine could tell."""
    if figures is None:
        return UNSET
    body: dict[str, int | str | bool | None] = msgspec.to_builtins(figures)
    return {name: value for name, value in body.items() if value is not None}
