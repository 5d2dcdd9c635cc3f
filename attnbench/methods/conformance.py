"""Whether a method does what it says: the same checks for every method, built in or not.

Everything is compared with the method's own float64 reference, on the same device and inputs, and
the errors are relative to the norm of each head's output. Whether the method is any *good* is the
question of the quality gates, not of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.base import Method
from attnbench.methods.trial import Case
from attnbench.protocol.integrity import ERROR_BOUND

APPENDED = 3
TOKENS = (1, 31, 32, 33, 64, 127, 4096)
HEAD_DIMS = (64, 128)
GROUPS = (1, 3, 4, 8)
# Every length, head dimension and group occurs; no two neighbours share all of them.
COVERING = (
    Case(1, 64, 4, batch=2),
    Case(31, 128, 3),
    Case(32, 64, 8),
    Case(33, 128, 1, batch=2),
    Case(64, 64, 3),
    Case(127, 128, 4),
    Case(4096, 64, 4, kv_heads=1),
)
FULL = tuple(
    Case(tokens, head_dim, group, batch=2)
    for tokens in TOKENS
    for head_dim in HEAD_DIMS
    for group in GROUPS
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BOUNDS = {dtype: ERROR_BOUND[str(dtype).removeprefix("torch.")] for dtype in DTYPES}


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One check: passed when `figure` is at most `bound`; a skipped or crashed one has neither."""

    name: str
    outcome: Outcome
    figure: float | None = None
    bound: float | None = None
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and held."""
        return self.outcome is Outcome.PASSED

    @staticmethod
    def measured(name: str, figure: float, bound: float, detail: str = "") -> Check:
        """A check by its figure; NaN fails."""
        outcome = Outcome.PASSED if figure <= bound else Outcome.FAILED
        return Check(name, outcome, figure, bound, detail)

    @staticmethod
    def skipped(name: str, reason: str) -> Check:
        """A check that could not run here."""
        return Check(name, Outcome.SKIPPED, detail=reason)


Progress = Callable[[int, int, str], None]
NamedCheck = tuple[str, Callable[[], Check]]


def conform(
    method: Method,
    device: torch.device,
    quick: bool = True,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    progress: Progress | None = None,
) -> list[Check]:
    """Run every check of `method` on `device`; `quick` takes a covering subset of the shapes.

    `progress` is told (done, total, name). A check that the method does not support is skipped and
    says so; whatever else the method raises is a failed check.
    """
    from attnbench.methods import conformance_checks

    method = method.resolved(device)
    planned = list(conformance_checks.planned(method, device, COVERING if quick else FULL, dtypes))
    checks = []
    for done, (name, check) in enumerate(planned):
        if progress is not None:
            progress(done, len(planned), name)
        checks.append(attempted(name, check))
    return checks


def attempted(name: str, check: Callable[[], Check]) -> Check:
    """Run one check; a method that cannot is skipped, one that crashes has failed."""
    try:
        return replace(check(), name=name)
    except Unsupported as refusal:
        return Check.skipped(name, refusal.message)
    except Exception as error:  # noqa: BLE001 - what a method raises is the finding
        return Check(name, Outcome.FAILED, detail=f"{type(error).__name__}: {error}")


def relative_error(output: Tensor, expected: Tensor) -> float:
    """The worst head's ‖output - expected‖ / ‖expected‖; infinite where the output is not finite.

    An expected head of zeros counts by the output's own norm.
    """
    if output.shape != expected.shape:
        raise ValueError(f"the output is {list(output.shape)}, expected {list(expected.shape)}")
    if not bool(torch.isfinite(output).all()):
        return float("inf")
    wrong = (output.double() - expected.double()).norm(dim=-1)
    size = expected.double().norm(dim=-1)
    return float((wrong / torch.where(size > 0, size, 1.0)).max())


def worst_error(outputs: Iterator[Tensor], expected: Iterator[Tensor]) -> tuple[float, int]:
    """The largest relative error over appended tokens, and which token had it."""
    errors = [relative_error(a, b) for a, b in zip(outputs, expected, strict=True)]
    return max(errors), errors.index(max(errors))
