"""What the sessions of a cell saw of one arm, put together for the judgement of its conduct."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from attnbench.measure.answers import SessionResult
from attnbench.protocol.cell import Scope, SessionSamples
from attnbench.protocol.integrity import Conduct


def conduct_of(
    arm: str,
    baseline: str,
    sessions: Sequence[SessionResult],
    cell: int,
    *,
    dtype: str,
    exact: bool,
) -> Conduct:
    """Checks of timed and surprised steps, influence, replays, last steps and bytes of `arm`."""
    cells = [session.cells[cell] for session in sessions]
    timed = [walked.checks.get(arm, ()) for walked in cells]
    surprised = [session.surprises.get(arm, ()) for session in sessions]
    read_bytes = _kv_bytes(sessions, cell, arm)
    return Conduct(
        dtype=dtype,
        exact=exact,
        checks=[*timed, *surprised],
        influence=[s.influence[arm] for s in sessions if arm in s.influence],
        replays=[
            (session.replays[arm], session.replays[baseline])
            for session in sessions
            if arm in session.replays and baseline in session.replays
        ],
        last_steps=[
            (_last_steps(walked.samples, arm), _last_steps(walked.samples, baseline))
            for walked in cells
        ],
        growth=[session.growth[arm] for session in sessions if arm in session.growth],
        timed=_timed(sessions, cell, arm),
        read_bytes=read_bytes,
        exact_bytes=_kv_bytes(sessions, cell, baseline) if read_bytes else 0,
    )


def _last_steps(samples: SessionSamples, arm: str) -> list[float]:
    """Of each visit of an arm, the last step's time over the median of all."""
    return [
        visit.steps_us[-1] / median(visit.steps_us)
        for visit in samples.visits
        if visit.arm == arm and len(visit.steps_us) > 1
    ]


def _kv_bytes(sessions: Sequence[SessionResult], cell: int, arm: str) -> int:
    """Of the cache, in one step; 0 where the arm was not timed."""
    for session in sessions:
        if arm in session.cells[cell].read_bytes:
            return _cache_bytes(session, cell, arm)
    return 0


def _cache_bytes(session: SessionResult, cell: int, arm: str) -> int:
    walked = session.cells[cell]
    weights = session.weight_bytes if walked.scope is Scope.STEP else 0
    return walked.read_bytes[arm] - weights


def _timed(sessions: Sequence[SessionResult], cell: int, arm: str) -> list[tuple[float, int]]:
    """By session, what an arm says of its last timed step: share of tokens, bytes of the cache."""
    return [
        (walked.samples.witness[arm]["kept_share"], _cache_bytes(session, cell, arm))
        for session, walked in ((session, session.cells[cell]) for session in sessions)
        if arm in walked.read_bytes and "kept_share" in walked.samples.witness.get(arm, {})
    ]
