"""The arms that a quality run judges, and those among them that still go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from attnbench.methods.base import KernelConfig, Method
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


class Roster:
    """Candidates in order; one that raises is left out from there on, and `failures` says why."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self._going = {candidate.label: candidate for candidate in candidates}
        self.failures: dict[str, Exception] = {}

    def going(self) -> tuple[Candidate, ...]:
        """Those that have not failed."""
        return tuple(self._going.values())

    @contextmanager
    def attempt(self, candidate: Candidate) -> Iterator[None]:
        """Run something of this candidate's; its failure ends here, and its part in the run."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 a method may raise anything: the others go on
            self.failures[candidate.label] = error
            del self._going[candidate.label]


def candidate(
    label: str, spec: str, device: torch.device, launch: Mapping[str, int] | None = None
) -> Candidate:
    """The arm that `spec` names, with its implementation fixed for `device`."""
    kernel = None if launch is None else KernelConfig(**launch)
    return Candidate(label, parse(spec).resolved(device), kernel)
