"""What an arm says of its timed steps, as its conduct is judged by."""

from __future__ import annotations

from types import SimpleNamespace

from attnbench.measure.conduct import _timed
from attnbench.protocol.cell import Scope


def session(scope: Scope, read_bytes: int | None, share: float | None) -> SimpleNamespace:
    """One cell in which an arm said so; None: it said nothing."""
    witness = {"arm": {} if share is None else {"kept_share": share}}
    return SimpleNamespace(
        weight_bytes=1000,
        cells=[
            SimpleNamespace(
                scope=scope,
                read_bytes={} if read_bytes is None else {"arm": read_bytes},
                samples=SimpleNamespace(witness=witness),
            )
        ],
    )


def test_bytes_that_are_held_against_a_share_are_those_of_the_cache_alone():
    sessions = [session(Scope.STEP, 1300, 0.2), session(Scope.ATTENTION, 280, 0.1)]
    assert _timed(sessions, 0, "arm") == [(0.2, 300), (0.1, 280)]


def test_a_session_in_which_an_arm_said_nothing_is_left_out():
    sessions = [session(Scope.STEP, None, 0.2), session(Scope.STEP, 1300, None)]
    assert _timed(sessions, 0, "arm") == []
