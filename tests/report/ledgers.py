"""A made-up ledger with something of everything that a page shows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from attnbench.ledger import Kind, Ledger, Reason, Record, retract
from attnbench.protocol.claim_file import Entry, ImportedClaim
from attnbench.protocol.claim_log import import_body
from tests.protocol.claims import CLAIMS

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
GPU = {
    "device": "NVIDIA L4",
    "driver": "580.1",
    "cuda": "13.0",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "transformers": "5.17.0",
}
CPU = {**GPU, "device": "a CPU", "driver": "", "cuda": ""}


def ledger_at(path: Path) -> Ledger:
    """A ledger whose clock goes on by a minute with every record."""
    moments = (START + timedelta(minutes=i) for i in range(10**6))
    return Ledger(path, clock=lambda: next(moments))


def cell(**changes: Any) -> dict[str, Any]:
    return {
        "model": "preset:llama-3.2-1b",
        "context": 8192,
        "batch": 4,
        "dtype": "bfloat16",
        "scope": "step",
        "mode": "graph",
        "device": "NVIDIA L4",
        **changes,
    }


def interval(estimate: float, half: float = 0.004, level: float = 0.95) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half, "level": level}


def result(run: str, arm: str, **changes: Any) -> dict[str, Any]:
    """The body of an arm's result: the baseline's, but for `changes`."""
    return {
        "run": run,
        "cell": cell(),
        "arm": arm,
        "method": arm,
        "family": "exact",
        "role": "baseline",
        "source_sha256": "ab" * 32,
        "baseline": "flash_decode",
        "verdict": verdict("", ""),
        "protocol": {"name": "canonical", "sessions": 3, "blocks": 12},
        "environment": GPU,
        "latency_ms": {"median": 4.0, "mean": 4.01, "min": 3.9, "max": 4.4},
        "floor": {
            "read_bytes": 6 << 30,
            "bandwidth_gb_s": 300.0,
            "theoretical_gb_s": 320.0,
            "ms": 3.2,
        },
        "memory": {
            "reachable_bytes": 512 << 20,
            "allocated_bytes": 513 << 20,
            "reserved_bytes": 600 << 20,
            "process_bytes": 900 << 20,
            "keeps_exact_cache": True,
        },
        **changes,
    }


def verdict(
    latency: str, latency_reason: str, quality: str = "PASS", **more: str
) -> dict[str, str]:
    return {
        "latency": latency,
        "latency_reason": latency_reason,
        "quality": quality,
        "quality_reason": "" if quality == "PASS" else "gates-not-run",
        "memory": "EQUIVALENT",
        "memory_reason": "figures-agree",
        "next_step": "",
        **more,
    }


def candidate(run: str, method: str, ratio: float, **changes: Any) -> dict[str, Any]:
    word = "FASTER" if ratio > 1 else "SLOWER"
    return result(
        run,
        method,
        **{
            "family": "approximate",
            "role": "candidate",
            "ratio": interval(ratio),
            "robust_ratio": interval(ratio),
            "latency_ms": {"median": 4.0 / ratio, "min": 3.9 / ratio, "max": 4.4 / ratio},
            "statistics": statistics(),
            "captured_share": 0.4,
            "verdict": verdict(word, "interval-clear"),
            **changes,
        },
    )


def statistics(**changes: Any) -> dict[str, Any]:
    return {
        "equivalent": False,
        "p_value": 0.001,
        "equivalence_p": 0.9,
        "sessions": 3,
        "blocks_used": 36,
        "blocks_dropped": 0,
        "not_beaten": [],
        "aa": interval(1.0005, 0.001),
        "aa_robust": interval(0.9999, 0.0008),
        "position_effect": interval(1.001, 0.002),
        "carry_over": interval(1.004, 0.002),
        **changes,
    }


def calibration(run: str) -> dict[str, Any]:
    level = {
        "arm": "+1%",
        "asked": 0.01,
        "wait_us": 10.0,
        "waited_us": 10.1,
        "true": 0.0101,
        "measured": interval(0.0099, 0.0002),
        "measured_robust": interval(0.0098, 0.0003),
        "found": 3,
        "runs": 4,
        "verdicts": {"SLOWER": 3, "VOID (aa-control)": 1},
    }
    spread = {"pairs": ["A#2/A"], "sessions": 12}
    return {
        "calibration": "instrument",
        "run": run,
        "cell": cell(scope="attention"),
        "arms": {"A": "waiting", "X": "waiting"},
        "protocol": {"name": "canonical", "sessions": 12},
        "environment": GPU,
        "sources": {},
        "findings": {
            "sessions": 12,
            "void": {},
            "step_ms": 1.4,
            "aa": spread,
            "ab": spread,
            "levels": [level],
            "sham_verdicts": {"EQUIVALENT": 4},
            "false_positives": {"hits": 0, "trials": 4, "low": 0.0, "high": 0.6, "level": 0.95},
        },
    }


def order_effect(run: str) -> dict[str, Any]:
    bias = {"how": "sequential", "processes": 2, "each": [1.08, 1.1], "ratio": interval(1.09, 0.02)}
    body = {**calibration(run), "calibration": "order-effect", "order_effect": [bias]}
    del body["findings"]
    return body


def kept_map(text: str = "once upon a time") -> dict[str, Any]:
    """What a quality record says of a map over 40 tokens."""
    return {
        "bin_tokens": 16,
        "tokens": 40,
        "steps": 4,
        "layers": [1, 4],
        "hundredths": [[50, 0, 100], [-1, -1, -1]],
        "most": [{"begin": 32, "end": 40, "share": 1.0, "text": text}],
        "least": [{"begin": 16, "end": 32, "share": 0.0, "text": f"not {text}"}],
        "share": 0.25,
        "outside": 0.0,
    }


def appraisal(run: str, arm: str, **changes: Any) -> dict[str, Any]:
    """The body of a record of `attnbench quality`."""
    return {
        "appraisal": "quick",
        "run": run,
        "cell": {"model": "embedded", "context": 1024, "dtype": "float32", "device": "a CPU"},
        "arm": arm,
        "method": arm,
        "family": "approximate",
        "role": "candidate",
        "floor": False,
        "source_sha256": "ab" * 32,
        "verdict": {"quality": "KILL", "quality_reason": "needle", "next_step": "look for them"},
        "environment": {**CPU, "weights": "trained"},
        "counts": {"windows": 5, "steps": 16, "logit_steps": 64},
        "gates": {"mean-cosine": "PASS", "needle": "KILL"},
        "not_run": {"perplexity": "2 text offsets, and it takes 5 of 64 steps"},
        "figures": {
            "cosine_mean": 0.9912,
            "needles": 16.0,
            "needle_hits": 0.25,
            "needle_hits_sdpa": 1.0,
            "needle_probability": 0.2,
            "needle_probability_sdpa": 0.99,
            "skill": 0.61,
            "skill_low": 0.5,
            "skill_high": 0.72,
        },
        "worst": {
            "layer": 3,
            "head": 2,
            "window": 1,
            "step": 7,
            "logit_window": 0,
            "logit_step": 40,
        },
        "text": "a text",
        "text_sha256": "ef" * 32,
        **changes,
    }


def opened(run: str, session: int = 0, environment: dict[str, str] = GPU) -> dict[str, Any]:
    return {"run": run, "session": session, "phase": "opened", "environment": environment}


def ended(run: str, phase: str, session: int = 0) -> dict[str, Any]:
    return {"run": run, "session": session, "phase": phase}


def claim(key: str, verdict: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """The body of the import of a claim, or of a record that decides it."""
    if verdict is None:
        return {**import_body(claim_of(key), None), **changes}
    observed = {"value": 1.048, "unit": "speed-up", "how": "measured", "note": "on one GPU"}
    system = claim_of(key).system
    said = {"key": key, "claim": f"what a protocol says of {key}", "system": system}
    return {**said, "observed": observed, "verdict": verdict, **changes}


def claim_of(key: str, **changes: Any) -> ImportedClaim:
    """One of the repository's claims; of a key that there is not, one like it."""
    found = CLAIMS.get(key, CLAIMS["DCR-18"])
    named: Entry = msgspec.structs.replace(found.entry, **{"key": key, **changes})
    return msgspec.structs.replace(found, entry=named)


