"""One result, as a line of a comparison needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from attnbench.ledger.canonical import canonical_bytes
from attnbench.ledger.folding import State, Status
from attnbench.ledger.record import Record

VERDICTS = ("latency", "quality", "memory")


@dataclass(frozen=True)
class Estimate:
    """A ratio; `low` and `high` bound it at confidence `level` where an interval is known."""

    estimate: float
    low: float | None = None
    high: float | None = None
    level: float | None = None


@dataclass(frozen=True)
class Entry:
    """What a result says; what was not measured is None. `speedup` is baseline time / arm time.

    `kernel` is the configuration that the arm's kernel ran with; empty where there is none.
    """

    id: str
    run: str
    arm: str
    role: str
    method: str
    baseline: str
    source_sha256: str
    status: Status
    median_ms: float | None
    speedup: Estimate | None
    verdicts: Mapping[str, str]
    kernel: Mapping[str, int]


def entry(record: Record, state: State) -> Entry:
    """Read a result record, with its standing."""
    body = record.body
    verdicts = body.get("verdict", {})
    return Entry(
        id=record.id,
        run=str(body.get("run", "")),
        arm=str(body.get("arm", "")),
        role=str(body.get("role", "")),
        method=str(body.get("method", "")),
        baseline=str(body.get("baseline", "")),
        source_sha256=str(body.get("source_sha256", "")),
        status=state.statuses[record.id],
        median_ms=body.get("latency_ms", {}).get("median"),
        speedup=_speedup(body.get("ratio")),
        verdicts={part: verdicts[part] for part in VERDICTS if verdicts.get(part)},
        kernel=body.get("kernel", {}),
    )


def cell_key(record: Record) -> str:
    """Return a text that is equal for equal cells, wherever a model's file lay."""
    cell, environment = record.body.get("cell"), record.body.get("environment")
    if isinstance(cell, Mapping) and isinstance(environment, Mapping):
        content = environment.get("model_identity", "")
        cell = {**cell, "model": model_key(str(cell.get("model", "")), str(content))}
    return canonical_bytes(cell).decode()


def model_name(model: str) -> str:
    """A model as it is called: a file or folder without the path to it."""
    is_path = model.endswith(".gguf") or model.startswith(("/", ".", "~"))
    return PurePath(model).name or model if is_path else model


def model_key(model: str, content: str) -> str:
    """What is equal for the same model: of a file its name and the sha256 of what it holds, if a
    record has that; else what it was called when it was measured."""
    name = model_name(model)
    return f"{name} {content}" if content and (name != model or name.endswith(".gguf")) else model


def circumstances(record: Record) -> dict[str, str]:
    """Return what may explain a difference: environment, protocol, version and commit, flat."""
    named = {
        "environment": record.body.get("environment", {}),
        "protocol": record.body.get("protocol", {}),
        "attnbench": {"version": record.tool, "commit": record.commit or "unknown"},
    }
    return dict(_flat(named, ""))


def _speedup(ratio: Mapping[str, Any] | None) -> Estimate | None:
    if ratio is None:
        return None
    return Estimate(ratio["estimate"], ratio.get("low"), ratio.get("high"), ratio.get("level"))


def _flat(value: Any, path: str) -> list[tuple[str, str]]:
    if not isinstance(value, Mapping):
        return [(path, str(value))]
    return [pair for key in value for pair in _flat(value[key], f"{path}.{key}".lstrip("."))]
