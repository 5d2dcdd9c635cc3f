"""Planned looks: when a run may be judged, at which level, and whether it may stop.

Looking whenever one likes and stopping at the first clear result is wrong far more often than the
nominal 5 % (tests/calibration). At planned looks the error is split, so that the whole run keeps
the level of its protocol.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from attnbench.errors import UsageError
from attnbench.protocol.cell import Role
from attnbench.protocol.presets import Protocol
from attnbench.protocol.result import ArmResult
from attnbench.protocol.verdict import Reason, Verdict
from attnbench.stats.spending import split


def looks_of(protocol: Protocol) -> tuple[int, ...]:
    """The session counts after which a run of this protocol is judged; the last ends it."""
    return protocol.looks or (protocol.sessions,)


def protocol_at(protocol: Protocol, sessions_done: int) -> Protocol:
    """The protocol by which a run is judged after so many sessions.

    It has that many sessions, the level of that look, and no looks of its own, so that it says of
    itself what was tested. Raises `UsageError` where no look is planned.
    """
    looks = looks_of(protocol)
    if sessions_done not in looks:
        planned = ", ".join(map(str, looks))
        raise UsageError(
            f"protocol {protocol.name!r} plans no look after {sessions_done} sessions",
            hint=f"it is judged after {planned}",
        )
    if len(looks) == 1:
        return replace(protocol, looks=())
    alpha = split(1 - protocol.level, looks)[looks.index(sessions_done)]
    return replace(protocol, sessions=sessions_done, level=1 - alpha, looks=())


def decided(results: Iterable[ArmResult]) -> bool:
    """Whether no candidate has anything to gain from further sessions.

    True without a candidate. Controls and the baseline pair claim nothing.
    """
    said = [result.verdict for result in results if result.role is Role.CANDIDATE]
    return all(settled(verdict.latency, verdict.latency_reason) for verdict in said)


def settled(latency: str, reason: str) -> bool:
    """Whether further sessions cannot change this latency verdict for want of data.

    They may settle what is INCONCLUSIVE for any reason, and a control too wide so far. What else is
    VOID stays so, since every session counts.
    """
    return latency != Verdict.INCONCLUSIVE and reason != Reason.AA_CONTROL
