"""The arms that a quality run judges, and those among them that still go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from attnbench.errors import AttnbenchError, SessionLost
from attnbench.methods.base import KernelConfig, LayerShape, Method
from attnbench.methods.registry import parse
from attnbench.quality.gates import refuse_replacement

Progress = Callable[[str], None]  # told what begins now


@dataclass(frozen=True)
class Candidate:
    """An arm to judge: `label` is unique in the run; `kernel` holds its launch parameters.

    Raises UsageError for a REPLACEMENT method.
    """

    label: str
    method: Method
    kernel: KernelConfig | None = None

    def __post_init__(self) -> None:
        refuse_replacement(self.label, self.method.family)


class Watch(Protocol):
    """Looks on while the arms take their turns."""

    def begins(self, label: str) -> None:
        """The code of this arm runs from now on; raises where somebody changed the process since
        the last turn ended."""

    def require_unchanged(self, *, thoroughly: bool = True) -> None:
        """Put back what changed in the process and raise for it."""

    def require_intact_model(self) -> None:
        """Raise `SessionLost` where the model's weights or modules changed."""


class Unwatched:
    """Where the methods are one's own."""

    def begins(self, label: str) -> None:
        """Nothing."""

    def require_unchanged(self, *, thoroughly: bool = True) -> None:
        """Nothing."""

    def require_intact_model(self) -> None:
        """Nothing."""


class Roster:
    """Candidates in order; one that raises is left out from there on, and `failures` says why.

    So is one that changes the process: what it changed is put back before anything is computed
    from what it returned.
    """

    def __init__(self, candidates: Iterable[Candidate], watch: Watch | None = None) -> None:
        self._going = {candidate.label: candidate for candidate in candidates}
        self._watch = watch or Unwatched()
        self.failures: dict[str, Exception] = {}

    def launch_alike(self, shape: LayerShape) -> None:
        """Fix the kernel configuration of candidates without one to what they offer first for this
        shape, whatever the number of sequences: a kernel is compiled for each configuration."""
        for candidate in self.going():
            if candidate.kernel is None:
                with self.attempt(candidate):
                    offered = candidate.method.configurations(shape)
                    if offered:
                        self._going[candidate.label] = replace(candidate, kernel=offered[0])

    def again(self) -> Roster:
        """Those that have not failed, to be tried elsewhere; a failure there is none here."""
        return Roster(self.going(), self._watch)

    def going(self) -> tuple[Candidate, ...]:
        """Those that have not failed."""
        return tuple(self._going.values())

    @contextmanager
    def attempt(self, candidate: Candidate, *, inside: bool = False) -> Iterator[None]:
        """Run something of this candidate's; its failure ends here, and its part in the run.

        `SessionLost`, which leaves nothing to judge the others with, goes through. A candidate
        that runs `inside` the model must leave that as it was; reading its weights takes a step.
        """
        self._watch.begins(candidate.label)
        try:
            with self.held_still():
                yield
            if inside:
                self._watch.require_intact_model()
        except SessionLost:
            raise
        except Exception as error:  # noqa: BLE001 a method may raise anything: the others go on
            self.failures[candidate.label] = error
            del self._going[candidate.label]

    @contextmanager
    def held_still(self) -> Iterator[None]:
        """Run code of a candidate, and raise for what it changed: that is its doing, whatever it
        raised itself."""
        try:
            yield
        except SessionLost:
            raise
        except Exception as error:
            if not _has_reason(error):
                self._watch.require_unchanged()
            raise
        self._watch.require_unchanged(thoroughly=False)


def _has_reason(error: Exception) -> bool:
    return isinstance(error, AttnbenchError) and bool(error.reason)


def candidate(
    label: str, spec: str, device: torch.device, launch: Mapping[str, int] | None = None
) -> Candidate:
    """The arm that `spec` names, with its implementation fixed for `device`."""
    kernel = None if launch is None else KernelConfig(**launch)
    return Candidate(label, parse(spec).resolved(device), kernel)
