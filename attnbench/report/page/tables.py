"""Results and scoreboard as rows of text, for LaTeX and Markdown alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from attnbench.ledger import Status
from attnbench.report import words
from attnbench.report.page.cells import CellRuns, Run
from attnbench.report.page.claims import Claim
from attnbench.report.page.reading import SHORT, Arm
from attnbench.report.words import ABSENT, cell_title

RESULT_COLUMNS = (
    "arm",
    "speed-up",
    "interval",
    "latency",
    "quality",
    "ms/step",
    "× floor",
    "captured",
    "KV MiB",
    "memory",
)
RESULT_FIGURES = frozenset({"speed-up", "interval", "ms/step", "× floor", "captured", "KV MiB"})
RESULT_SHARES = {"arm": 0.16, "latency": 0.13, "quality": 0.11, "memory": 0.11}
CLAIM_SHARES = {
    "claim": 0.15,
    "source's figure": 0.08,
    "re-derived": 0.12,
    "rule": 0.13,
    "observed": 0.1,
    "verdict": 0.13,
}
CLAIM_COLUMNS = ("key", *CLAIM_SHARES, "record")


@dataclass(frozen=True)
class Table:
    """Text in rows; `right` names the columns of figures, `note` says what they rest on.

    `shares` says how much of a line the columns have whose text is longer than a word.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    right: frozenset[str] = frozenset()
    shares: Mapping[str, float] = field(default_factory=dict)


def result_tables(cells: Sequence[CellRuns]) -> tuple[Table, ...]:
    """One a cell: the newest run that stands."""
    return tuple(_result_table(each.shown) for each in cells)


def scoreboard_table(claims: Sequence[Claim]) -> Table:
    return Table(
        name="scoreboard",
        title="Claims and what became of them",
        columns=CLAIM_COLUMNS,
        rows=[_claim_row(claim) for claim in claims],
        note="of live records by the rule that counts, a falsification counts before support",
        shares=CLAIM_SHARES,
    )


def ms(arm: Arm) -> str:
    """The time of a step, where it means anything elsewhere."""
    return words.latency(arm.result) if arm.on_gpu else ABSENT


def _result_table(run: Run) -> Table:
    levels = {arm.result.ratio.level for arm in run.arms if arm.result.ratio is not UNSET}
    level = " and ".join(f"{level:.0%}" for level in sorted(levels)) or "no"
    timed = (
        "median steps" if run.on_gpu else "times of a CPU mean nothing elsewhere and are left out"
    )
    return Table(
        name=f"results-{run.arms[0].record.id[:SHORT]}",
        title=cell_title(run.cell),
        columns=RESULT_COLUMNS,
        rows=[_result_row(arm) for arm in run.rows()],
        note=f"run {run.name}: {run.measured_as}; {level} intervals; {timed}",
        right=RESULT_FIGURES,
        shares=RESULT_SHARES,
    )


def _result_row(arm: Arm) -> tuple[str, ...]:
    result, verdict = arm.result, arm.result.verdict
    name = words.arm_name(result)
    return (
        name if arm.status is Status.LIVE else f"{name} [{arm.status.value}]",
        words.speed_up(result),
        ABSENT if result.ratio is UNSET else words.limits(result.ratio),
        _with_reason(verdict.latency, words.because(result)),
        _with_reason(verdict.quality, verdict.quality_reason if verdict.quality != "PASS" else ""),
        ms(arm),
        words.floor_multiple(result),
        words.captured(result),
        words.kv_mib(result),
        verdict.memory or ABSENT,
    )


def _claim_row(claim: Claim) -> tuple[str, ...]:
    return (
        claim.key or claim.system,
        claim.statement,
        claim.figure or ABSENT,
        claim.rederived or ABSENT,
        _rule(claim) or ABSENT,
        claim.observed,
        "; ".join((_with_reason(claim.standing, claim.reason), *_qualities(claim))),
        claim.counting.id[:SHORT],
    )


def _qualities(claim: Claim) -> Iterator[str]:
    """Of the arms whose speed a claim rests on."""
    for quality in claim.qualities:
        yield f"quality {quality.verdict}{f' of {quality.arm}' if quality.arm else ''}"


def _rule(claim: Claim) -> str:
    """What is measured, what it is held against and how far that goes: the record has the rest."""
    said = claim.rule
    bound = f"holds if {claim.bound}" if claim.bound else said.get("rule", "")
    return "; ".join(filter(None, (said.get("measures"), bound, said.get("reach"))))


def _with_reason(verdict: str, reason: str) -> str:
    if not verdict:
        return ABSENT
    return f"{verdict} ({reason})" if reason else verdict