@dataclass(frozen=True)
class MadeUp:
    """The ledger, and those of its records that tests ask for."""

    ledger: Ledger
    registration: Record
    faster: Record
    retracted: Record
    retraction: Record
    tainted_claim: Record
    imported: Record
    supported: Record
    concern: Record
    abandoned: Record


def made_up(path: Path) -> MadeUp:
    ledger = ledger_at(path)
    registered = {
        "protocol": "protocols/dcr/DCR-18.toml",
        "title": "Order of measuring",
        "version": "1",
        "text": "name = 'DCR-18'\n",
    }
    registration = ledger.append(Kind.REGISTRATION, registered)
    ledger.append(Kind.SESSION, opened("r1"), cites=[registration.id])
    closed = ledger.append(Kind.SESSION, ended("r1", "closed"))
    rests_on = [closed.id, registration.id]

    def add(body: dict[str, Any]) -> Record:
        return ledger.append(Kind.RESULT, body, cites=rests_on)

    for context, ratio in ((8192, 1.2), (32768, 1.5)):
        here = {"cell": cell(context=context)}
        add(result("r1", "flash_decode", **here))
        again = {"role": "baseline_again", "ratio": interval(0.9995, 0.001)}
        add(result("r1", "flash_decode", **again, **here))
        faster = add(candidate("r1", "int8_kv,impl=triton", ratio, **here))
        killed = verdict("FASTER", "interval-clear", "KILL", quality_reason="lowest-head")
        add(candidate("r1", "sink_window", ratio + 0.3, verdict=killed, **here))
        add(candidate("r1", "zero_cost", ratio + 0.5, role="control", family="control", **here))
    retracted = add(candidate("r1", "broken_method", 3.0))
    ledger.append(Kind.SESSION, opened("r2", environment=CPU), cites=[registration.id])
    ledger.append(Kind.SESSION, ended("r2", "aborted"))
    on_cpu = {"cell": cell(device="a CPU", mode="eager"), "environment": CPU}
    open_verdict = verdict("INCONCLUSIVE", "not-resolved", "MARGINAL", next_step="more sessions")
    add(result("r2", "sdpa", **on_cpu))
    add(candidate("r2", "int8_kv,impl=torch", 0.98, verdict=open_verdict, **on_cpu))
    add(calibration("c1"))
    add(order_effect("c2"))
    add(appraisal("q1", "sink_window,window=512"))
    abandoned = ledger.append(Kind.SESSION, opened("r3"))
    imported = ledger.append(Kind.CLAIM, claim("DCR-18"))
    held = {"claim": "SUPPORTED", "claim_reason": "bound-held", "next_step": "cite it"}
    decided = claim("DCR-18", held, rule_record=imported.id)
    supported = ledger.append(Kind.CLAIM, decided, cites=[imported.id, faster.id])
    ledger.append(Kind.CLAIM, claim("DCR-02"))
    missed = {"claim": "FALSIFIED", "claim_reason": "bound-missed"}
    tainted = ledger.append(
        Kind.CLAIM, claim("SL-03", missed, protocol="cd" * 32), cites=[retracted.id]
    )
    retraction = retract(ledger, retracted.id, Reason.BROKEN_METHOD, "it read no token at all")
    doubt = {"target": faster.id, "concern": "the clock was not locked", "tried": "nothing yet"}
    concern = ledger.append(Kind.CONCERN, doubt)
    ledger.append(Kind.CORRECTION, {"target": concern.id, "note": "it was, at 2 GHz"})
    return MadeUp(
        ledger,
        registration,
        faster,
        retracted,
        retraction,
        tainted,
        imported,
        supported,
        concern,
        abandoned,
    )
