"""Ledgers and result bodies that the tests share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from attnbench.ledger import Kind, Ledger, Record

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def ticking_clock(step_s: float = 1.0):
    """A clock that goes on by a step whenever it is read."""
    moments = (START + timedelta(seconds=step_s * i) for i in range(10**6))
    return lambda: next(moments)


def cell(**changes: Any) -> dict[str, Any]:
    return {
        "model": "embedded",
        "context": 8192,
        "batch": 4,
        "dtype": "bfloat16",
        "scope": "step",
        "mode": "graph",
        "device": "cpu",
        **changes,
    }


def result_body(run: str, arm: str = "int8_kv", **changes: Any) -> dict[str, Any]:
    return {
        "run": run,
        "cell": cell(),
        "arm": arm,
        "method": f"{arm},impl=triton",
        "baseline": "sdpa,backend=flash",
        "latency_ms": {"median": 2.0, "mean": 2.1},
        "ratio": {"estimate": 1.2, "low": 1.1, "high": 1.3, "level": 0.95},
        "verdict": {"latency": "FASTER", "quality": "PASS"},
        "environment": {"gpu": "cpu", "torch": "2.13"},
        **changes,
    }


def session_body(run: str, phase: str, session: int = 0, **changes: Any) -> dict[str, Any]:
    return {"run": run, "phase": phase, "session": session, "cell": cell(), **changes}


def record_run(ledger: Ledger, run: str, **changes: Any) -> tuple[Record, Record]:
    """Record one session and one result that cites it; returns both."""
    ledger.append(Kind.SESSION, session_body(run, "opened"))
    samples = ledger.put_blob(f"raw samples of {run}".encode())
    closed = ledger.append(Kind.SESSION, session_body(run, "closed", samples=samples))
    return closed, ledger.append(Kind.RESULT, result_body(run, **changes), cites=[closed.id])
