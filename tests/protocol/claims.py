"""The repository's own claims, and verdicts on what a recomputation sees."""

from __future__ import annotations

from pathlib import Path

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


def verdict(key: str, seen: Observed) -> tuple[Outcome, ClaimReason]:
    """What the repository's rule says of it."""
    found = judge(CLAIMS[key], seen)
    return found.outcome, found.reason
