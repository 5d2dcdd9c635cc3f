"""What became of a protocol's claim, as lines below the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from attnbench.ledger import Timing
from attnbench.measure.conclusion import Concluded
from attnbench.protocol.document import Quantity
from attnbench.protocol.judgement import CellJudgement, Control
from attnbench.protocol.result import Interval
from attnbench.report.words import cell_title

STYLES = {
    "SUPPORTED": "bold green",
    "FALSIFIED": "bold red",
    "VOID": "bold magenta",
    "INCONCLUSIVE": "bold yellow",
    "UNTESTABLE": "bold yellow",
}
PROMISED = {
    Timing.PROSPECTIVE: "prospective: registered before its first session was opened",
    Timing.RETROSPECTIVE: "retrospective: a session was opened before this was registered",
}


def claim_lines(done: Concluded) -> Iterator[Text]:
    """The claim, its verdict, the figures behind it, how it was promised, what to publish."""
    file, judgement, verdict = done.source.file, done.judgement, done.judgement.verdict
    yield Text(f"claim: {file.claim.statement}")
    yield Text.assemble(
        "verdict: ",
        (verdict.outcome.value, STYLES[verdict.outcome.value]),
        f" ({verdict.reason.value}); {verdict.next_step}",
    )
    direction, bound = file.claim.direction.value, file.claim.bound
    of_order = file.claim.quantity is Quantity.ORDER_EFFECT
    other = "by the median step" if of_order else "by the robust centre"
    yield Text(f"claimed: {file.claim.quantity.value} {direction} {bound:g}")
    for cell in judgement.cells:
        yield Text(_observed(cell, other, of_several=len(judgement.cells) > 1))
        yield Text(_control("control", cell.control, other))
        for each in cell.required:
            yield Text(_control("required", each, other))
    yield Text(_promised(done))
    yield Text(f"sessions of this run: {done.sessions}; of this protocol: {done.of_protocol}")
    yield Text(f"to publish: {done.text}")


def _observed(cell: CellJudgement, other: str, *, of_several: bool) -> str:
    where = f" in {cell_title(cell.cell)}: {cell.verdict.outcome.value}," if of_several else ":"
    return f"observed{where} {_intervals(cell.intervals, other)}"


def _control(name: str, control: Control, other: str) -> str:
    sides = (
        "" if control.least is None else f"at least {control.least:.4g}",
        "" if control.greatest is None else f"at most {control.greatest:.4g}",
    )
    found = "found" if control.found else "NOT FOUND"
    wanted = ", ".join(filter(None, sides))
    return f"{name} {found}: {control.what} {wanted}; {_intervals(control.intervals, other)}"


def _intervals(intervals: Sequence[Interval], other: str) -> str:
    if not intervals:
        return "not measured"
    if all(each.low == each.high for each in intervals):
        return f"{intervals[0].estimate:.4g}"
    said = [f"{i.estimate:.4g} ({i.low:.4g} to {i.high:.4g})" for i in intervals]
    return f"{f' and, {other}, '.join(said)}, at {100 * intervals[0].level:.4g} %"


def _promised(done: Concluded) -> str:
    if done.promise.exploratory:
        return "promised: not at all; this run is EXPLORATORY"
    timing = PROMISED[done.timing] if done.timing else "nothing was measured"
    return f"promised: version {done.promise.version}, {done.promise.registration[:12]}; {timing}"
