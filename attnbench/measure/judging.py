"""The quality task: the gates' raw samples of every arm that runs here."""

from __future__ import annotations

from collections.abc import Callable

import torch

from attnbench.measure.events import Tell
from attnbench.measure.failing import arm_failure
from attnbench.measure.tasks import ArmFailure, Bench, QualityResult, QualityTask
from attnbench.models.info import LoadedModel
from attnbench.models.sources import load
from attnbench.quality.candidates import Candidate, candidate
from attnbench.quality.run import run_quality


def run_judging(
    task: QualityTask, tell: Tell, model: Callable[[], LoadedModel] | None = None
) -> QualityResult:
    """Raw samples by arm, and why the other arms have none; the model is loaded, or taken from
    `model`."""
    bench = task.bench
    dtype, device = getattr(torch, bench.dtype), torch.device(bench.device)
    tell(0, 0, f"loading {bench.model}")
    candidates, failures = judged_arms(bench, device)
    loaded = load(bench.model, dtype, device, bench.seed) if model is None else model()
    samples = run_quality(
        loaded,
        candidates,
        task.counts,
        dtype=dtype,
        device=device,
        seed=bench.seed,
        progress=tell,
        text_path=bench.text,
    )
    failed = {label: arm_failure(error, "quality") for label, error in samples.failures.items()}
    return QualityResult(
        arms=samples.arms,
        failures=failures | failed,
        text_name=samples.text.name,
        text_sha256=samples.text.sha256,
        tokens_sha256=samples.tokens_sha256,
        model_identity=loaded.info.identity,
    )


def judged_arms(
    bench: Bench, device: torch.device
) -> tuple[list[Candidate], dict[str, ArmFailure]]:
    """The arms as candidates, and why some are none."""
    candidates: list[Candidate] = []
    failures: dict[str, ArmFailure] = {}
    for arm in bench.arms:
        try:
            kernel = bench.kernels.get(arm.label)
            candidates.append(candidate(arm.label, arm.method, device, kernel))
        except Exception as error:  # noqa: BLE001 - a method under test may raise anything
            failures[arm.label] = arm_failure(error, "quality")
    return candidates, failures
