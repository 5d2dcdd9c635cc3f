"""Whether an arm computed what it says, in the steps that were timed: what a cheat cannot show.

The worker measures, this file judges. A step is right when its output lies within the rounding of
the dtype of the method's own definition; whether the method is *good* is what quality gates ask.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from attnbench.protocol.growth import Growth, looks_untimed
from attnbench.protocol.verdict import Finding, Reason, Verdict

# Relative L2 of the worst head. float32: room for any order of summation and for fast exponentials
# (1e-6 is usual), but not for TF32 or float16 inside, which are wrong by 2e-4 and more. 16-bit
# types: eight unit roundoffs, for an output, weights and (in eager attention) scores that are each
# rounded to the type.
ERROR_BOUND = {"float32": 5e-5, "float16": 8 * 2.0**-11, "bfloat16": 8 * 2.0**-8}
# Over all heads together an exact arm errs less: half of that.
EXACT_SHARE = 0.5
SHARE_TOLERANCE = 0.02  # of tokens: witness against count
STANDARD_ERRORS = 4.0
# Of the time on fresh inputs; honest arms stay near 1, but one session alone may be disturbed.
REPLAY_RATIO, REPLAY_RATIO_OF_ONE = 0.7, 0.35
# The last step of a visit is the one that is checked: it must cost what the others cost.
LAST_STEP_RATIO, LAST_STEP_RATIO_OF_ONE = 1.5, 2.0
# Of what the declared share of the exact cache takes: what an arm may keep of its own, room for new
# tokens and workspaces included, where more tokens have influence than it declares.
OWN_SLACK = 1.25
# Of each element of a token that is attended to: a cache of four bits has more, with its scales.
LEAST_BITS = 3.2
DTYPE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


REST_OF_STEP = -1  # in place of a layer: all that is not attention


class StepCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The last step of one visit or rehearsal, in one layer, against the method's definition.

    Relative L2 distances: `error` of all heads together, `worst_head` of the worst one.
    """

    visit: int
    layer: int
    error: float
    worst_head: float


class Influence(msgspec.Struct, frozen=True, kw_only=True):
    """How many of `planted` tokens, at secret places, have influence; all scores being alike.

    `counted` is their share over all layers, sequences and query heads, the newest token included
    as attended to; `least` that of the layer with fewest; `declared` what the method's witness
    says. `read` is the share that the step itself takes from the exact cache: that has influence
    when it changes after the arm was set up. `own` is what the arm keeps beside the exact cache, in
    bytes over those of the exact cache; `declared_bytes`, likewise, what it says that this very
    step must read.
    """

    planted: int
    counted: float
    least: float
    declared: float
    read: float = 0.0  # of records from before these three were noted
    own: float = 1.0
    declared_bytes: float = 1.0

    @property
    def allowed(self) -> float:
        """How far an honest count may be from the declared share."""
        share = min(max(self.declared, 0.0), 1.0)  # a witness may say anything
        return SHARE_TOLERANCE + STANDARD_ERRORS * math.sqrt(share * (1 - share) / self.planted)


def declares_more(seen: Influence) -> bool:
    """Whether fewer tokens have influence than the witness says are attended to."""
    return seen.counted < seen.declared - seen.allowed


def reads_more(seen: Influence) -> bool:
    """Whether the step takes more tokens from the exact cache than the witness says."""
    return seen.read > seen.declared + seen.allowed


def keeps_more(seen: Influence) -> bool:
    """Whether the arm keeps more of its own than the tokens take that it says it reads."""
    return seen.own > OWN_SLACK * seen.declared


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds of attention steps: on new inputs that lay there before, on the same ones once
    more after a reset, all on one and the same input, and on inputs that came only just before each
    step."""

    fresh_us: tuple[float, ...]
    again_us: tuple[float, ...] = ()
    held_us: tuple[float, ...]
    moving_us: tuple[float, ...]


def looks_known(found: Replay) -> bool:
    """Whether steps on inputs that were there before look quicker than a run of several sessions
    would excuse, by this arm's times alone: worth a longer look."""
    known_us = min((*found.again_us, *found.held_us))
    fresh_us = min(found.fresh_us)
    return known_us < REPLAY_RATIO * fresh_us or fresh_us < REPLAY_RATIO * min(found.moving_us)


