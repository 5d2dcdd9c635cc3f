"""Judging the claims that need no machine: by what is computed again, or by why nothing can be.

Each verdict is a record that cites the import whose rule it applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from attnbench.errors import UsageError
from attnbench.ledger import Json, Kind, Ledger, Record
from attnbench.ledger.blobs import ref_of
from attnbench.protocol.claim import (
    NEXT_STEP,
    ClaimReason,
    ClaimVerdict,
    Observation,
    Outcome,
    claim_verdict,
)
from attnbench.protocol.claim_file import ImportedClaim
from attnbench.protocol.claim_file import Kind as ClaimKind
from attnbench.protocol.claim_log import Standing, imported_claim, require_imported, standings
from attnbench.protocol.verdict import Verdict

if TYPE_CHECKING:
    from attnbench.protocol.recomputed.observed import Observed

ROOM = "attnbench.protocol.recomputed"
WITHOUT_A_MACHINE = (ClaimKind.ARITHMETIC, ClaimKind.SOURCE_CODE)


@dataclass(frozen=True)
class Adjudicated:
    """A claim with its verdict; `is_new` unless the ledger held the very same one."""

    claim: ImportedClaim
    verdict: ClaimVerdict
    record: Record
    is_new: bool


def adjudicate(ledger: Ledger, claims: Sequence[ImportedClaim]) -> list[Adjudicated]:
    """Judge these claims and record what was not recorded yet; nothing, where one cannot be.

    Raises UsageError for a claim that needs a measurement or that was not imported as it is, and
    what reading and appending raise.
    """
    so_far = standings(ledger.records())
    for claim in claims:
        require_imported(claim, so_far.get(claim.key))
        refuse_measured(claim)
    return [_adjudicate(ledger, claim, so_far[claim.key]) for claim in claims]


def refuse_measured(claim: ImportedClaim) -> None:
    """Raise UsageError for a claim that neither arithmetic nor a reason decides."""
    if claim.entry.kind not in WITHOUT_A_MACHINE:
        raise UsageError(
            f"{claim.key} is of kind {claim.entry.kind.value!r}: arithmetic does not decide it",
            hint=f"Its test: {claim.entry.test}. `attnbench claims show {claim.key}` has the rule.",
        )


def adjudicated_again(imported: Record) -> dict[str, Json]:
    """The body of the verdict that today's source gives by a recorded rule; nothing is recorded.

    Raises UsageError for a rule that no arithmetic decides.
    """
    claim = imported_claim(imported)
    refuse_measured(claim)
    _, body, _ = _judged(claim, imported)
    return body


def recomputation(claim: ImportedClaim) -> Callable[..., Observed]:
    """The function that computes a claim again; raises UsageError where there is none."""
    try:
        module = import_module(f"{ROOM}.{claim.system.replace('-', '_')}")
        found: Callable[..., Observed] = module.RECOMPUTED[claim.key]
    except (ModuleNotFoundError, KeyError) as missing:
        if isinstance(missing, ModuleNotFoundError) and not str(missing.name).startswith(ROOM):
            raise
        raise UsageError(f"nothing computes {claim.key} again") from None
    return found


def judge(claim: ImportedClaim, seen: Observed) -> ClaimVerdict:
    """What a computed figure does to the claim, by the claim's own rule."""
    observation = Observation(
        intervals=(seen.interval(),),
        gpu="",
        model="",
        latency=Verdict.VOID.value if seen.doubt else "",
        next_step=seen.doubt,
    )
    return claim_verdict(claim.entry.claim(), observation)


def _adjudicate(ledger: Ledger, claim: ImportedClaim, so_far: Standing) -> Adjudicated:
    rule = so_far.imported
    verdict, body, data = _judged(claim, rule)
    if data:
        ledger.put_blob(data)
    same = next((known for known in so_far.decisions if dict(known.body) == body), None)
    record = same or ledger.append(Kind.CLAIM, body, cites=(rule.id,))
    return Adjudicated(claim, verdict, record, is_new=same is None)


def _judged(claim: ImportedClaim, rule: Record) -> tuple[ClaimVerdict, dict[str, Json], bytes]:
    """The verdict, what a record says of it, and the data that lie beside it."""
    if claim.entry.kind is ClaimKind.SOURCE_CODE:
        verdict = _out_of_reach(claim)
        return verdict, _body(claim, rule, verdict, {}), b""
    seen = recomputation(claim)()
    verdict = judge(claim, seen)
    evidence: dict[str, Json] = {"evidence": ref_of(seen.data)} if seen.data else {}
    return verdict, _body(claim, rule, verdict, {"observed": seen.body(), **evidence}), seen.data


def _out_of_reach(claim: ImportedClaim) -> ClaimVerdict:
    advice = NEXT_STEP[ClaimReason.SOURCE_ONLY]
    return ClaimVerdict(
        outcome=Outcome.UNTESTABLE,
        reason=ClaimReason.SOURCE_ONLY,
        next_step=f"{advice}: {claim.entry.untestable}",
    )


def _body(
    claim: ImportedClaim, rule: Record, verdict: ClaimVerdict, seen: Mapping[str, Json]
) -> dict[str, Json]:
    return {
        "claim": claim.entry.statement,
        "key": claim.key,
        "system": claim.system,
        "rule_record": rule.id,
        **seen,
        "verdict": {
            "claim": verdict.outcome.value,
            "claim_reason": verdict.reason.value,
            "next_step": verdict.next_step,
        },
    }
