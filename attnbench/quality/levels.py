"""How much a quality run does: by level, as counts. No torch, so that a plan can say it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from attnbench.errors import UsageError
from attnbench.protocol.bands import LOGIT_STEPS

FACTS = 8  # planted in one haystack; each is asked for with the others beside it
TOKENS_A_FACT = 48  # of text, so that most of it is text
MOST_ROWS = 8  # windows, or questions to one text, that are decoded side by side
QUESTION_STEPS = 32  # room for the longest question and its answer


def facts_in(context: int) -> int:
    """How many facts a text of so many tokens can hold; fewer than two are none."""
    count = min(FACTS, context // TOKENS_A_FACT)
    return count if count > 1 else 0


class Level(StrEnum):
    """How thorough a quality run is."""

    BRIEF = "brief"  # outputs and logits on two windows: what a latency run takes beside it
    QUICK = "quick"  # every gate, as few samples as make one
    FULL = "full"  # every gate, with samples enough for narrow intervals


class QualityCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How much is run: `windows` of text, `steps` decode steps of each for the local gate and
    `logit_steps` for the compounded one (0: not run), after `context` prefilled tokens; texts with
    facts in them (`haystacks`); whether the kept mass of every head is measured, whether the tokens
    that are kept are mapped over the text, whether bounds that methods hold are held against the
    logits, and whether the local gate is also run on made-up data
    and random weights (`contrast`)."""

    context: int
    windows: int
    steps: int
    logit_steps: int = LOGIT_STEPS
    haystacks: int = 0
    kept_mass: bool = False
    kept_map: bool = False
    bounds: bool = False
    contrast: bool = False

    @property
    def recorded_steps(self) -> int:
        return max(self.steps, self.logit_steps)

    @property
    def room(self) -> int:
        """Steps after the prompt that the cache must hold."""
        return max(self.recorded_steps, QUESTION_STEPS if self.haystacks else 0)

    @property
    def tokens(self) -> int:
        """Of one window: the prompt, the decoded tokens, and the last target."""
        return self.context + self.recorded_steps + 1

    def within(self, max_context: int) -> QualityCounts:
        """The same with a prompt short enough for every step to have a position."""
        context = min(self.context, max_context - self.room)
        if context < 1:
            raise UsageError(
                f"{self.room} decode steps leave no room for a prompt in a model of "
                f"{max_context} positions",
                hint="take a model with more positions; `decode --no-quality` needs none",
            )
        return msgspec.structs.replace(self, context=context)


def counts_of(level: Level, context: int) -> QualityCounts:
    """The counts of a level at this context."""
    return msgspec.structs.replace(_COUNTS[level], context=context)


_COUNTS = {
    Level.BRIEF: QualityCounts(context=0, windows=2, steps=16),
    Level.QUICK: QualityCounts(context=0, windows=5, steps=16, haystacks=2, kept_mass=True),
    Level.FULL: QualityCounts(
        context=0, windows=10, steps=32, logit_steps=128, haystacks=5, kept_mass=True
    ),
}
