"""What a protocol's run came to, and which of its runs in a ledger have come to nothing yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from attnbench.errors import AttnbenchError, UsageError
from attnbench.ledger import Account, Json, Kind, Record, Timing
from attnbench.ledger.promises import is_opening
from attnbench.measure.chosen import PilotArm
from attnbench.protocol.appraisal import ArmQuality
from attnbench.protocol.calibration_result import CalibrationResult
from attnbench.protocol.cell import Cell
from attnbench.protocol.judgement import Judgement, published
from attnbench.protocol.reading import Source
from attnbench.protocol.result import ArmResult, Promise


@dataclass(frozen=True)
class Concluded:
    """What a protocol's run came to.

    `sessions` counts those of this run, `of_protocol` all that were ever opened for the protocol,
    in whatever version. `failed` holds why memory or quality is missing, `decides` the import of
    the claim that was decided.
    """

    source: Source
    promise: Promise
    run: str
    judgement: Judgement
    text: str
    claim_record: str
    timing: Timing | None
    sessions: Account
    of_protocol: Account
    results: tuple[ArmResult, ...] = ()
    alone: Mapping[Cell, tuple[PilotArm, ...]] = field(default_factory=dict)
    order_effect: CalibrationResult | None = None
    appraisals: tuple[ArmQuality, ...] = ()
    failed: tuple[AttnbenchError, ...] = ()
    decides: Record | None = None


def run_to_go_on(records: Sequence[Record], promise: Promise) -> str:
    """The last run under this very promise that has sessions and no verdict on its claim.

    Raises UsageError where there is none.
    """
    begun, unfinished = begun_runs(records, promise), unfinished_runs(records, promise)
    if unfinished:
        return unfinished[-1]
    if begun:
        raise UsageError(
            f"run {begun[-1]} of protocol {promise.protocol} has its verdict: there is nothing to "
            "go on with",
            hint="without --resume it is measured once more, and both runs are counted",
        )
    raise UsageError(
        f"protocol {promise.protocol} has no run that began as this one would",
        hint="run it without --resume",
    )


def begun_runs(records: Sequence[Record], promise: Promise) -> list[str]:
    """The runs that opened a session under this very promise, oldest first."""
    ours = msgspec.to_builtins(promise)
    runs = [
        str(record.body["run"])
        for record in records
        if is_opening(record) and record.body.get("promise") == ours
    ]
    return list(dict.fromkeys(runs))


def unfinished_runs(records: Sequence[Record], promise: Promise) -> list[str]:
    """Those of them whose claim has no verdict: they stopped, or still run."""
    ended = {str(r.body["run"]) for r in records if r.kind is Kind.CLAIM and "run" in r.body}
    return [run for run in begun_runs(records, promise) if run not in ended]


def claim_body(source: Source, judgement: Judgement, imported: Record | None) -> dict[str, Json]:
    """What a claim record says of the claim: a function of the file, the judgement and the import
    that is decided alone. The statement is the import's, where there is one."""
    file, decisive, verdict = source.file, judgement.decisive, judgement.verdict
    return {
        "claim": file.claim.statement if imported is None else imported.body["claim"],
        "key": file.claim.key or file.id,
        "quantity": file.claim.quantity.value,
        "bound": {"value": file.claim.bound, "direction": file.claim.direction.value},
        "observed": {
            "value": decisive.value,
            "intervals": msgspec.to_builtins(decisive.intervals),
            "cell": msgspec.to_builtins(decisive.cell),
        },
        "control": msgspec.to_builtins(decisive.control),
        **({"required": msgspec.to_builtins(decisive.required)} if decisive.required else {}),
        "verdict": {
            "claim": verdict.outcome.value,
            "claim_reason": verdict.reason.value,
            "next_step": verdict.next_step,
        },
        "cells": [
            {
                "cell": msgspec.to_builtins(each.cell),
                "value": each.value,
                "claim": each.verdict.outcome.value,
                "claim_reason": each.verdict.reason.value,
            }
            for each in judgement.cells
        ],
    }


def text_of(source: Source, judgement: Judgement, promise: Promise) -> str:
    """What the file says that is to be published now."""
    text = published(source.file, judgement.verdict)
    return f"Exploratory, promised by nobody beforehand. {text}" if promise.exploratory else text
