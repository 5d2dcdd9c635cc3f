"""The exit code of a whole run, from the verdicts on its candidates, and that of a claim.

Controls never count, and of the baseline pair only a quality KILL does, because every ratio of the
run is to that arm. A quality KILL is 10 everywhere. A SLOWER candidate is an answer, not a failure,
unless the run says how slow is allowed; then it is 10 when even the favourable end of its interval
is slower than that. VOID of any kind is 12, INCONCLUSIVE 11; a claim that the evidence is not about
is as open as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import UNSET

from attnbench.errors import Exit
from attnbench.protocol.cell import Role
from attnbench.protocol.claim import Outcome
from attnbench.protocol.result import ArmResult
from attnbench.protocol.verdict import Verdict

GRAVEST_FIRST = (
    Exit.LEDGER_BROKEN,
    Exit.VOID,
    Exit.FALSIFIED,
    Exit.INCONCLUSIVE,
    Exit.DONE,
)

OF_CLAIM = {
    Outcome.SUPPORTED: Exit.DONE,
    Outcome.FALSIFIED: Exit.FALSIFIED,
    Outcome.INCONCLUSIVE: Exit.INCONCLUSIVE,
    Outcome.UNTESTABLE: Exit.INCONCLUSIVE,
    Outcome.VOID: Exit.VOID,
}


def claims_exit(outcomes: Iterable[Outcome]) -> Exit:
    """The gravest code of several claims; `DONE` only where every one is supported."""
    return gravest(OF_CLAIM[outcome] for outcome in outcomes)


def run_exit(results: Sequence[ArmResult], *, slower_allowed: float | None = None) -> Exit:
    """The gravest code of all candidates, and of a baseline killed by its quality.

    `slower_allowed` is a time ratio minus one (0.02: 2 % slower); None allows any.
    """
    return gravest(code for result in results for code in _codes(result, slower_allowed))


def gravest(codes: Iterable[Exit]) -> Exit:
    """Where several apply: 13, 12, 10, 11, 0."""
    return min(codes, key=GRAVEST_FIRST.index, default=Exit.DONE)


def _codes(result: ArmResult, slower_allowed: float | None) -> Iterator[Exit]:
    if result.role is not Role.CONTROL and result.verdict.quality == "KILL":
        yield Exit.FALSIFIED
    if result.role is not Role.CANDIDATE:
        return
    said = (result.verdict.latency, result.verdict.quality, result.verdict.memory)
    if Verdict.VOID in said:
        yield Exit.VOID
    if _too_slow(result, slower_allowed):
        yield Exit.FALSIFIED
    if Verdict.INCONCLUSIVE in said:
        yield Exit.INCONCLUSIVE


def _too_slow(result: ArmResult, allowed: float | None) -> bool:
    if allowed is None or result.verdict.latency != Verdict.SLOWER or result.ratio is UNSET:
        return False
    return 1 / result.ratio.high > 1 + allowed
