"""The repository's own claims, and verdicts on what a recomputation sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnbench.ledger import Kind, Ledger, Record
from attnbench.protocol.adjudication import judge
from attnbench.protocol.claim import ClaimReason, Outcome
from attnbench.protocol.claim_file import ImportedClaim, read_claims
from attnbench.protocol.recomputed.observed import Observed

FOLDER = Path(__file__).parents[2] / "protocols" / "claims"
CLAIMS: dict[str, ImportedClaim] = {claim.key: claim for claim in read_claims(FOLDER)}
HELD = (Outcome.SUPPORTED, ClaimReason.BOUND_HELD)
MISSED = (Outcome.FALSIFIED, ClaimReason.BOUND_MISSED)
VOID = (Outcome.VOID, ClaimReason.EVIDENCE_VOID)
ONE_PLACE = (Outcome.INCONCLUSIVE, ClaimReason.ONE_PLACE)

SPEED = {"quantity": "speed-up", "arms": ["int8_kv"], "baseline": "strongest"}


def verdict(key: str, seen: Observed) -> tuple[Outcome, ClaimReason]:
    """What the repository's rule says of it."""
    found = judge(CLAIMS[key], seen)
    return found.outcome, found.reason


def import_claim(
    ledger: Ledger, key: str, decided: Mapping[str, Any] | None = SPEED, **changes: Any
) -> Record:
    """An import as `attnbench claims import` records it, as far as standings read it."""
    rule = {"direction": "at-least", "bound": 1.4, "tolerance": 0.0, "reach": "this-model"}
    rule |= {"keeps_quality": False, "gpu": "", "model": "", "measures": "speed", **changes}
    if decided is not None:
        rule["decided"] = {**SPEED, **decided}
    verdict = {"claim": "INCONCLUSIVE", "claim_reason": "not-measured", "next_step": ""}
    body = {"claim": "as imported", "key": key, "rule": rule, "version": "1", "verdict": verdict}
    return ledger.append(Kind.CLAIM, body | {"provenance": "imported, not measured"})