@dataclass(frozen=True)
class Conduct:
    """What was seen of one arm in all sessions of a cell."""

    dtype: str
    exact: bool
    checks: Sequence[Sequence[StepCheck]]  # by session
    influence: Sequence[Influence]
    replays: Sequence[tuple[Replay, Replay]]  # by session: the arm's, and the baseline's
    read_bytes: int  # a step, of the cache alone
    exact_bytes: int  # likewise of an exact arm of this cell
    # By session: the time of each visit's last step over that of its others, and the baseline's.
    last_steps: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    # By session, of one timed step: the share of tokens that its witness says, and its bytes.
    timed: Sequence[tuple[float, int]] = ()
    growth: Sequence[Growth] = ()


def misconduct(conduct: Conduct) -> Finding | None:
    """The first thing that an honest arm would not do; None where there is nothing."""
    return next(_findings(conduct), None)


def _findings(conduct: Conduct) -> Iterator[Finding]:
    for reason, check in (
        (Reason.WRONG_OUTPUT, _wrong_output),
        (Reason.CONTEXT_SKIPPED, _context_skipped),
        (Reason.FALSE_WITNESS, _false_witness),
        (Reason.CACHED, _cached),
        (Reason.UNTIMED_WORK, _untimed_work),
        (Reason.PRECISION, _precision),
    ):
        detail = check(conduct)
        if detail:
            yield Finding(Verdict.VOID, reason, detail)


def _wrong_output(conduct: Conduct) -> str:
    bound = ERROR_BOUND[conduct.dtype]
    checks = [check for session in conduct.checks for check in session]
    wrong = [check for check in checks if not check.worst_head <= bound]  # so that NaN is wrong
    if not wrong:
        return ""
    worst = max(wrong, key=lambda check: (check.worst_head != check.worst_head, check.worst_head))
    return (
        f"{len(wrong)} of {len(checks)} timed steps differ from the method's own definition, by "
        f"{worst.worst_head:.2g} at worst ({_place(worst)}); {bound:.2g} is allowed"
    )


def _place(check: StepCheck) -> str:
    return "outside attention" if check.layer == REST_OF_STEP else f"layer {check.layer}"


def _context_skipped(conduct: Conduct) -> str:
    """An exact method must let every token count, in every layer."""
    least = min((seen.least for seen in conduct.influence), default=1.0)
    if not conduct.exact or least == 1.0:
        return ""
    return f"in one layer only {least:.1%} of the tokens have any influence on the output"


def _false_witness(conduct: Conduct) -> str:
    """What a selection keeps may hang on the data, so a share and the bytes that must cover it are
    always those of one step: a timed one, and the one whose influence is counted."""
    least_bits = LEAST_BITS / DTYPE_BITS[conduct.dtype]
    for share, read_bytes in conduct.timed:
        if read_bytes < least_bits * share * conduct.exact_bytes:
            return (
                f"its witness says that a timed step attends to {share:.1%} of the tokens, but it "
                f"says that only {read_bytes:,} bytes are read of {conduct.exact_bytes:,}"
            )
    return next(filter(None, (_false_share(seen, least_bits) for seen in conduct.influence)), "")


def _false_share(seen: Influence, least_bits: float) -> str:
    """More influence than declared is no offence of a method that merged tokens beforehand and has
    nothing left to read but what it declares; reading more than that is one."""
    said = f"its witness says that {seen.declared:.1%} of the tokens are attended to, but"
    if seen.declared_bytes < least_bits * seen.declared:
        return f"{said} that the same step reads {seen.declared_bytes:.1%} of the cache's bytes"
    if declares_more(seen):
        return f"{said} {seen.counted:.1%} have influence"
    if reads_more(seen):
        return f"{said} a step takes {seen.read:.1%} of them from the exact cache"
    if seen.counted > seen.declared + seen.allowed and keeps_more(seen):
        return (
            f"{said} {seen.counted:.1%} have influence, and what it keeps of its own is as large "
            f"as {seen.own:.1%} of the exact cache: more than it says it reads"
        )
    return ""


