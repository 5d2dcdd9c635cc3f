"""A ledger of any length, of runs as attnbench records them, without a sync for every line."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from attnbench.ledger import Kind
from attnbench.ledger.blobs import put
from attnbench.ledger.record import GENESIS, Head, draft, envelope, seal
from tests.ledger.samples import cell

ARMS = {
    "sdpa": "baseline",
    "sdpa#2": "baseline_again",
    "int8_kv": "candidate",
    "zero_cost": "control",
}
SESSIONS = 4
CONTEXTS = 1000
BLOBS = 200
FIRST_UTC_S = 1_767_225_600
LONG_LAYERS = 640  # about 50 KB
LONG_SHARE = 0.01 * (2 * SESSIONS + len(ARMS)) / SESSIONS  # of the openings
RETRACT_EVERY = 200  # runs


class Chain:
    """The end of a ledger that is being written."""

    def __init__(self, file: BinaryIO, seed: int) -> None:
        self.chance = random.Random(seed)
        self._file, self._seed = file, seed
        self._head = Head(0, GENESIS, f"{seed:032x}")

    def __len__(self) -> int:
        return self._head.seq

    def add(self, kind: Kind, body: dict[str, Any], cites: Sequence[str] = ()) -> str:
        """Write a record and return its id."""
        seconds = FIRST_UTC_S + 30 * len(self)
        entry = draft(
            kind,
            body,
            cites,
            utc=time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(seconds)),
            nonce=f"{self._seed:08x}{len(self):024x}",
            tool="0.1.0",
            commit="0" * 40,
        )
        line = seal(entry, self._head)
        self._file.write(line)
        about = envelope(line[:-1])
        self._head = Head(len(self) + 1, about.hash.decode(), self._head.origin)
        return entry.id


def write_ledger(path: Path, records: int, seed: int) -> None:
    """Runs until there are so many records."""
    path.parent.mkdir(parents=True)
    refs = [put(path.parent / "blobs", f"samples {i}".encode()) for i in range(BLOBS)]
    with path.open("wb") as file:
        chain, number = Chain(file, seed), 0
        while len(chain) < records:
            number += 1
            results = _add_run(chain, 512 + number % CONTEXTS, refs)
            if number % RETRACT_EVERY == 0:
                said = {"reason": "environment", "note": "another process held the card"}
                chain.add(Kind.RETRACTION, {"target": results[0], **said})


def _add_run(chain: Chain, context: int, refs: Sequence[str]) -> list[str]:
    """Sessions opened and closed, and a result of each arm; returns the ids of the closings."""
    run = f"{chain.chance.getrandbits(48):012x}"
    closed = []
    for session in range(SESSIONS):
        about = {"run": run, "session": session}
        opened = chain.add(Kind.SESSION, about | _opening(chain, context))
        samples = chain.chance.choice(refs)
        ending = {"phase": "closed", "samples": samples, **about}
        closed.append(chain.add(Kind.SESSION, ending, [opened]))
    for arm in ARMS:
        chain.add(Kind.RESULT, _result(chain, run, arm, context), closed)
    return closed


def _opening(chain: Chain, context: int) -> dict[str, Any]:
    arms = [{"label": arm, "method": arm, "role": "candidate"} for arm in ARMS]
    opening = {
        "phase": "opened",
        "protocol": "canonical",
        "environment": _environment(),
        "sources": dict.fromkeys(ARMS, "5" * 50),
        "task": {"arms": arms, "context": context, "seed": chain.chance.getrandbits(31)},
    }
    if chain.chance.random() < LONG_SHARE:
        opening["layers"] = _layers()
    return opening


def _layers() -> list[dict[str, Any]]:
    """What a survey says of a deep model, as long as a line gets."""
    layer = {"head_dim": 64, "heads": 32, "kv_heads": 8, "scale": 0.125, "window": None}
    return [{"layer": i, **layer} for i in range(LONG_LAYERS)]


def _environment() -> dict[str, Any]:
    return {
        "attnbench": "0.1.0",
        "device": "NVIDIA H100 80GB HBM3",
        "driver": "580.159.04",
        "python": "3.12.3",
        "torch": "2.11.0",
        "triton": "3.6.0",
    }


def _result(chain: Chain, run: str, arm: str, context: int) -> dict[str, Any]:
    """As a page reads it (`attnbench.protocol.result.ArmResult`)."""
    ms, ratio, p = (chain.chance.random() for _ in range(3))
    verdict = chain.chance.choice(("FASTER", "SLOWER", "EQUIVALENT", "INCONCLUSIVE"))
    return {
        "run": run,
        "cell": cell(context=context, device="NVIDIA H100 80GB HBM3"),
        "arm": arm,
        "method": f"{arm.removesuffix('#2')},impl=triton",
        "baseline": "sdpa",
        "role": ARMS[arm],
        "family": "exact",
        "source_sha256": "5" * 64,
        "protocol": {"name": "canonical", "sessions": SESSIONS},
        "latency_ms": {"median": 2 + ms, "mean": 2.1 + ms, "min": 1.9 + ms, "max": 3 + ms},
        "ratio": _interval(1 + ratio / 5),
        "robust_ratio": _interval(1 + ratio / 4),
        "statistics": _statistics(p),
        "verdict": _verdict(verdict),
        "environment": _environment(),
    }


def _statistics(p: float) -> dict[str, Any]:
    counts = {"sessions": SESSIONS, "blocks_used": 48, "blocks_dropped": 0, "not_beaten": []}
    tests = {"equivalent": False, "p_value": p**12, "equivalence_p": p}
    return {**counts, **tests, "aa": _interval(1 + p / 1000)}


def _verdict(latency: str) -> dict[str, str]:
    return {
        "latency": latency,
        "latency_reason": "interval-clear",
        "quality": "PASS",
        "quality_reason": "",
        "memory": "EQUIVALENT",
        "memory_reason": "",
        "next_step": "",
    }


def _interval(estimate: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate * 0.99, "high": estimate * 1.01, "level": 0.95}
