"""The compounded gate: the method runs inside the model, and next-token logits are compared.

Errors of one layer reach the next, which the local gate cannot see. Teacher-forced: every arm
decodes the tokens of the text after the same exact prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.models.forced import StepRecord, teacher_forced
from attnbench.models.prefill import prefill
from attnbench.models.step import build_layers
from attnbench.protocol.verdict import Reason
from attnbench.quality.candidates import Candidate, Progress, Roster
from attnbench.quality.capture import RoutedModel
from attnbench.quality.samples import Floats, GateArrays


class CompoundedGate:
    """Gathers the logit samples of every candidate that goes, one window after the other."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._parts: dict[str, list[Mapping[str, Tensor]]] = {}

    @torch.no_grad()
    def add_windows(
        self, model: RoutedModel, record: StepRecord, ids: Tensor, context: int, progress: Progress
    ) -> None:
        """Judge the T recorded steps of `ids` [B, N+T+1], whose last tokens are only targets."""
        intact = model.checksum(context)
        targets = ids[:, context + 1 :]
        for candidate in self._roster.going():
            progress(f"{targets.shape[1]} steps of {candidate.label}")
            with self._roster.attempt(candidate, inside=True):
                logits = decoded(model, self._roster, candidate, ids[:, :-1], context, intact)
                self._parts.setdefault(candidate.label, []).extend(
                    compare_logits(logits[:, row], record.logits[:, row], window)
                    for row, window in enumerate(targets)
                )

    def completed(self, local: Mapping[str, GateArrays]) -> dict[str, GateArrays]:
        """The local samples by label, with the [W,T] samples of this gate where it was run."""
        return {
            label: _completed(arrays, self._parts[label]) if label in self._parts else arrays
            for label, arrays in local.items()
        }


def compare_logits(logits: Tensor, sdpa: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Samples [T] from logits [T,V] of an arm and of SDPA, and the tokens [T] that came next.

    KL is of SDPA's distribution from the arm's, in nats. First places may be shared, in bfloat16
    often: the arm agrees by the share of its first tokens that are first for SDPA as well.
    """
    arm, exact = (values.double().log_softmax(-1) for values in (logits, sdpa))
    own, sdpas = (values == values.amax(-1, keepdim=True) for values in (arm, exact))
    at_target = targets[:, None]
    return {
        "kl_nats": (exact.exp() * (exact - arm)).sum(-1),
        "agree": (own & sdpas).sum(-1) / own.sum(-1).clamp_min(1).double(),
        "nll_nats": -arm.gather(-1, at_target)[:, 0],
        "nll_sdpa_nats": -exact.gather(-1, at_target)[:, 0],
    }


def decoded(
    model: RoutedModel,
    roster: Roster,
    candidate: Candidate,
    ids: Tensor,
    context: int,
    intact: Tensor,
) -> Tensor:
    """Logits [T,B,V] of the model with the candidate in it, after `context` of `ids` [B,N+T]; the
    prompt's rows must stay intact."""
    model.cache.reset(context)
    try:
        with roster.held_still():
            layers = build_layers(candidate.method, model.cache, model.surveyed, candidate.kernel)
            fed = ids[:, context:]
            steps = teacher_forced(model.loaded, model.router, model.cache, layers, fed)
            logits = torch.stack(list(steps))
        return _plain(logits)
    finally:  # by what the process is again, whatever the candidate made of it
        if not torch.equal(model.checksum(context), intact):
            prefill(model.loaded, model.router, model.cache, ids[:, :context])
            raise Unsupported(
                f"{candidate.label} changed the prompt's rows of the shared exact cache",
                hint="a method may write only the row of the token that it is given",
                reason=Reason.CACHE_CHANGED.value,
            )


def _plain(logits: Tensor) -> Tensor:
    """A tensor of a class of its own may compute whenever it is looked at."""
    if type(logits) is not Tensor:
        raise Unsupported(
            f"with it the model answers with a {type(logits).__name__}",
            hint="return a plain tensor from every step",
            reason=Reason.OUTPUT_TYPE.value,
        )
    return logits


def _completed(arrays: GateArrays, windows: Sequence[Mapping[str, Tensor]]) -> GateArrays:
    def stacked(name: str) -> Floats:
        numbers: Floats = torch.stack([window[name] for window in windows]).float().cpu().numpy()
        return numbers

    return replace(
        arrays,
        kl_nats=stacked("kl_nats"),
        agree=stacked("agree"),
        nll_nats=stacked("nll_nats"),
        nll_sdpa_nats=stacked("nll_sdpa_nats"),
    )