def _cached(conduct: Conduct) -> str:
    """In every session, since one may be disturbed, and beyond what the baseline shows."""
    late = _last_steps_late(conduct)
    if late:
        return late
    limit = REPLAY_RATIO if len(conduct.replays) > 1 else REPLAY_RATIO_OF_ONE
    held = [_gain(arm.held_us, arm, base.held_us, base) for arm, base in conduct.replays]
    if held and max(held) < limit:
        return (
            f"attention to a repeated input takes {max(held):.0%} of the time of a fresh one: "
            "results are kept from earlier steps"
        )
    again = [_gain(arm.again_us, arm, base.again_us, base) for arm, base in conduct.replays]
    if again and max(again) < limit:
        return (
            f"attention to inputs known before a reset takes {max(again):.0%} of the time of fresh "
            "ones: results are made ahead"
        )
    known = [_known_gain(arm, base) for arm, base in conduct.replays]
    if known and max(known) < limit:
        return (
            f"attention to inputs that lie ready takes {max(known):.0%} of the time of inputs that "
            "come just before the step: steps are computed ahead"
        )
    return ""


def _last_steps_late(conduct: Conduct) -> str:
    """What disturbs a machine makes steps slower, never quicker: so the quicker visits speak, the
    lower quarter of each session's, and where there is one session alone the quickest. Of the
    baseline only what makes its last steps late counts: where its others were disturbed, its last
    ones look quick."""
    alone = len(conduct.last_steps) == 1
    limit = LAST_STEP_RATIO_OF_ONE if alone else LAST_STEP_RATIO
    found = [
        (_quicker(arm, alone=alone), _quicker(base, alone=alone))
        for arm, base in conduct.last_steps
    ]
    if not found or min(arm / max(base, 1.0) for arm, base in found) <= limit:
        return ""
    return (
        f"the last step of a visit, which is the one that is checked, takes "
        f"{min(arm for arm, _ in found):.1f} times as long as the others: those did not do the work"
    )


def _quicker(shares: Sequence[float], *, alone: bool) -> float:
    """The lowest, or the quarter from below; 1 without any."""
    return sorted(shares)[0 if alone else len(shares) // 4] if shares else 1.0


def _gain(
    known_us: Sequence[float], arm: Replay, base_known_us: Sequence[float], base: Replay
) -> float:
    """Time on inputs seen before over that on fresh ones, beyond what they save the baseline; 1
    where none was taken.

    Of the quickest steps: what disturbs a machine makes steps slower, never quicker.
    """
    if not known_us or not base_known_us:
        return 1.0
    saved = min(1.0, min(base_known_us) / min(base.fresh_us))
    return min(known_us) / min(arm.fresh_us) / saved


def _known_gain(arm: Replay, base: Replay) -> float:
    """Time on inputs that lie ready over that on inputs that come just before the step.

    New inputs leave the caches cold, which costs every arm what it costs the baseline.
    """
    cold_us = max(0.0, min(base.moving_us) - min(base.fresh_us))
    return min(arm.fresh_us) / max(min(arm.moving_us) - cold_us, 1e-3)


def _untimed_work(conduct: Conduct) -> str:
    """What recurs in a long run of steps must recur in the steps that are timed."""
    seen = next(filter(looks_untimed, conduct.growth), None)
    if seen is None:
        return ""
    run = seen.worse
    where = "of a growing cache" if run is seen.grown else "in a row"
    return (
        f"{run.slow} of {run.steps:,} steps {where} take twice the usual and more, up to "
        f"{run.rarest:,} apart: {run.share:.1%} on top of the others' time; in the "
        f"{seen.timed.steps} steps of a visit such work is {seen.timed.share:.1%}"
    )


def _precision(conduct: Conduct) -> str:
    """What rounds more than the dtype does, or reads less, is not exact in that dtype."""
    if not conduct.exact:
        return ""
    if conduct.read_bytes < conduct.exact_bytes:
        return (
            f"it declares itself exact, but reads {conduct.read_bytes:,} bytes a step where exact "
            f"attention reads {conduct.exact_bytes:,}"
        )
    bound = EXACT_SHARE * ERROR_BOUND[conduct.dtype]
    errors = [c.error for session in conduct.checks for c in session if c.layer != REST_OF_STEP]
    if not errors or statistics.median(errors) <= bound:
        return ""
    return (
        f"it declares itself exact in {conduct.dtype}, but errs by {statistics.median(errors):.2g} "
        f"on all heads together; {bound:.2g} is allowed"
    )


def failure_finding(reason: str, message: str) -> Finding:
    """The verdict on an arm that failed; an error of its own counts as not measured."""
    known = Reason(reason) if reason else Reason.NOT_MEASURED
    return Finding(Verdict.VOID, known, message)
